"""How structs become pytree nodes: flatten and unflatten without Python loops.

Two strategies, chosen once per class:

* `jax.tree_util.register_dataclass` flattens in C++, but its unflatten calls the constructor; it
  serves classes whose generated constructor only stores its arguments, and those that permit it
  to be called again (`post_init_may_rerun`).
* All others get generated functions that read the fields by name and fill `__dict__`, so that no
  constructor runs and no loop over field names remains. For fields `a`, `b` and a static `tag`:

      def flatten(node):
          return (node.a, node.b), (node.tag,)

      def unflatten(static, children):
          node = new(cls)
          slots = node.__dict__
          slots['a'], slots['b'] = children
          slots['tag'], = static
          return node

A field that is a child unless it holds a number keeps its place among the children in every
instance, so that the keys of a class are fixed. Where it holds a number, JAX is given None there, a
node without leaves, and the number in the static part. The tree walkers of this package go on seeing
the number as a child: it can be selected and replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

__all__ = [
    "UNDECORATED",
    "NodeFunctions",
    "generate_node_functions",
    "is_static_number",
    "node_functions",
    "register_struct",
]


@dataclasses.dataclass(frozen=True)
class NodeFunctions:
    """Generated functions that take a struct apart and put it together again.

    Attributes:
      child_names: Names of the fields that are pytree children, in field order.
      static_names: Names of the others.
      children: Returns the children of an instance as a tuple.
      static: Returns the static values of an instance as a tuple.
      flatten: Both: `(children, static)`.
      unflatten: Builds an instance from `(static, children)` without running its constructor.
      keys: The key of each child, or None where the class overrides `key_for_field`.
      number_names: Those children that are static where they hold a number.
    """

    child_names: tuple[str, ...]
    static_names: tuple[str, ...]
    children: Callable[[Any], tuple[Any, ...]]
    static: Callable[[Any], tuple[Any, ...]]
    flatten: Callable[[Any], tuple[tuple[Any, ...], tuple[Any, ...]]]
    unflatten: Callable[[Sequence[Any], Iterable[Any]], Any]
    keys: tuple[Any, ...] | None
    number_names: tuple[str, ...]


# An "abstract method" with a telling name, in the namespace of every struct class that is not
# decorated: Python's own refusal to instantiate abstract classes then says what is missing. A
# `__call__` on the metaclass was rejected: it would hide the signatures of constructors and slow
# down every construction.
UNDECORATED = "@pytree_dataclass (a concrete struct must be decorated with it)"

# Filled by `register_struct`. Read by the tree walkers, for which a dictionary lookup by type is
# the cheapest way to learn the children of a node.
node_functions: dict[type, NodeFunctions] = {}


# What counts as a number: exactly these types. NumPy's scalars are arrays.
_NUMBER_TYPES = frozenset({bool, int, float, complex})

# In `__dict__` of an instance: fields whose number came from JAX in the place of an array, as in
# `jax.tree.map(lambda leaf: 0, model)`, and is therefore a leaf.
_LEAF_NUMBERS = "_leaf_numbers"

# In the same place: what flattening found.
_FOR_JAX = "_for_jax"


def is_static_number(node: Any, name: str) -> bool:
    """Whether a field that is a child unless it holds a number belongs to the structure."""
    leaves = node.__dict__.get(_LEAF_NUMBERS, ())
    return type(getattr(node, name)) in _NUMBER_TYPES and name not in leaves


def _tuple_source(names: Sequence[str]) -> str:
    return "(" + "".join(f"node.{name}, " for name in names) + ")"


def _store_source(names: Sequence[str], values: str) -> list[str]:
    if not names:
        return []
    return ["    " + "".join(f"slots[{name!r}], " for name in names) + f"= {values}"]


def generate_node_functions(
    cls: type,
    child_names: Sequence[str],
    static_names: Sequence[str],
    number_names: Sequence[str],
    *,
    default_keys: bool,
) -> NodeFunctions:
    """Compiles the node functions of one class from its field names."""
    children, static = _tuple_source(child_names), _tuple_source(static_names)
    source = "\n".join(
        [
            f"def children(node): return {children}",
            f"def static(node): return {static}",
            f"def flatten(node): return {children}, {static}",
            "def unflatten(static, children):",
            "    node = new(cls)",
            "    slots = node.__dict__",
            *_store_source(child_names, "children"),
            *_store_source(static_names, "static"),
            "    return node",
        ]
    )
    namespace: dict[str, Any] = {"cls": cls, "new": object.__new__}
    exec(compile(source, f"<node functions of {cls.__qualname__}>", "exec"), namespace)
    return NodeFunctions(
        child_names=tuple(child_names),
        static_names=tuple(static_names),
        children=namespace["children"],
        static=namespace["static"],
        flatten=namespace["flatten"],
        unflatten=namespace["unflatten"],
        keys=tuple(map(jax.tree_util.GetAttrKey, child_names)) if default_keys else None,
        number_names=tuple(number_names),
    )


def _functions_for_jax(cls: type, functions: NodeFunctions) -> NodeFunctions:
    """The node functions of a class some of whose children may be numbers, as JAX is to see them."""
    numbers = {name: f"number_{i}" for i, name in enumerate(functions.number_names)}
    children = "".join(
        f"None if {numbers[name]} else node.{name}, " if name in numbers else f"node.{name}, "
        for name in functions.child_names
    )
    static = "".join(f"{name}, " for name in numbers.values())
    # The type beside the value, since 1, 1.0 and True are equal. What is found is kept: the fields
    # of an instance do not change.
    source = "\n".join(
        [
            "def flatten(node):",
            "    slots = node.__dict__",
            f"    if {_FOR_JAX!r} not in slots:",
            *(
                f"        {number} = (type(node.{name}), node.{name}) "
                f"if is_static(node, {name!r}) else None"
                for name, number in numbers.items()
            ),
            f"        slots[{_FOR_JAX!r}] = ({children}), (static(node), {static})",
            f"    return slots[{_FOR_JAX!r}]",
            "def unflatten(given, children):",
            f"    fields, {static} = given",
            "    node = plain_unflatten(fields, children)",
            f"    restore(node, {tuple(numbers)}, ({static}))",
            "    return node",
        ]
    )
    namespace: dict[str, Any] = {
        "static": functions.static,
        "is_static": is_static_number,
        "plain_unflatten": functions.unflatten,
        "restore": _restore_numbers,
    }
    exec(compile(source, f"<numbers of {cls.__qualname__}>", "exec"), namespace)
    return dataclasses.replace(
        functions, flatten=namespace["flatten"], unflatten=namespace["unflatten"]
    )


def _restore_numbers(
    node: Any, names: Sequence[str], numbers: Sequence[tuple[type, Any] | None]
) -> None:
    slots, leaves = node.__dict__, []
    for name, number in zip(names, numbers, strict=True):
        if number is not None and slots[name] is None:
            slots[name] = number[1]
        elif type(slots[name]) in _NUMBER_TYPES:
            leaves.append(name)
    if leaves:
        slots[_LEAF_NUMBERS] = tuple(leaves)


def _flatten_with_keys(functions: NodeFunctions) -> Callable[[Any], Any]:
    flatten, keys, names = functions.flatten, functions.keys, functions.child_names

    if keys is not None:

        def with_fixed_keys(node: Any) -> tuple[Any, Any]:
            children, static = flatten(node)
            return tuple(zip(keys, children, strict=True)), static

        return with_fixed_keys

    def with_own_keys(node: Any) -> tuple[Any, Any]:
        children, static = flatten(node)
        return tuple(zip(map(node.key_for_field, names), children, strict=True)), static

    return with_own_keys


def register_struct(cls: type, functions: NodeFunctions, *, may_call_constructor: bool) -> None:
    """Registers a class with JAX, by the fastest strategy that keeps its meaning.

    Args:
      cls: The class.
      functions: Its node functions.
      may_call_constructor: Whether JAX may rebuild an instance by calling the class with all fields
        as keywords.
    """
    if may_call_constructor and functions.keys is not None and not functions.number_names:
        jax.tree_util.register_dataclass(
            cls, data_fields=functions.child_names, meta_fields=functions.static_names
        )
    else:
        seen = _functions_for_jax(cls, functions) if functions.number_names else functions
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys(seen), seen.unflatten, seen.flatten
        )
    node_functions[cls] = functions
