"""Putting together trees that hold complementary parts of one tree.

`Selection.partition` splits a tree in two, with a sentinel where a part is missing; `combine` merges
any number of such trees.

>>> import pz_core
>>> tree = {"a": 1, "b": [2, 3]}
>>> chosen, rest = pz_core.select(tree).at(lambda t: t["b"]).partition()
>>> chosen
{'a': NotInThisPartition(), 'b': [2, 3]}
>>> combine(chosen, rest) == tree
True
"""

from __future__ import annotations

from typing import Any

import jax

from pz_core._nodes import children_of, keys_of, same_level, with_changes
from pz_core._text import describe_type, one_line
from pz_core.struct import Struct, pytree_dataclass

__all__ = ["NotInThisPartition", "combine"]


@pytree_dataclass
class NotInThisPartition(Struct):
    """Stands for a part of a tree that another partition holds. Has no leaves."""

    def treescope_color(self) -> str:
        """Returns the colour of missing parts."""
        return "orange"


def combine(*partitions: Any) -> Any:
    """Merges trees that hold complementary parts.

    Args:
      *partitions: Trees of one structure, in each of which any subtree may be a
        `NotInThisPartition`.

    Returns:
      The tree with every part taken from the partition that has it. Where none has it the sentinel
      remains. Parts that come from one partition alone are shared with it.

    Raises:
      ValueError: If two partitions have the same leaf, or disagree in structure.
    """
    if len(partitions) == 1:
        return partitions[0]
    finished: list[Any] = []
    # Each entry: the nodes to merge, their path, and the children still to do (None: not opened).
    stack: list[tuple[list[Any], tuple[Any, ...], list[Any] | None]] = [
        (list(partitions), (), None)
    ]
    while stack:
        nodes, path, opened = stack.pop()
        if opened is not None:
            count = len(opened)
            merged = finished[len(finished) - count :]
            del finished[len(finished) - count :]
            finished.append(with_changes(nodes[0], dict(enumerate(merged))))
            continue
        present = [node for node in nodes if not isinstance(node, NotInThisPartition)]
        if len(present) <= 1:
            finished.append(present[0] if present else NotInThisPartition())
            continue
        levels = [_children_to_merge(present[0], other, path) for other in present[1:]]
        children = list(zip(children_of(present[0]) or (), *levels, strict=True))
        if not children:
            finished.append(present[0])
            continue
        stack.append((present, path, children))
        keys = keys_of(present[0])
        for key, below in zip(reversed(keys), reversed(children), strict=True):
            stack.append((list(below), (*path, key), None))
    return finished[0]


def _children_to_merge(first: Any, other: Any, path: tuple[Any, ...]) -> Any:
    """Returns the children of `other`, which must be a node like `first`."""
    below = children_of(other)
    if below is None or children_of(first) is None or not same_level(first, other):
        raise ValueError(
            f"combine: at root{jax.tree_util.keystr(path)} two partitions hold different things, "
            f"{one_line(first)} (a {describe_type(first)}) and {one_line(other)} (a "
            f"{describe_type(other)}). Every leaf may stand in one partition only, and all must "
            f"have the same structure; put NotInThisPartition() where a partition has nothing."
        )
    return below
