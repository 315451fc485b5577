"""What structs, selections and variables cost, on a tree of 10,000 structs with 30,000 leaves.

Peers: the same classes registered by `jax.tree_util.register_dataclass`, `equinox.tree_at`,
`jax.tree.map`, `jax.jit` of raw arrays, `import jax`, and upstream penzai where it is installed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from harness import Row, compare

import pz_core

__all__ = ["PROGRAMS"]


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"pytree_node": False})


@pz_core.pytree_dataclass
class Group(pz_core.Struct):
    items: list[Any]
    scale: Any
    shift: Any
    seed: Any
    name: str = _static("group")


@pz_core.pytree_dataclass
class Block(pz_core.Struct):
    weight: Any
    bias: Any
    gain: Any
    name: str = _static("block")


@pz_core.pytree_dataclass
class GroupWithInit(pz_core.Struct):
    items: list[Any]
    scale: Any
    shift: Any
    seed: Any
    name: str = _static("group")

    def __init__(self, items: list[Any], scale: Any, shift: Any, seed: Any) -> None:
        self.items, self.scale, self.shift, self.seed = items, scale, shift, seed


@pz_core.pytree_dataclass
class BlockWithKeys(pz_core.Struct):
    weight: Any
    bias: Any
    gain: Any
    name: str = _static("block")

    def key_for_field(self, field_name: str) -> Any:
        return jax.tree_util.GetAttrKey(field_name.upper())


@dataclasses.dataclass(frozen=True)
class PlainGroup:
    items: list[Any]
    scale: Any
    shift: Any
    seed: Any
    name: str = "group"


@dataclasses.dataclass(frozen=True)
class PlainBlock:
    weight: Any
    bias: Any
    gain: Any
    name: str = "block"


jax.tree_util.register_dataclass(PlainGroup, ["items", "scale", "shift", "seed"], ["name"])
jax.tree_util.register_dataclass(PlainBlock, ["weight", "bias", "gain"], ["name"])


def _tree(group: Any, block: Any, *, full: bool = True) -> Any:
    """Four levels of groups of ten, then blocks; with `full=False` one top branch in ten is filled.

    Full: 1,111 groups and 8,889 blocks, three leaves each (the smaller tree has a tenth).
    """
    number = iter(range(10**9))

    def leaf() -> np.float32:
        return np.float32(next(number))

    def build(level: int, position: int) -> Any:
        if level == 4:
            return block(leaf(), leaf(), leaf())
        if level == 1 and not full and position != 5:
            return None
        count = 9 - (position == 9) if level == 3 else 10
        items = [build(level + 1, i) for i in range(count)]
        return group(items, leaf(), leaf(), leaf())

    return build(0, 5)


def _registration(group: Any, block: Any, title: str, targets: dict[str, float]) -> list[Row]:
    ours, theirs = _tree(group, block), _tree(PlainGroup, PlainBlock)
    leaves, treedef = jax.tree.flatten(ours)
    _, plain_treedef = jax.tree.flatten(theirs)
    peer = "register_dataclass"
    contenders: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "flatten": (
            lambda: _no_result(jax.tree.flatten, ours),
            lambda: _no_result(jax.tree.flatten, theirs),
        ),
        "unflatten": (
            lambda: _no_result(treedef.unflatten, leaves),
            lambda: _no_result(plain_treedef.unflatten, leaves),
        ),
        "map": (
            lambda: _no_result(jax.tree.map, _same, ours),
            lambda: _no_result(jax.tree.map, _same, theirs),
        ),
    }
    return [
        row
        for what, (our, their) in contenders.items()
        for row in compare(f"{what}, {title}", our, {peer: their}, targets={peer: targets[what]})
    ]


def _same(x: Any) -> Any:
    return x


def _no_result(function: Callable[..., Any], *args: Any) -> None:
    """Calls without handing the result to the harness, which would flatten it to wait for it."""
    function(*args)


def plain_structs() -> list[Row]:
    """Structs with a generated constructor."""
    return _registration(
        Group, Block, "plain structs", {"flatten": 1.2, "unflatten": 1.2, "map": 1.2}
    )


def custom_structs() -> list[Row]:
    """Structs with a constructor or keys of their own."""
    return _registration(
        GroupWithInit,
        BlockWithKeys,
        "structs with own init or keys",
        {"flatten": 1.7, "unflatten": 1.0, "map": 1.0},
    )


def _one_leaf(tree: Any) -> Any:
    return tree.items[5].items[5].items[5].items[5].bias


def edit_one_leaf() -> list[Row]:
    """`select(tree).at(one leaf).set(value)`."""
    small, large = _tree(Group, Block, full=False), _tree(Group, Block)
    # One level more: ten branches, of which one or all are filled.
    big = Group([_tree(Group, Block) if i == 5 else None for i in range(10)], 0, 0, 0)
    huge = Group([_tree(Group, Block) for _ in range(10)], 0, 0, 0)

    def edit(tree: Any, accessor: Callable[[Any], Any]) -> Callable[[], None]:
        return lambda: _no_result(pz_core.select(tree).at(accessor).set, 1.0)

    def deeper(tree: Any) -> Any:
        return _one_leaf(tree.items[5])

    rows = compare(
        "set one leaf, 1,000 -> 10,000 structs",
        edit(large, _one_leaf),
        {"ours, a tenth of the tree": edit(small, _one_leaf)},
        targets={"ours, a tenth of the tree": 1.5},
    )
    rows += compare(
        "set one leaf, 10,000 -> 100,000 structs",
        edit(huge, deeper),
        {"ours, a tenth of the tree": edit(big, deeper)},
        targets={"ours, a tenth of the tree": 1.5},
    )
    peers: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("equinox"):
        import equinox

        peers["equinox.tree_at"] = lambda: _no_result(equinox.tree_at, _one_leaf, large, 1.0)
    if importlib.util.find_spec("penzai"):
        upstream = _upstream_select()
        if upstream is not None:
            peers["upstream select"] = lambda: _no_result(upstream(large).at(_one_leaf).set, 1.0)
    if peers:
        rows += compare(
            "set one leaf, 10,000 structs",
            edit(large, _one_leaf),
            peers,
            targets={"equinox.tree_at": 1 / 200},
        )
    return rows


def _upstream_select() -> Callable[[Any], Any] | None:
    """Returns upstream penzai's `select`; None where `penzai` is our own umbrella."""
    from penzai import pz

    return None if pz.select is pz_core.select else pz.select


def _negated(block: Any) -> Any:
    return dataclasses.replace(block, weight=-block.weight)


def edit_many() -> list[Row]:
    """Edits of every block, in one step and in three."""
    tree = _tree(Group, Block)

    def is_block(node: Any) -> bool:
        return isinstance(node, Block)

    def by_map() -> None:
        jax.tree.map(lambda x: _negated(x) if is_block(x) else x, tree, is_leaf=is_block)

    def one_step() -> None:
        pz_core.select(tree).at_instances_of(Block).apply(_negated)

    def three_steps() -> None:
        selection = pz_core.select(tree).at(lambda t: t.items)
        selection.at_instances_of(Block).where(lambda b: b.name == "block").apply(_negated)

    def three_levels() -> None:
        selection = pz_core.select(tree).at_children().at_children()
        selection.at_instances_of(Block).apply(_negated)

    one = "ours, one step"
    return [
        *compare(
            "at_instances_of(C).apply(f)",
            one_step,
            {"jax.tree.map": by_map},
            targets={"jax.tree.map": 2.0},
        ),
        *compare("at, at_instances_of, where", three_steps, {one: one_step}, targets={one: 1.5}),
        *compare(
            "children, children, instances", three_levels, {one: one_step}, targets={one: 1.5}
        ),
    ]


def variables() -> list[Row]:
    """`variable_jit` of a function that changes 200 scalar variables."""
    states = [pz_core.StateVariable(float(i)) for i in range(200)]
    raw = [state.value for state in states]

    @pz_core.variable_jit
    def ours(states: Any) -> None:
        for state in states:
            state.value = state.value + 1

    @jax.jit
    def peer(values: Any) -> Any:
        return [value + 1 for value in values]

    def ours_and_wait() -> Any:
        ours(states)
        return states[-1].value

    name = "jax.jit of raw scalars"
    return compare(
        "variable_jit, 200 scalar variables",
        ours_and_wait,
        {name: lambda: peer(raw)},
        targets={name: 2.0},
    )


def imports() -> list[Row]:
    """A fresh process that imports."""

    def importing(module: str) -> Callable[[], None]:
        return lambda: _no_result(subprocess.check_call, [sys.executable, "-c", f"import {module}"])

    return compare(
        "import pz_core",
        importing("pz_core"),
        {"import jax": importing("jax")},
        targets={"import jax": 1.1},
        max_s=60,
    )


PROGRAMS: dict[str, Callable[[], list[Row]]] = {
    "plain structs": plain_structs,
    "custom structs": custom_structs,
    "edit one leaf": edit_one_leaf,
    "edit many": edit_many,
    "variables": variables,
    "imports": imports,
}
