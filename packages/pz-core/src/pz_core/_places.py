"""Places in a tree: where a node is, cheap to extend by one step and to share.

A place is a linked tuple `(parent place, index among the parent's children, node)`; the root is
`(None, -1, tree)`. Walking down costs one small tuple for each step, key paths are computed when
somebody asks for them, and an edit copies just the containers between the edited nodes and the root:

    place = (place of the parent, index, node)
    number every container above an edited place, parents first
    for container in reversed order: copy it with its changed children, note the copy as a change of
        its parent

All walks here are loops, so the depth of a tree is not bounded by Python's stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from pz_core._nodes import child_getter, children_of, keys_of, with_changes
from pz_core._struct_codegen import is_static_number, node_functions

__all__ = [
    "KeyPaths",
    "Place",
    "ancestors",
    "complement",
    "edited",
    "find_childless",
    "find_innermost",
    "find_instances",
    "find_leaves",
    "find_outermost",
    "grafted",
    "index_path",
    "root_place",
    "visit",
]

Place: TypeAlias = tuple[Any, int, Any]


def root_place(tree: Any) -> Place:
    """Returns the place of the root of a tree."""
    return (None, -1, tree)


def ancestors(place: Place) -> Iterator[Place]:
    """Yields the places above a place, nearest first."""
    parent = place[0]
    while parent is not None:
        yield parent
        parent = parent[0]


def index_path(place: Place) -> tuple[int, ...]:
    """Returns the child indices from the root to a place. Such tuples sort in flatten order."""
    indices = []
    while place[0] is not None:
        indices.append(place[1])
        place = place[0]
    return tuple(reversed(indices))


class KeyPaths:
    """Computes key paths of many places, each container's keys and path once."""

    def __init__(self, origin: Place | None = None) -> None:
        self._paths: dict[int, tuple[Any, ...]] = {}
        self._keys: dict[int, Sequence[Any]] = {}
        self._alive: list[Place] = []  # ids stay unique while the places live
        if origin is not None:
            self._remember(origin, ())

    def _remember(self, place: Place, path: tuple[Any, ...]) -> None:
        self._paths[id(place)] = path
        self._alive.append(place)

    def _step(self, place: Place) -> Any:
        parent = place[0]
        keys = self._keys.get(id(parent))
        if keys is None:
            keys = self._keys[id(parent)] = keys_of(parent[2])
        return keys[place[1]]

    def of(self, place: Place) -> tuple[Any, ...]:
        """Returns the key path of a place, from the origin (by default the root)."""
        known = self._paths.get(id(place))
        if known is not None:
            return known
        chain = []
        above: Place | None = place
        while above is not None and id(above) not in self._paths:
            chain.append(above)
            above = above[0]
        path = self._paths[id(above)] if above is not None else ()
        for link in reversed(chain):
            if link[0] is not None:
                path = (*path, self._step(link))
            if link is not place:
                self._remember(link, path)
        return path


def find_outermost(start: Place, test: Callable[[Place], bool]) -> list[Place]:
    """Returns the outermost places below (or at) `start` that pass, calling `test` in pre-order.

    A node below one that passes is not visited.
    """
    if test(start):
        return [start]
    found = []
    stack = [(start, iter(enumerate(children_of(start[2]) or ())))]
    while stack:
        parent, children = stack[-1]
        for index, child in children:
            place = (parent, index, child)
            if test(place):
                found.append(place)
                continue
            below = children_of(child)
            if below:
                stack.append((place, iter(enumerate(below))))
                break
        else:
            stack.pop()
    return found


def find_innermost(start: Place, test: Callable[[Place], bool]) -> list[Place]:
    """Returns the places that pass and have none below them that does; tests every node once."""
    found: list[Place] = []
    # Each entry: the place, whether it passed, how many were found before it, its children to come.
    stack = [(start, test(start), 0, iter(enumerate(children_of(start[2]) or ())))]
    while stack:
        parent, passed, found_before, children = stack[-1]
        step = next(children, None)
        if step is not None:
            place = (parent, *step)
            below = children_of(step[1]) or ()
            stack.append((place, test(place), len(found), iter(enumerate(below))))
            continue
        if passed and len(found) == found_before:
            found.append(parent)
        stack.pop()
    return found


def find_instances(start: Place, kinds: Any) -> list[Place]:
    """Returns the outermost instances of a class (or several), asking once for each type."""
    if isinstance(start[2], kinds):
        return [start]
    found = []
    known: dict[type, bool] = {}
    stack = [(start, iter(enumerate(children_of(start[2]) or ())))]
    while stack:
        parent, children = stack[-1]
        for index, child in children:
            kind = type(child)
            matches = known.get(kind)
            if matches is None:
                matches = isinstance(child, kinds)
                if child.__class__ is kind:  # an object may claim another class than its type
                    known[kind] = matches
            if matches:
                found.append((parent, index, child))
                continue
            getter = child_getter(child)
            if getter is not None:
                below = getter(child)
                if below:
                    stack.append(((parent, index, child), iter(enumerate(below))))
                    break
        else:
            stack.pop()
    return found


def _find_ends(start: Place, *, with_childless: bool) -> list[Place]:
    below = children_of(start[2])
    if not below:
        return [start] if below is None or with_childless else []
    found = []
    stack = [(start, iter(enumerate(below)))]
    while stack:
        parent, children = stack[-1]
        for index, child in children:
            getter = child_getter(child)
            if getter is None:
                found.append((parent, index, child))
                continue
            below = getter(child)
            if below:
                stack.append(((parent, index, child), iter(enumerate(below))))
                break
            if with_childless:
                found.append((parent, index, child))
        else:
            stack.pop()
    return found


def find_leaves(start: Place) -> list[Place]:
    """Returns the places of JAX's leaves: numbers that are static are none."""
    found = _find_ends(start, with_childless=False)
    return [place for place in found if place is start or not _is_static_number(place)]


def _is_static_number(place: Place) -> bool:
    parent, index, _ = place
    functions = node_functions.get(type(parent[2]))
    if functions is None or not functions.number_names:
        return False
    name = functions.child_names[index]
    return name in functions.number_names and is_static_number(parent[2], name)


def find_childless(start: Place) -> list[Place]:
    """Returns the places of leaves and of nodes without children."""
    return _find_ends(start, with_childless=True)


class _Spine:
    """The containers above some places, numbered so that parents come before their children.

    Places made by different walks may stand for the same container; a number stands for one.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.steps: list[tuple[int, int]] = []  # for each container: its parent's number, its index
        self._by_step: dict[tuple[int, int], int] = {}
        self._by_place: dict[int, int] = {}

    def number(self, place: Place) -> int:
        """Returns the number of a container, numbering it and those above it if they are new."""
        known = self._by_place.get(id(place))
        if known is not None:
            return known
        chain = []
        above: Place | None = place
        while above is not None and id(above) not in self._by_place:
            chain.append(above)
            above = above[0]
        number = self._by_place[id(above)] if above is not None else -1
        for link in reversed(chain):
            step = (number, link[1])
            found = self._by_step.get(step)
            if found is None:
                found = self._by_step[step] = len(self.nodes)
                self.nodes.append(link[2])
                self.steps.append(step)
            number = self._by_place[id(link)] = found
        return number


def edited(root: Place, edits: Sequence[tuple[Place, Any]]) -> Any:
    """Returns the tree with some nodes replaced; everything beside their spines is shared.

    Args:
      root: Place of the root.
      edits: Places, none below another, and what to put there.

    Returns:
      The new tree; the very same one if there are no edits.
    """
    spine = _Spine()
    changes: list[dict[int, Any]] = []
    for place, new in edits:
        parent = place[0]
        if parent is None:
            return new
        number = spine.number(parent)
        while len(changes) < len(spine.nodes):
            changes.append({})
        changes[number][place[1]] = new
    for number in range(len(changes) - 1, 0, -1):
        parent_number, index = spine.steps[number]
        changes[parent_number][index] = with_changes(spine.nodes[number], changes[number])
    return with_changes(spine.nodes[0], changes[0]) if changes else root[2]


def complement(root: Place, places: Sequence[Place]) -> list[Place]:
    """Returns the places of the largest subtrees that contain none of the given places."""
    if not places:
        return [root]
    spine = _Spine()
    taken: dict[tuple[int, int], int | None] = {}  # step -> number of a container, None if given
    for place in places:
        if place[0] is None:
            return []
        taken[spine.number(place[0]), place[1]] = None
    for number, step in enumerate(spine.steps):
        taken[step] = number
    found = []
    stack = [(0, root, iter(enumerate(children_of(root[2]) or ())))]
    while stack:
        number, parent, children = stack[-1]
        for index, child in children:
            place = (parent, index, child)
            if (number, index) not in taken:
                found.append(place)
                continue
            below = taken[number, index]
            if below is not None:
                stack.append((below, place, iter(enumerate(children_of(child) or ()))))
                break
        else:
            stack.pop()
    return found


def grafted(base: Place, places: Iterable[Place]) -> list[Place]:
    """Returns the places at the same child indices below another node.

    Args:
      base: The place that takes the part of the given places' root.
      places: Places in a tree of the same layout along their paths.

    Returns:
      Places below `base`, holding the nodes that are there.
    """
    moved: dict[int, Place] = {}
    children: dict[int, Sequence[Any]] = {}
    result = []
    alive = list(places)
    for place in alive:
        chain = []
        above: Place | None = place
        while above is not None and id(above) not in moved:
            chain.append(above)
            above = above[0]
        new = moved[id(above)] if above is not None else base
        for link in reversed(chain):
            if link[0] is not None:
                below = children.get(id(new))
                if below is None:
                    below = children[id(new)] = children_of(new[2]) or ()
                new = (new, link[1], below[link[1]])
            moved[id(link)] = new
        result.append(new)
    return result


def visit(start: Place) -> Iterator[Place]:
    """Yields every place at and below `start`, in pre-order."""
    yield start
    stack = [(start, iter(enumerate(children_of(start[2]) or ())))]
    while stack:
        parent, children = stack[-1]
        step = next(children, None)
        if step is None:
            stack.pop()
            continue
        place = (parent, *step)
        yield place
        below = children_of(step[1])
        if below:
            stack.append((place, iter(enumerate(below))))
