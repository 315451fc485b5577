"""Finding out which node an accessor such as `lambda model: model.body[0].weight` returns.

The accessor runs on a copy of the tree in which every leaf and every childless node is an object of
its own, so that what it returns is found by identity. Copying the whole tree is avoided: a struct is
copied as an instance of a subclass whose fields are copied when they are first read.

    class LazyNet(Net):
        @property
        def body(self): return session.copy_of(place of the field)

So an accessor costs what it touches. One that does more than read fields (hands a node to JAX, or
fails, or returns something that is no node) runs a second time on a copy made at once, and that run
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax

from pz_core._nodes import children_of
from pz_core._places import Place, find_outermost, grafted, root_place, visit
from pz_core._struct_codegen import UNDECORATED, NodeFunctions, node_functions
from pz_core._text import one_line

__all__ = ["AccessError", "accessed_places"]


class AccessError(Exception):
    """What an accessor returned is no node of the tree."""


class _WrappedEnd:
    """Stands for a leaf or a childless node."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<leaf, or node without children>"


class _NeedsWholeCopy(BaseException):
    """Raised by a lazy node in a use that it cannot serve; no accessor catches it by accident."""


def _refuse(*_: Any) -> Any:
    raise _NeedsWholeCopy


def _is_childless(node: Any) -> bool:
    return not children_of(node)


def _is_end(node: Any) -> bool:
    return type(node) in node_functions or not children_of(node)


class _HasId:
    """A test of places: whether the node is one of some objects."""

    def __init__(self, ids: set[int]) -> None:
        self._ids = ids

    def __call__(self, place: Place) -> bool:
        return id(place[2]) in self._ids


class _LazyCopy:
    """One run of an accessor on a copy that grows as it is read.

    Attributes:
      pieces: What was copied: for each piece the original's place, the copy, and the ends of the
        piece (lazy structs and wrapped leaves) with the places of their originals.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[Place, Any, dict[int, Place]]] = []
        self._alive: list[Any] = []  # ids stay unique while the copies live

    def copy_of(self, place: Place) -> Any:
        """Copies a node down to the next structs and leaves."""
        end_places = find_outermost(place, lambda p: _is_end(p[2]))
        ends = [self._end(end) for end in end_places]
        self._alive += ends
        if len(ends) == 1 and end_places[0] is place:
            copied = ends[0]
        else:
            treedef = jax.tree_util.tree_structure(place[2], is_leaf=_is_end)
            copied = _unflattened(treedef, ends)
        by_id = {id(end): at for end, at in zip(ends, end_places, strict=True)}
        self.pieces.append((place, copied, by_id))
        return copied

    def _end(self, place: Place) -> Any:
        node = place[2]
        if not children_of(node):
            return _WrappedEnd()
        functions = node_functions[type(node)]
        lazy: Any = object.__new__(_lazy_class(type(node), functions))
        slots = lazy.__dict__
        slots["_origin"] = (self, place)
        slots.update(zip(functions.static_names, functions.static(node), strict=True))
        return lazy

    def find(self, node: Any) -> Place | None:
        """Returns the place whose copy `node` is."""
        for _, _, ends in self.pieces:
            if id(node) in ends:
                return ends[id(node)]
        for place, copied, ends in self.pieces:
            if id(copied) in ends:
                continue
            stops = {id(node), *ends}
            inside = find_outermost(root_place(copied), _HasId(stops))
            hits = [p for p in inside if p[2] is node]
            if hits:
                return grafted(place, hits)[0]
        return None


_LAZY_CLASSES: dict[type, type] = {}


def _lazy_class(cls: type, functions: NodeFunctions) -> type:
    """Returns the subclass of a struct class that copies its fields when they are read."""
    found = _LAZY_CLASSES.get(cls)
    if found is not None:
        return found

    def field_reader(index: int, name: str) -> property:
        def read(self: Any) -> Any:
            slots = self.__dict__
            if name not in slots:
                session, place = slots["_origin"]
                child = functions.children(place[2])[index]
                slots[name] = session.copy_of((place, index, child))
            return slots[name]

        return property(read)

    namespace: dict[str, Any] = {
        name: field_reader(index, name) for index, name in enumerate(functions.child_names)
    }
    namespace.update(
        {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__class__": property(lambda self: cls),
            UNDECORATED: None,
        }
    )
    found = type(cls)(cls.__name__, (cls,), namespace)
    jax.tree_util.register_pytree_with_keys(found, _refuse, _refuse)
    _LAZY_CLASSES[cls] = found
    return found


def _unflattened(treedef: Any, ends: list[Any]) -> Any:
    try:
        return treedef.unflatten(ends)
    except Exception as exc:  # unflatten functions belong to their classes and may raise anything
        raise ValueError(
            f"at: the tree cannot be copied with placeholders in it, since one of its nodes "
            f"validates its children: {exc}. Select that node by `at_instances_of` or by its path "
            f"instead."
        ) from exc


def _whole_copy(start: Place) -> tuple[Any, list[Any]]:
    """Returns a copy with wrapped ends, and the ends (to keep them alive)."""
    leaves, treedef = jax.tree_util.tree_flatten(start[2], is_leaf=_is_childless)
    ends = [_WrappedEnd() for _ in leaves]
    return _unflattened(treedef, ends), ends


def _access_one(start: Place, accessor: Callable[[Any], Any]) -> Place:
    lazy = _LazyCopy()
    try:
        found = lazy.find(accessor(lazy.copy_of(start)))
    except (_NeedsWholeCopy, Exception):
        found = None  # the run below either succeeds or fails for all to see
    if found is not None:
        return found
    copied, _ = _whole_copy(start)
    return _places_of(start, copied, [accessor(copied)], "one node")[0]


def _access_many(start: Place, accessor: Callable[[Any], Iterable[Any]]) -> list[Place]:
    copied, _ = _whole_copy(start)
    result = accessor(copied)
    try:
        nodes = list(result)
    except TypeError as exc:
        raise AccessError(
            f"with multiple=True the accessor must return an iterable of nodes, it returned "
            f"{one_line(result)}"
        ) from exc
    return _places_of(start, copied, nodes, "an iterable of nodes")


def _places_of(start: Place, copied: Any, nodes: list[Any], expected: str) -> list[Place]:
    wanted = {id(node): node for node in nodes}
    found = [place for place in visit(root_place(copied)) if id(place[2]) in wanted]
    missing = wanted.keys() - {id(place[2]) for place in found}
    if missing:
        raise AccessError(
            f"the accessor must return {expected} of the tree, but "
            f"{one_line(wanted[missing.pop()])} is none of its nodes"
        )
    return grafted(start, found)


def accessed_places(
    start: Place, accessor: Callable[[Any], Any], multiple: bool | None
) -> tuple[list[Place], bool]:
    """Returns the places that an accessor leads to.

    Args:
      start: Where the accessor starts.
      accessor: Takes a copy of the node there and returns a node of the copy, or several.
      multiple: Whether it returns several; None to try one, then several.

    Returns:
      The places in flatten order, and whether several were taken where `multiple` was None.

    Raises:
      AccessError: If what is returned is no node.
    """
    if multiple:
        return _access_many(start, accessor), False
    try:
        return [_access_one(start, accessor)], False
    except AccessError as error:
        if multiple is None:
            copied, _ = _whole_copy(start)
            result = accessor(copied)
            if isinstance(result, Collection):
                try:
                    return _places_of(start, copied, list(result), "nodes"), True
                except AccessError:
                    pass
        raise error
