"""One pytree node at a time: its children, their keys, and a copy with some of them replaced.

What JAX offers for this builds treedefs and key objects at every step. The tree walkers visit tens
of thousands of nodes, so the common node types are looked up by their type here, and everything else
goes through JAX's registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pz_core._struct_codegen import node_functions
from pz_core._text import describe_type
from pz_core.tree_util import tree_flatten_exactly_one_level

__all__ = [
    "Splice",
    "child_getter",
    "children_of",
    "keys_of",
    "same_level",
    "with_changes",
]

ChildGetter = Callable[[Any], Sequence[Any]]

# Types that are leaves for good, since JAX would not let anybody register them as nodes.
_LEAF_TYPES = (jax.Array, np.ndarray, np.generic, bool, int, float, complex, str, bytes)


def _itself(node: Any) -> Any:
    return node


def _no_children(node: Any) -> tuple[()]:
    return ()


def _registered_children(node: Any) -> Sequence[Any]:
    try:
        level = jax.tree_util.default_registry.flatten_one_level(node)
    except Exception as exc:  # flatten functions belong to their classes and may raise anything
        raise ValueError(
            f"A {describe_type(node)} cannot be taken apart, so the tree is no valid pytree: {exc}. "
            f"Repair the node, for example by giving a dictionary keys that can be sorted."
        ) from exc
    return level[0] if level is not None else ()


# By exact type: how to get the children of a node, or None for a leaf.
_GETTERS: dict[type, ChildGetter | None] = {
    list: _itself,
    tuple: _itself,
    type(None): _no_children,
}


def child_getter(node: Any) -> ChildGetter | None:
    """Returns the function that lists the children of nodes of this type; None for a leaf."""
    kind = type(node)
    try:
        return _GETTERS[kind]
    except KeyError:
        pass
    functions = node_functions.get(kind)
    if functions is not None:
        getter: ChildGetter | None = functions.children
    elif jax.tree_util.all_leaves((node,)):
        if not isinstance(node, _LEAF_TYPES):
            return None  # not remembered: the class may be registered with JAX later
        getter = None
    else:
        getter = _registered_children
    _GETTERS[kind] = getter
    return getter


def children_of(node: Any) -> Sequence[Any] | None:
    """Returns the children of a node in JAX's order; None for a leaf."""
    getter = child_getter(node)
    return None if getter is None else getter(node)


def keys_of(node: Any) -> Sequence[Any]:
    """Returns the keys of the children of a node."""
    if type(node) is list or type(node) is tuple:
        return [jax.tree_util.SequenceKey(i) for i in range(len(node))]
    functions = node_functions.get(type(node))
    if functions is None:
        level = tree_flatten_exactly_one_level(node)
        return [] if level is None else [key for key, _ in level[0]]
    if functions.keys is not None:
        return functions.keys
    return [node.key_for_field(name) for name in functions.child_names]


class Splice(list[Any]):
    """Stands for several items, or none, that take the place of one in a list or tuple."""


def _sequence_with_changes(node: Sequence[Any], changes: Mapping[int, Any]) -> list[Any]:
    result = list(node)
    for index in sorted(changes, reverse=True):
        new = changes[index]
        if type(new) is Splice:
            result[index : index + 1] = new
        else:
            result[index] = new
    return result


def with_changes(node: Any, changes: Mapping[int, Any]) -> Any:
    """Returns a copy of one node in which some children are replaced.

    Args:
      node: The node; it is not changed, and the other children are shared with the copy.
      changes: New children by index. A `Splice` is allowed where the node is a list or tuple.

    Returns:
      A node of the same type. Dictionaries keep the order of their keys.

    Raises:
      ValueError: If the class of the node refuses the new children.
    """
    kind = type(node)
    if kind is list:
        return _sequence_with_changes(node, changes)
    if kind is tuple:
        return tuple(_sequence_with_changes(node, changes))
    functions = node_functions.get(kind)
    if functions is not None:
        children, static = functions.flatten(node)
        return functions.unflatten(static, _sequence_with_changes(children, changes))
    if kind is dict:
        copied = dict(node)
        names = [key.key for key in keys_of(node)]
        for index, new in changes.items():
            copied[names[index]] = new
        return copied
    level = tree_flatten_exactly_one_level(node)
    assert level is not None, "only nodes have children to change"
    pairs, treedef = level
    new_children = _sequence_with_changes([child for _, child in pairs], changes)
    try:
        return treedef.unflatten(new_children)
    except Exception as exc:  # unflatten functions belong to their classes and may raise anything
        hint = (
            " The direct children of a jax.tree_util.Partial cannot be selected; select what they "
            "contain."
            if isinstance(node, jax.tree_util.Partial)
            else ""
        )
        raise ValueError(
            f"A {describe_type(node)} refuses its new children: {exc}. Nodes that validate their "
            f"children can neither have them replaced by other types nor by the placeholders of a "
            f"selection's `remainder`; select the node itself.{hint}"
        ) from exc


def same_level(a: Any, b: Any) -> bool:
    """Whether two nodes agree in type, static data, keys and number of children."""
    if type(a) is not type(b):
        return False
    if type(a) is list or type(a) is tuple:
        return len(a) == len(b)
    functions = node_functions.get(type(a))
    if functions is not None and functions.keys is not None:
        return bool(functions.static(a) == functions.static(b))
    level_a, level_b = tree_flatten_exactly_one_level(a), tree_flatten_exactly_one_level(b)
    if level_a is None or level_b is None:
        return False
    keys_a, keys_b = ([key for key, _ in pairs] for pairs, _ in (level_a, level_b))
    return keys_a == keys_b and bool(level_a[1] == level_b[1])
