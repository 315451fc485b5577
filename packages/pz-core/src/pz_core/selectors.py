"""Choosing parts of a tree, to look at them or to get a tree in which they are changed.

The one idea: a selection is a tree together with the places of some of its nodes. Methods named
`at_...` choose other places; `set`, `apply` and their kin return a new tree. A step costs what it
searches, and an edit copies only the containers above the edited nodes: whatever lies beside them
is shared with the original tree.

>>> tree = {"a": [1, 2], "b": (3, "x")}
>>> select(tree).at_instances_of(int).apply(lambda x: 10 * x)
{'a': [10, 20], 'b': (30, 'x')}
>>> select(tree).at(lambda t: t["b"]).set(None)
{'a': [1, 2], 'b': None}
>>> select(tree).at_path_pattern("['a'][*]").count()
2

A selection is also a struct with two fields, which are computed when they are first read: the
selected nodes by key path, and the rest of the tree with a `SelectionHole` in place of each. So it
can cross JAX transforms and can be put together by hand. (This module is long because a selection's
methods are its interface; they only delegate, to `_places`, `_accessor` and `path_patterns`.)
"""

from __future__ import annotations

import dataclasses
import operator
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, cast

import jax
import numpy as np

from pz_core import _accessor, _nodes, _places, _selection_text
from pz_core._places import KeyPaths, Place
from pz_core._selection_edits import check_in_sequences, inserted, inserted_places
from pz_core._selection_places import (
    Nested,
    check_same_tree,
    comparable,
    find_keypaths,
    without_nested,
)
from pz_core._selection_text import Step, path_text, where
from pz_core._text import describe_type, one_line
from pz_core._wildcards import compile_wildcards
from pz_core.abstract_variables import (
    AbstractVariable,
    AbstractVariableSlot,
    AbstractVariableValue,
)
from pz_core.display_hook import selection_display
from pz_core.partitioning import NotInThisPartition
from pz_core.path_patterns import PathPattern
from pz_core.path_patterns import PathPatternError as PathPatternError
from pz_core.struct import Struct, pytree_dataclass

__all__ = [
    "KeyPath",
    "MissingReplacementError",
    "PathPatternError",
    "Selection",
    "SelectionCountError",
    "SelectionHole",
    "SelectionPredicateError",
    "SelectionQuote",
    "select",
]

T = TypeVar("T")

KeyPath: TypeAlias = tuple[Any, ...]


class SelectionCountError(ValueError):
    """A selection has another number of nodes than it must have.

        select(model).at_instances_of(Dropout).required()  # error: the model has none

    Repair: select what the message names as near, or drop `.required()` if an empty selection is
    fine (editing it changes nothing).
    """


class SelectionPredicateError(TypeError, ValueError):
    """A predicate returned something that is not a `bool`.

        select(tree).at_subtrees_where(lambda x: x == array)  # error: an array of booleans

    Repair: `lambda x: bool((x == array).all())`.
    """


class MissingReplacementError(KeyError, ValueError):
    """The replacements do not fit the selected nodes.

        select([1, 2]).at_children().set_sequence([5])  # error: two nodes, one replacement

    Repair: give one replacement for each of `selection.get_keypaths()`.
    """

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the text's repr


@pytree_dataclass
class SelectionHole(Struct):
    """Stands in a selection's `remainder` where a selected node was.

    Attributes:
      path: The key path of the node.
    """

    path: KeyPath = dataclasses.field(metadata={"pytree_node": False})


@pytree_dataclass
class SelectionQuote(Struct):
    """Keeps a `SelectionHole` of the user's own tree apart from those of the selection.

    Attributes:
      quoted: The hole, or a quote of it.
    """

    quoted: SelectionHole | SelectionQuote = dataclasses.field(metadata={"pytree_node": False})


def select(tree: T) -> Selection[T]:
    """Selects a whole tree; refine the selection with its methods.

    Args:
      tree: Any object. It is not looked at.

    Returns:
      A selection of one node, with the empty key path.
    """
    root = _places.root_place(tree)
    return _lazy_selection(root, (root,), None)


def _lazy_selection(root: Place, places: Sequence[Place], step: Step | None) -> Selection[Any]:
    selection: Selection[Any] = object.__new__(Selection)
    selection.__dict__.update(_root=root, _places=tuple(places), _step=step)
    return selection


def _call_text(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


@pytree_dataclass
class Selection(Struct, Generic[T]):
    """Some nodes of a tree, none inside another, in flatten order.

    Attributes:
      selected_by_path: The selected nodes by their key path in the whole tree.
      remainder: The tree with a `SelectionHole` in place of each selected node. Holes and quotes
        that the tree had before are wrapped in a `SelectionQuote`.
    """

    selected_by_path: OrderedDict[KeyPath, T]
    remainder: Any

    # A selection made here knows its places (`_root`, `_places`, `_step`) and computes its fields
    # on demand; one that was made by hand, or came out of a JAX transform, knows its fields and
    # computes its places on demand.

    def __getattr__(self, name: str) -> Any:
        slots = self.__dict__
        if name == "selected_by_path" and "_places" in slots:
            slots[name] = _by_path(self._places)
        elif name == "remainder" and "_places" in slots:
            slots[name] = _with_holes(self._root, self._places)
        elif name in ("_root", "_places") and "remainder" in slots:
            slots["_root"], slots["_places"] = _filled(self.selected_by_path, self.remainder)
        elif name == "_step":
            return None
        else:
            raise AttributeError(
                f"'Selection' object has no attribute {name!r}", name=name, obj=self
            )
        return slots[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"selected_by_path": self.selected_by_path, "remainder": self.remainder}

    @property
    def _has_own_fields(self) -> bool:
        """Whether the fields were given, and the places follow from them."""
        return "_step" not in self.__dict__

    def _refined(
        self,
        places: Sequence[Place],
        call: str,
        near: Callable[[Sequence[Place]], str] | None = None,
    ) -> Selection[Any]:
        return _lazy_selection(self._root, places, self._next_step(call, near))

    def _next_step(self, call: str, near: Callable[[Sequence[Place]], str] | None = None) -> Step:
        return Step(call, self._root, self._places, self._step, near)

    def _find(
        self,
        find: Callable[[Place], Iterable[Place]],
        call: str,
        near: Callable[[Sequence[Place]], str] | None = None,
    ) -> Selection[Any]:
        return self._refined([p for start in self._places for p in find(start)], call, near)

    # Queries.

    def count(self) -> int:
        """Returns the number of selected nodes."""
        return len(self)

    def __len__(self) -> int:
        return len(self.selected_by_path if self._has_own_fields else self._places)

    def is_empty(self) -> bool:
        """Whether nothing is selected."""
        return len(self) == 0

    def get(self) -> T:
        """Returns the one selected node.

        Raises:
          SelectionCountError: If not exactly one node is selected.
        """
        return self.exactly(1).get_sequence()[0]

    def get_keypaths(self) -> tuple[KeyPath, ...]:
        """Returns the key paths of the selected nodes, from the root of the whole tree."""
        return tuple(self.selected_by_path)

    def get_sequence(self) -> tuple[T, ...]:
        """Returns the selected nodes in order."""
        if self._has_own_fields:
            return tuple(self.selected_by_path.values())
        return tuple(place[2] for place in self._places)

    def get_by_path(self) -> OrderedDict[KeyPath, T]:
        """Returns the selected nodes by key path, in a dictionary of the caller's own."""
        return OrderedDict(self.selected_by_path)

    def _count_text(self, wanted: str) -> str:
        return _selection_text.count_text(self._root, self._step, self._places, wanted)

    def required(self) -> Selection[T]:
        """Returns the selection itself, which must not be empty.

        Raises:
          SelectionCountError: If it is; the message tells the chain of steps, what was searched,
            and what would have matched nearly.
        """
        if not len(self):
            raise SelectionCountError(self._count_text("at least one node"))
        return self

    def exactly(self, count: int) -> Selection[T]:
        """Returns the selection itself, which must have a given number of nodes.

        Args:
          count: The number.

        Raises:
          SelectionCountError: If it has another number; see `required`.
        """
        if len(self) != count:
            raise SelectionCountError(
                self._count_text("exactly one node" if count == 1 else f"exactly {count} nodes")
            )
        return self

    def assert_count_is(self, count: int) -> Selection[T]:
        """As `exactly`, but raises an `AssertionError`."""
        if len(self) != count:
            raise AssertionError(self._count_text(f"exactly {count} node(s)"))
        return self

    def deselect(self) -> Any:
        """Returns the whole tree.

        Raises:
          ValueError: If the fields were put together by hand and do not fit each other.
        """
        return self._root[2]

    # Edits.

    def _with_values(self, values: Sequence[Any], keep_selected: bool) -> Any:
        """Returns the tree, or the selection, with other nodes in the selected places."""
        if self._has_own_fields:
            by_path = OrderedDict(zip(self.selected_by_path, values, strict=True))
            changed: Selection[Any] = Selection(by_path, self.remainder)
            return changed if keep_selected else changed.deselect()
        edits = list(zip(self._places, values, strict=True))
        root = _places.root_place(_places.edited(self._root, edits))
        if not keep_selected:
            return root[2]
        return _lazy_selection(root, _places.grafted(root, self._places), self._step)

    def apply(
        self,
        fn: Callable[..., Any],
        *,
        with_keypath: bool = False,
        keep_selected: bool = False,
    ) -> Any:
        """Replaces each selected node by a function of it.

        Args:
          fn: Takes a node, or a key path and a node.
          with_keypath: Whether `fn` takes a key path too.
          keep_selected: Whether to return a selection of the new nodes.

        Returns:
          The changed tree, or a selection in it.
        """
        values = self.get_sequence()
        if with_keypath:
            new = [fn(path, x) for path, x in zip(self.get_keypaths(), values, strict=True)]
        else:
            new = [fn(x) for x in values]
        return self._with_values(new, keep_selected)

    def apply_with_selected_index(
        self, fn: Callable[[int, T], Any], keep_selected: bool = False
    ) -> Any:
        """Replaces each selected node by a function of its number (from 0) and itself."""
        return self._with_values(
            [fn(index, x) for index, x in enumerate(self.get_sequence())], keep_selected
        )

    def set(self, replacement: Any) -> Any:
        """Returns the tree with the same object in place of each selected node."""
        return self._with_values([replacement] * len(self), keep_selected=False)

    def set_by_path(self, replacer: Mapping[KeyPath, Any] | Callable[[KeyPath], Any]) -> Any:
        """Replaces the selected nodes by key path.

        Args:
          replacer: A mapping that has exactly the key paths of the selected nodes, or a function of
            a key path.

        Returns:
          The changed tree.

        Raises:
          MissingReplacementError: If the mapping lacks a key path, or has one that is not selected.
        """
        paths = self.get_keypaths()
        if not isinstance(replacer, Mapping):
            return self._with_values([replacer(path) for path in paths], keep_selected=False)
        missing = [path for path in paths if path not in replacer]
        surplus = replacer.keys() - set(paths)
        if missing or surplus:
            problem = (
                f"has no replacement for {path_text(missing[0])}"
                if missing
                else f"has a replacement for {path_text(surplus.pop())}, which is not selected"
            )
            raise MissingReplacementError(
                f"set_by_path: the mapping {problem}. Give exactly one replacement for each of: "
                f"{', '.join(map(path_text, paths[:5]))}{', ...' if len(paths) > 5 else ''}."
            )
        return self._with_values([replacer[path] for path in paths], keep_selected=False)

    def set_sequence(self, replacements: Iterable[Any]) -> Any:
        """Replaces the selected nodes by as many others, in order.

        Args:
          replacements: An iterable with one replacement for each selected node.

        Returns:
          The changed tree.

        Raises:
          MissingReplacementError: If there are fewer or more.
        """
        wanted = len(self)
        values = []
        for value in replacements:  # an endless iterable is an error, not an endless loop
            values.append(value)
            if len(values) > wanted:
                break
        if len(values) != wanted:
            received = "more" if len(values) > wanted else str(len(values))
            paths = self.get_keypaths()
            missing = (
                f"; the first without one is {path_text(paths[len(values)])}"
                if (len(values) < wanted)
                else ""
            )
            raise MissingReplacementError(
                f"set_sequence: {wanted} nodes are selected, but there are {received} "
                f"replacements{missing}. Give exactly one for each selected node; cut an endless "
                f"iterable with `itertools.islice`."
            )
        return self._with_values(values, keep_selected=False)

    def select_and_set_by_path(self, replacements_by_path: Mapping[KeyPath, Any]) -> Any:
        """Sets nodes within each selected node by their key path from there.

        The idiom for gradients with respect to chosen parts:

            by_path = select(model).at_instances_of(Parameter).get_by_path()
            jax.grad(lambda values: loss(select(model).select_and_set_by_path(values)))(by_path)

        Args:
          replacements_by_path: New nodes by relative key path. Paths that lead nowhere are ignored;
            one below another is ignored too.

        Returns:
          The changed tree.
        """
        edits = []
        for start in self._places:
            paths = KeyPaths(start)
            for place in find_keypaths(start, replacements_by_path):
                edits.append((place, replacements_by_path[paths.of(place)]))
        return _places.edited(self._root, edits)

    def apply_and_inline(
        self, fn: Callable[..., Iterable[Any]], *, with_keypath: bool = False
    ) -> Any:
        """Replaces each selected node by any number of items of the list or tuple it is in.

        Args:
          fn: Takes a node, or a key path and a node, and returns an iterable.
          with_keypath: Whether `fn` takes a key path (that of the original tree) too.

        Returns:
          The changed tree.

        Raises:
          ValueError: If a selected node is no item of a list or tuple.
          TypeError: If `fn` returns no iterable.
        """
        check_in_sequences(
            "apply_and_inline", self._places, "Select items of lists or tuples only."
        )
        values = self.get_sequence()
        if with_keypath:
            new = [fn(path, x) for path, x in zip(self.get_keypaths(), values, strict=True)]
        else:
            new = [fn(x) for x in values]
        edits = [(p, _nodes.Splice(x)) for p, x in zip(self._places, new, strict=True)]
        return _places.edited(self._root, edits)

    def remove_from_parent(self) -> Any:
        """Removes each selected node from the list or tuple it is in; returns the tree."""
        check_in_sequences(
            "remove_from_parent", self._places, "Select items of lists or tuples only."
        )
        return _places.edited(self._root, [(place, _nodes.Splice()) for place in self._places])

    def insert_before(
        self,
        value: Any,
        and_select: bool = False,
        *,
        group: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """Inserts an object before each selected node.

        Args:
          value: What to insert; the same object each time.
          and_select: Whether to return a selection of the inserted objects.
          group: Used where a selected node is not an item of a list or tuple: a function of a list
            of nodes, such as a layer class that applies them in sequence. What it returns takes the
            place of the node.

        Returns:
          The changed tree, or a selection in it.

        Raises:
          ValueError: If a node is no item of a list or tuple and `group` is not given.
        """
        return self._insert("insert_before", value, and_select, group, offset=0)

    def insert_after(
        self,
        value: Any,
        and_select: bool = False,
        *,
        group: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """Inserts an object after each selected node; see `insert_before`."""
        return self._insert("insert_after", value, and_select, group, offset=1)

    def _insert(
        self,
        method: str,
        value: Any,
        and_select: bool,
        group: Callable[[list[Any]], Any] | None,
        offset: int,
    ) -> Any:
        if group is None:
            repair = "Pass group=..., a function of a list of nodes that makes one node of them."
            check_in_sequences(method, self._places, repair)
        tree, groups = inserted(self._root, self._places, value, group, offset)
        if not and_select:
            return tree
        places = inserted_places(tree, self._places, groups, value, offset)
        return _lazy_selection(_places.root_place(tree), places, self._next_step(f"{method}(...)"))

    # Refinement.

    def at(self, accessor_fn: Callable[[T], Any], multiple: bool | None = None) -> Selection[Any]:
        """Selects what a function of each selected node returns.

        Args:
          accessor_fn: Takes a copy of the node in which leaves and childless nodes are placeholders,
            and returns a node of it; for example `lambda model: model.body.sublayers[0]`. It may be
            called more than once. Nodes are recognised by `isinstance`: structs of the copy may be
            instances of a subclass.
          multiple: Whether it returns an iterable of nodes.

        Returns:
          The new selection.

        Raises:
          ValueError: If what is returned is no node, or one node and another inside it.
        """
        found: list[Place] = []
        took_many = False
        for start in self._places:
            try:
                places, many = _accessor.accessed_places(start, accessor_fn, multiple)
            except _accessor.AccessError as error:
                raise ValueError(
                    f"at({_call_text(accessor_fn)}), at {where(start)}: {error}. "
                    f"Return a node of the argument, such as `lambda x: x.field[0]`"
                    + ("." if multiple else "; for several nodes pass multiple=True.")
                ) from error
            took_many |= many
            found += places
        if took_many:
            warnings.warn(
                "at: the accessor returned a collection of nodes; pass multiple=True to say so.",
                UserWarning,
                stacklevel=2,
            )
        found = without_nested("at", found, "error")
        return self._refined(found, f"at({_call_text(accessor_fn)})")

    def at_pytree_leaves(self) -> Selection[Any]:
        """Selects the leaves, as JAX sees them."""
        return self._find(_places.find_leaves, "at_pytree_leaves()")

    def at_children(self) -> Selection[Any]:
        """Selects the direct children; nodes without children vanish from the selection."""
        return self._find(
            lambda start: [
                (start, index, child)
                for index, child in enumerate(_nodes.children_of(start[2]) or ())
            ],
            "at_children()",
        )

    def at_childless(self) -> Selection[Any]:
        """Selects leaves and nodes without children, such as `None` and `[]`."""
        return self._find(_places.find_childless, "at_childless()")

    def where(self, filter_fn: Callable[..., Any], *, with_keypath: bool = False) -> Selection[T]:
        """Keeps the selected nodes for which a predicate is true.

        Args:
          filter_fn: Takes a node, or a key path (from the root of the tree) and a node.
          with_keypath: Whether it takes a key path too.

        Returns:
          The new selection.
        """
        paths = KeyPaths()

        def keep(place: Place) -> bool:
            arguments = (paths.of(place), place[2]) if with_keypath else (place[2],)
            try:
                return bool(filter_fn(*arguments))
            except Exception as exc:
                exc.add_note(f"raised by the predicate of `where` at {where(place)}")
                raise

        kept = [place for place in self._places if keep(place)]
        return self._refined(kept, f"where({_call_text(filter_fn)})")

    def at_subtrees_where(
        self,
        filter_fn: Callable[..., bool],
        *,
        with_keypath: bool = False,
        absolute_keypath: bool = False,
        innermost: bool = False,
    ) -> Selection[Any]:
        """Selects the outermost (or innermost) subtrees for which a predicate is true.

        Args:
          filter_fn: Takes a node, or a key path and a node, and returns a `bool`. It is called once
            for each node that is visited, in pre-order.
          with_keypath: Whether it takes a key path too.
          absolute_keypath: Whether that path starts at the root of the tree; by default it starts
            at the selected node.
          innermost: Whether to select the matching nodes that have none inside them.

        Returns:
          The new selection.

        Raises:
          SelectionPredicateError: If the predicate returns anything but a `bool`.
        """
        find = _places.find_innermost if innermost else _places.find_outermost

        def find_below(start: Place) -> list[Place]:
            paths = KeyPaths(None if absolute_keypath else start)

            def test(place: Place) -> bool:
                try:
                    result = (
                        filter_fn(paths.of(place), place[2])
                        if with_keypath
                        else filter_fn(place[2])
                    )
                except Exception as exc:
                    exc.add_note(f"raised by the predicate of a selection at {where(place)}")
                    raise
                if result is True or result is False:
                    return result
                raise SelectionPredicateError(
                    f"at_subtrees_where({_call_text(filter_fn)}): the predicate must return True "
                    f"or False, at {where(place)} it returned {one_line(result)} (a "
                    f"{describe_type(result)}). Wrap its result in `bool(...)`."
                )

            return find(start, test)

        return self._find(find_below, f"at_subtrees_where({_call_text(filter_fn)})")

    def at_instances_of(self, cls: Any, innermost: bool = False) -> Selection[Any]:
        """Selects the outermost (or innermost) instances of a class.

        Args:
          cls: A class, a tuple of classes, or a union `A | B`.
          innermost: Whether to select the instances that have none inside them.

        Returns:
          The new selection.
        """
        near = _selection_text.near_types(cls)
        call = f"at_instances_of({getattr(cls, '__qualname__', cls)})"
        if innermost:
            return self._find(
                lambda start: _places.find_innermost(start, lambda p: isinstance(p[2], cls)),
                call,
                near,
            )
        return self._find(lambda start: _places.find_instances(start, cls), call, near)

    def at_equal_to(self, template: Any) -> Selection[Any]:
        """Selects the outermost nodes that equal an object, by `==`.

        Arrays, and nodes whose comparison is ambiguous since they hold arrays, never match.

        Args:
          template: The object; no array.

        Returns:
          The new selection.

        Raises:
          ValueError: If the template is an array.
        """
        if _is_array(template):
            raise ValueError(
                f"at_equal_to: the template must not be an array, got {one_line(template)}. Use "
                f"at_subtrees_where with a predicate that reduces the comparison to a bool."
            )

        def equals(place: Place) -> bool:
            if _is_array(place[2]):
                return False
            try:
                return bool(place[2] == template)
            except (ValueError, TypeError):  # the truth of a comparison of arrays is ambiguous
                return False

        return self._find(
            lambda start: _places.find_outermost(start, equals),
            f"at_equal_to({one_line(template)})",
        )

    def at_keypaths(self, keypaths: Iterable[KeyPath]) -> Selection[Any]:
        """Selects nodes by their key path from each selected node.

        Args:
          keypaths: Key paths. Those that lead nowhere are ignored, and those below another.

        Returns:
          The new selection.
        """
        wanted = [tuple(path) for path in keypaths]
        near = _selection_text.near_keypaths(path_text(wanted[0])) if wanted else None
        return self._find(
            lambda start: find_keypaths(start, wanted), f"at_keypaths({len(wanted)} paths)", near
        )

    def at_path_pattern(self, pattern: str) -> Selection[Any]:
        """Selects the outermost nodes whose key path from each selected node matches a pattern.

        A pattern is a row of steps; the first may lack its dot:

        * `.name`: an attribute; `*` and `?` in it match any characters, any one character
        * `[3]`, `[-1]`, `[1:4]`: items of a sequence, or an integer key
        * `["name"]`: a dictionary key; `*` and `?` as above
        * `[*]`: any item of any container
        * `**`: any number of steps of any kind, also none

        Args:
          pattern: For example `body.sublayers[*].**.query`.

        Returns:
          The new selection.

        Raises:
          PathPatternError: If the pattern does not follow the grammar.
        """
        parsed = PathPattern.parse(pattern)
        return self._find(
            parsed.find,
            f"at_path_pattern({pattern!r})",
            _selection_text.near_keypaths(pattern if pattern.startswith("[") else f".{pattern}"),
        )

    def at_label_pattern(self, pattern: str | re.Pattern[str]) -> Selection[Any]:
        """Selects variables, frozen values and slots by their label.

        Args:
          pattern: A pattern for the whole label in which `*` and `?` match any characters, any one
            character; or a compiled regular expression, which is searched for in the label.

        Returns:
          The new selection.
        """
        if isinstance(pattern, str):
            matcher = compile_wildcards(pattern)
            text = pattern
        else:
            matcher, text = pattern, pattern.pattern

        def matches(place: Place) -> bool:
            node = place[2]
            return (
                isinstance(node, _VARIABLE_KINDS)
                and hasattr(node, "label")
                and matcher.search(str(node.label)) is not None
            )

        return self._find(
            lambda start: _places.find_outermost(start, matches),
            f"at_label_pattern({text!r})",
            _selection_text.near_labels(text),
        )

    def at_parents(self, *, nested: Nested = "error") -> Selection[Any]:
        """Selects the nodes that the selected nodes are children of; a selected root has none.

        Args:
          nested: What to do when one parent lies inside another: "error", or keep the "outermost"
            or "innermost" ones.

        Returns:
          The new selection; one parent of several selected nodes is selected once.

        Raises:
          ValueError: If parents lie inside each other and `nested` is "error".
        """
        parents = [place[0] for place in self._places if place[0] is not None]
        return self._refined(without_nested("at_parents", parents, nested), "at_parents()")

    def at_ancestors_where(
        self, filter_fn: Callable[[Any], Any], *, nested: Nested = "error"
    ) -> Selection[Any]:
        """Selects, for each selected node, the nearest node around it that passes a predicate.

        Args:
          filter_fn: A predicate of a node; it sees only nodes around selected ones.
          nested: As for `at_parents`.

        Returns:
          The new selection. Nodes without such an ancestor vanish.

        Raises:
          ValueError: If ancestors lie inside each other and `nested` is "error".
        """
        found = []
        for place in self._places:
            found += [next((p for p in _places.ancestors(place) if filter_fn(p[2])), None)]
        present = [place for place in found if place is not None]
        return self._refined(
            without_nested("at_ancestors_where", present, nested),
            f"at_ancestors_where({_call_text(filter_fn)})",
        )

    def pick_nth_selected(self, n: int | slice | Sequence[int] | Any) -> Selection[T]:
        """Keeps some of the selected nodes by their number.

        Args:
          n: A number (negative: from the end), a slice, or a sequence or NumPy array of numbers,
            whose order and repetitions do not matter.

        Returns:
          The new selection.

        Raises:
          IndexError: If a number is out of range.
          TypeError: If a number is no integer.
        """
        count = len(self._places)
        if isinstance(n, slice):
            numbers = list(range(*n.indices(count)))
        else:
            is_one = not isinstance(n, Collection) or np.ndim(cast(Any, n)) == 0
            numbers = [operator.index(i) for i in cast(Any, [n] if is_one else n)]
        wrong = [i for i in numbers if not -count <= i < count]
        if wrong:
            raise IndexError(
                f"pick_nth_selected: number {wrong[0]} is out of range, since {count} nodes are "
                f"selected by {_selection_text.chain_text(self._root, self._step)}. Numbers go from {-count} to {count - 1}; use a "
                f"slice to take as many as there are."
            )
        places = [self._places[i] for i in sorted({i % count for i in numbers})] if count else []
        return self._refined(places, f"pick_nth_selected({n})")

    def invert(self) -> Selection[Any]:
        """Selects the largest subtrees that contain no selected node."""
        return self._refined(_places.complement(self._root, self._places), "invert()")

    def refine(self, selector_fn: Callable[[T], Selection[Any]]) -> Selection[Any]:
        """Selects, in each selected node, what a function of it selects.

        Args:
          selector_fn: Takes a node and returns a selection, of the node or of a changed one.

        Returns:
          One selection in the whole tree.

        Raises:
          ValueError: If the function returns no selection.
        """
        selections: Selection[Any] = self.apply(selector_fn, keep_selected=True)
        return selections.flatten_selected_selections()

    def flatten_selected_selections(self) -> Selection[Any]:
        """Makes one selection of a selection whose nodes are all selections.

        Raises:
          ValueError: If one of them is not.
        """
        for place in self._places:
            if not isinstance(place[2], Selection):
                raise ValueError(
                    f"flatten_selected_selections, refine: every selected node must be a "
                    f"Selection, at {where(place)} there is a {describe_type(place[2])}. Return "
                    f"a selection, such as `select(node)`, from the function given to `refine`."
                )
        edits = [(place, place[2].deselect()) for place in self._places]
        root = _places.root_place(_places.edited(self._root, edits))
        bases = _places.grafted(root, self._places)
        found = [
            inside
            for base, place in zip(bases, self._places, strict=True)
            for inside in _places.grafted(base, place[2]._places)
        ]
        return _lazy_selection(root, found, self._next_step("refine(...)"))

    def partition(self, at_leaves: bool = False) -> tuple[Any, Any]:
        """Splits the tree into the selected parts and the rest.

        Args:
          at_leaves: Whether only leaves are replaced by the sentinel, so that both trees keep all
            containers; by default the largest possible subtrees are.

        Returns:
          Two trees with `NotInThisPartition` in place of what the other one has;
          `pz_core.combine` merges them.
        """
        selected, rest = self, self.invert()
        if at_leaves:
            selected, rest = selected.at_pytree_leaves(), rest.at_pytree_leaves()
        return rest.set(NotInThisPartition()), selected.set(NotInThisPartition())

    # Set algebra.

    def _compared(self, symbol: str, other: Any) -> tuple[dict[Any, Place], dict[Any, Place]]:
        if not isinstance(other, Selection):
            raise TypeError(
                f"selection {symbol} other: both must be selections, got a {describe_type(other)}. "
                f"Select first: `select(tree)`."
            )
        check_same_tree(symbol, self._root[2], other._root[2])
        return comparable(symbol, self._places, other._places)

    def __or__(self, other: Selection[Any]) -> Selection[Any]:
        """Selects what either selection of one tree selects."""
        ours, theirs = self._compared("|", other)
        both = {**ours, **theirs}
        return self._refined([both[path] for path in sorted(both)], "union(...)")

    def __and__(self, other: Selection[Any]) -> Selection[Any]:
        """Selects what both selections of one tree select."""
        ours, theirs = self._compared("&", other)
        kept = [place for path, place in ours.items() if path in theirs]
        return self._refined(kept, "intersection(...)")

    def __sub__(self, other: Selection[Any]) -> Selection[Any]:
        """Selects what this selection, but not the other one of the same tree, selects."""
        ours, theirs = self._compared("-", other)
        kept = [place for path, place in ours.items() if path not in theirs]
        return self._refined(kept, "difference(...)")

    # Display.

    def show_selection(self, ignore_exceptions: bool = False) -> None:
        """Displays the tree with boxes around the selected nodes; needs a front end (`pz-viz`)."""
        selection_display().show_selection(self, ignore_exceptions=ignore_exceptions)

    def show_value(self, ignore_exceptions: bool = False) -> None:
        """Displays the tree, opened down to the selected nodes; needs a front end (`pz-viz`)."""
        selection_display().show_value(self, ignore_exceptions=ignore_exceptions)


_VARIABLE_KINDS = (AbstractVariable, AbstractVariableValue, AbstractVariableSlot)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) or hasattr(value, "named_shape")


def _by_path(places: Sequence[Place]) -> OrderedDict[KeyPath, Any]:
    paths = KeyPaths()
    result: OrderedDict[KeyPath, Any] = OrderedDict()
    for place in places:
        path = paths.of(place)
        if path in result:
            raise ValueError(
                f"Two selected nodes have the key path {path_text(path)}. The keys of one node must "
                f"differ: let `key_for_field` of {describe_type(place[0][2])} return another key "
                f"for each field."
            )
        result[path] = place[2]
    return result


def _with_holes(root: Place, places: Sequence[Place]) -> Any:
    """Returns a selection's remainder."""
    paths = KeyPaths()
    edits: list[tuple[Place, Any]] = [(place, SelectionHole(paths.of(place))) for place in places]
    for rest in _places.complement(root, places):
        for place in _places.find_instances(rest, (SelectionHole, SelectionQuote)):
            edits.append((place, SelectionQuote(place[2])))
    return _places.edited(root, edits)


def _filled(
    selected_by_path: Mapping[KeyPath, Any], remainder: Any
) -> tuple[Place, tuple[Place, ...]]:
    """Returns the root of the tree that the fields of a selection describe, and the places."""
    edits: list[tuple[Place, Any]] = []
    holes: list[Place] = []
    root = _places.root_place(remainder)
    for place in _places.find_instances(root, (SelectionHole, SelectionQuote)):
        if isinstance(place[2], SelectionQuote):
            edits.append((place, place[2].quoted))
        elif place[2].path in selected_by_path:
            edits.append((place, selected_by_path[place[2].path]))
            holes.append(place)
        else:
            raise ValueError(
                f"deselect: the remainder has a hole for {path_text(place[2].path)}, but "
                f"selected_by_path has only {', '.join(map(path_text, selected_by_path))}. Add "
                f"the missing node, or wrap a hole that belongs to the tree in a SelectionQuote."
            )
    new_root = _places.root_place(_places.edited(root, edits))
    return new_root, tuple(_places.grafted(new_root, holes))
