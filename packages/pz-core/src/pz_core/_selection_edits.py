"""Edits that change how many items a container has: inserting and removing."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pz_core._nodes import Splice, children_of
from pz_core._places import Place, edited, find_outermost, index_path, root_place
from pz_core._selection_text import where
from pz_core._text import describe_type

__all__ = ["check_in_sequences", "inserted", "inserted_places"]

IndexPath = tuple[int, ...]


def _is_in_sequence(place: Place) -> bool:
    return place[0] is not None and type(place[0][2]) in (list, tuple)


def check_in_sequences(method: str, places: Iterable[Place], repair: str) -> None:
    """Requires every place to be an item of a list or tuple (JAX's own, no subclass)."""
    for place in places:
        if not _is_in_sequence(place):
            parent = describe_type(place[0][2]) if place[0] else "nothing, it is the root"
            raise ValueError(
                f"{method}: every selected node must be an item of a list or tuple, but the parent "
                f"of {where(place)} is {parent}. {repair}"
            )


def inserted(
    root: Place,
    places: Sequence[Place],
    value: Any,
    group: Callable[[list[Any]], Any] | None,
    offset: int,
) -> tuple[Any, list[Any]]:
    """Inserts a value next to each place.

    Args:
      root: Place of the root.
      places: The places.
      value: What to insert.
      group: Makes one node of a list of nodes, where a place is no item of a list or tuple.
      offset: 0 to insert before the place, 1 after it.

    Returns:
      The new tree, and for each place what `group` returned, or None where it was not needed.
    """
    edits, groups = [], []
    for place in places:
        items = [place[2]]
        items.insert(offset, value)
        made = None
        if not _is_in_sequence(place):
            assert group is not None, "checked by the caller"
            made = group(items)
        edits.append((place, made if made is not None else Splice(items)))
        groups.append(made)
    return edited(root, edits), groups


def inserted_places(
    new_tree: Any, places: Sequence[Place], groups: Sequence[Any], value: Any, offset: int
) -> list[Place]:
    """Returns where in the tree that `inserted` returned the inserted values are."""
    taken: dict[IndexPath, list[int]] = {}  # container -> indices of its items that got company
    for place, made in zip(places, groups, strict=True):
        if made is None:
            path = index_path(place)
            taken.setdefault(path[:-1], []).append(path[-1])
    root = root_place(new_tree)
    result = []
    for place, made in zip(places, groups, strict=True):
        path = index_path(place)
        # Every insertion before an index moves it by one.
        new_path = [
            index + bisect.bisect_left(taken.get(path[:depth], ()), index)
            for depth, index in enumerate(path)
        ]
        if made is None:
            new_path[-1] += offset
        else:
            new_path += _index_path_in_group(made, value, place[2], offset)
        result.append(_place_at(root, new_path))
    return result


def _index_path_in_group(made: Any, value: Any, node: Any, offset: int) -> IndexPath:
    found = find_outermost(root_place(made), lambda p: p[2] is value or p[2] is node)
    values = [place for place in found if place[2] is value]
    if not values:
        raise ValueError(
            f"insert_before, insert_after: `group` returned a {describe_type(made)} that does not "
            f"contain the inserted value, so it cannot be selected. Return a node that holds the "
            f"given nodes themselves."
        )
    return index_path(values[-1 if offset else 0])


def _place_at(root: Place, indices: Iterable[int]) -> Place:
    place = root
    for index in indices:
        place = (place, index, (children_of(place[2]) or ())[index])
    return place
