"""Sets of places: finding them by key path, keeping them apart, comparing those of two selections."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import jax

from pz_core._nodes import children_of, keys_of
from pz_core._places import Place, index_path
from pz_core._selection_text import where
from pz_core._text import describe_type

__all__ = ["Nested", "check_same_tree", "comparable", "find_keypaths", "without_nested"]

Nested: TypeAlias = Literal["error", "outermost", "innermost"]
IndexPath = tuple[int, ...]

_END = object()


def find_keypaths(start: Place, keypaths: Iterable[tuple[Any, ...]]) -> list[Place]:
    """Returns the places at key paths from `start`; a path wins over its extensions.

    Only the nodes along the paths are visited.
    """
    trie: dict[Any, Any] = {}
    for path in keypaths:
        level = trie
        for key in path:
            level = level.setdefault(key, {})
        level[_END] = None
    found = []
    stack = [(start, trie)]
    while stack:
        place, level = stack.pop()
        if _END in level:
            found.append(place)
            continue
        children = children_of(place[2])
        if not children:
            continue
        keys = keys_of(place[2])
        stack += [
            ((place, index, children[index]), level[keys[index]])
            for index in reversed(range(len(children)))
            if keys[index] in level
        ]
    return found


def without_nested(method: str, places: Iterable[Place], nested: Nested) -> list[Place]:
    """Returns distinct places in flatten order, none inside another.

    Args:
      method: For the error.
      places: Places in one tree.
      nested: What to do about a place inside another one.

    Raises:
      ValueError: If there is one and `nested` is "error".
    """
    by_path = {index_path(place): place for place in places}
    kept: list[IndexPath] = []
    # Sorted, a place comes right before those inside it.
    for path in sorted(by_path):
        around = kept[-1] if kept and path[: len(kept[-1])] == kept[-1] else None
        if around is not None and nested == "error":
            raise ValueError(
                f"{method}: {where(by_path[path])} lies inside {where(by_path[around])}, and "
                f"selected nodes must not lie inside each other. Select only one of the two"
                + ("." if method == "at" else ', or pass nested="outermost" or "innermost".')
            )
        if around is not None and nested == "innermost":
            kept.pop()
        if around is None or nested == "innermost":
            kept.append(path)
    return [by_path[path] for path in kept]


def check_same_tree(symbol: str, a: Any, b: Any) -> None:
    """Requires two selections' trees to be one: the same object, or equal with identical leaves."""
    if a is b:
        return
    leaves_a, treedef_a = jax.tree_util.tree_flatten(a)
    leaves_b, treedef_b = jax.tree_util.tree_flatten(b)
    same_structure = bool(treedef_a == treedef_b)  # type: ignore[operator]
    if not (same_structure and all(map(operator.is_, leaves_a, leaves_b))):
        raise ValueError(
            f"selection {symbol} selection: both must select in the same tree, but their roots (a "
            f"{describe_type(a)} and a {describe_type(b)}) are different objects. Start both from "
            f"one `select(tree)`."
        )


def comparable(
    symbol: str, ours: Sequence[Place], theirs: Sequence[Place]
) -> tuple[dict[IndexPath, Place], dict[IndexPath, Place]]:
    """Returns two selections' places by child indices, in flatten order.

    Raises:
      ValueError: If a place of one lies inside a place of the other.
    """
    our_paths = {index_path(place): place for place in ours}
    their_paths = {index_path(place): place for place in theirs}
    both = {**our_paths, **their_paths}
    for before, after in itertools.pairwise(sorted(both)):
        if after[: len(before)] == before:
            raise ValueError(
                f"selection {symbol} selection: {where(both[after])} lies inside "
                f"{where(both[before])}; selected nodes must be the same or apart. Refine the "
                f"outer selection first, for example with `at_instances_of`."
            )
    return our_paths, their_paths
