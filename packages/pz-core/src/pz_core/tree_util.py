"""Looking at a pytree one level at a time, and printing key paths.

>>> import jax
>>> children, treedef = tree_flatten_exactly_one_level({"a": 1, "b": [2]})
>>> children
[(DictKey(key='a'), 1), (DictKey(key='b'), [2])]
>>> treedef.unflatten(["x", "y"])
{'a': 'x', 'b': 'y'}
>>> pretty_keystr((jax.tree_util.DictKey("b"), jax.tree_util.SequenceKey(0)), {"a": 1, "b": [2]})
"['b'][0]"
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax

__all__ = ["CustomGetAttrKey", "PyTreeDef", "pretty_keystr", "tree_flatten_exactly_one_level"]

PyTreeDef: TypeAlias = jax.tree_util.PyTreeDef


@dataclasses.dataclass(frozen=True)
class CustomGetAttrKey:
    """An attribute key that carries more than a name.

    Subclass it with further fields and return it from `Struct.key_for_field`; whoever consumes key
    paths can look at them. Prints like an attribute and never equals `jax.tree_util.GetAttrKey`.

    Attributes:
      name: The attribute's name.
    """

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


def tree_flatten_exactly_one_level(tree: Any) -> tuple[list[tuple[Any, Any]], PyTreeDef] | None:
    """Takes one node apart.

    Args:
      tree: Any object.

    Returns:
      None if JAX regards `tree` as a leaf. Otherwise the `(key, child)` pairs in JAX's order
      (no pair for a childless node such as `None` or `[]`), and the treedef whose `unflatten`
      takes new children.

    Raises:
      ValueError: From JAX, for a dictionary whose keys cannot be sorted.
    """
    # The leaf predicate stops at everything but the root, so `None` children are reported too.
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(pairs) == 1 and not pairs[0][0]:  # one leaf, at the empty path
        return None
    return [(path[0], child) for path, child in pairs], treedef


def pretty_keystr(keypath: tuple[Any, ...], tree: Any) -> str:
    """Returns a key path as text, with the type names of the nodes that attributes belong to.

    Args:
      keypath: A key path into `tree`.
      tree: The tree; only the nodes along the path are looked at.

    Returns:
      Text such as `Net.parts[0]/Box.w`; the empty path gives `""`.

    Raises:
      KeyError: If a key does not occur in its node.
      AssertionError: If the path is longer than the tree is deep.
    """
    parts = []
    node = tree
    for position, key in enumerate(keypath):
        if isinstance(
            key,
            jax.tree_util.GetAttrKey | jax.tree_util.FlattenedIndexKey | CustomGetAttrKey,
        ):
            parts.append(f"/{type(node).__name__}")
        parts.append(str(key))
        level = tree_flatten_exactly_one_level(node)
        if level is None:
            raise AssertionError(
                f"pretty_keystr: the key path {keypath!r} goes on after its first {position} keys, "
                f"but they lead to a leaf of type {type(node).__name__}. Pass the tree that the "
                f"path was taken from."
            )
        children = dict(level[0])
        if key not in children:
            raise KeyError(
                f"pretty_keystr: key {key!r} at position {position} of {keypath!r} is not in a "
                f"{type(node).__name__}, whose keys are {list(children)!r}. Pass the tree that the "
                f"path was taken from."
            )
        node = children[key]
    return "".join(parts).removeprefix("/")
