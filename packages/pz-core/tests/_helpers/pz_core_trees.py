"""Structs of every kind, and hypothesis strategies for pytrees of them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

import pz_core


def static(default: Any = dataclasses.MISSING) -> Any:
    """Declares a static field."""
    return dataclasses.field(default=default, metadata={"pytree_node": False})


Point = namedtuple("Point", ["x", "y"])


@pz_core.pytree_dataclass
class Box(pz_core.Struct):
    """Generated constructor: registered through `register_dataclass`."""

    w: Any
    tag: str = static("t")


@pz_core.pytree_dataclass
class Net(pz_core.Struct):
    parts: Any
    head: Any = None
    name: str = static("net")


@pz_core.pytree_dataclass
class Empty(pz_core.Struct):
    pass


@pz_core.pytree_dataclass
class StaticOnly(pz_core.Struct):
    tag: Any = static("s")


@pz_core.pytree_dataclass
class WithInit(pz_core.Struct):
    """Constructor of its own: registered through generated functions."""

    a: Any
    b: Any
    tag: str = static()

    def __init__(self, a: Any, tag: str = "init") -> None:
        self.a = a
        self.b = [a]
        self.tag = tag


@pz_core.pytree_dataclass
class Hyper(pz_core.Struct):
    """A number in `by` is static, anything else a child."""

    a: Any
    by: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    tag: str = static("t")


@dataclasses.dataclass(frozen=True)
class LoudKey(pz_core.tree_util.CustomGetAttrKey):
    loudness: int = 3


@pz_core.pytree_dataclass
class WithKeys(pz_core.Struct):
    """Keys of its own."""

    a: Any
    b: Any = None

    def key_for_field(self, field_name: str) -> Any:
        return LoudKey(field_name)


@pz_core.pytree_dataclass
class OwnLayout:
    """No Struct; flattens itself, with children in reverse order."""

    a: Any
    b: Any

    def tree_flatten_with_keys(self) -> Any:
        keys = [jax.tree_util.GetAttrKey("b"), jax.tree_util.GetAttrKey("a")]
        return list(zip(keys, [self.b, self.a], strict=True)), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> OwnLayout:
        b, a = children
        return cls(a, b)


class KeylessNode:
    """Registered with JAX without keys."""

    def __init__(self, *children: Any) -> None:
        self.children = list(children)

    def __eq__(self, other: Any) -> bool:
        return type(other) is KeylessNode and self.children == other.children

    __hash__ = None  # type: ignore[assignment]


jax.tree_util.register_pytree_node(
    KeylessNode, lambda node: (node.children, None), lambda _, children: KeylessNode(*children)
)

leaves = st.one_of(
    st.integers(-3, 3),
    st.floats(-2, 2),
    st.booleans(),
    st.sampled_from(["a", "b"]),
    st.builds(object),
)
ends = st.one_of(
    leaves,
    st.none(),
    st.builds(list),
    st.builds(tuple),
    st.builds(dict),
    st.builds(Empty),
    st.builds(StaticOnly, st.sampled_from(["s", 1, [2]])),
)
keys = st.sampled_from(["a", "b", "c", "long name"])


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tags = st.sampled_from(["t", "u"])
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(keys, children, max_size=3),
        st.dictionaries(st.integers(-2, 9), children, max_size=2),
        st.dictionaries(keys, children, max_size=2).map(OrderedDict),
        st.builds(Point, children, children),
        st.builds(Box, children, tags),
        st.builds(Net, st.lists(children, max_size=3), children, tags),
        st.builds(WithInit, children, tags),
        st.builds(WithKeys, children, children),
        st.builds(Hyper, children, children, tags),
        st.builds(OwnLayout, children, children),
        st.builds(KeylessNode, children, children),
        children.map(lambda child: [child, child]),  # a shared object
    )


trees = st.recursive(ends, _containers, max_leaves=12)


@st.composite
def array_trees(draw: Any) -> Any:
    """Trees whose leaves are small NumPy arrays and numbers."""
    arrays = st.builds(
        lambda shape, value: np.full(shape, value, np.float32),
        st.sampled_from([(), (2,), (0,), (2, 3)]),
        st.integers(-3, 3),
    )
    array_ends = st.one_of(arrays, st.integers(-3, 3), st.none(), st.builds(Empty))
    return draw(st.recursive(array_ends, _containers, max_leaves=10))


def same_objects(a: Any, b: Any) -> bool:
    """Whether two trees have one structure and the very same leaves."""
    leaves_a, treedef_a = jax.tree.flatten(a)
    leaves_b, treedef_b = jax.tree.flatten(b)
    return treedef_a == treedef_b and all(x is y for x, y in zip(leaves_a, leaves_b, strict=True))


def all_paths(tree: Any) -> dict[tuple[Any, ...], Any]:
    """Returns every node by its key path, by plain recursion over one level at a time."""
    found = {(): tree}
    level = pz_core.tree_util.tree_flatten_exactly_one_level(tree)
    for key, child in level[0] if level is not None else []:
        found.update({(key, *path): node for path, node in all_paths(child).items()})
    return found
