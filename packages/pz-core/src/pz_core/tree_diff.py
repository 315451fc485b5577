"""What changed from one tree to another, as an account that prints and that can be applied again.

>>> before = {"blocks": [1.0, 2.0, 3.0], "name": "net"}
>>> after = {"blocks": [1.0, 3.0], "name": "big net"}
>>> changes = diff(before, after)
>>> print(changes)
2 changes:
  ['blocks'][1]: removed 2.0
  ['name']: 'net' replaced by 'big net'
>>> patch(before, changes) == after
True

Items of lists and tuples are aligned, so that a removed or inserted block is one change. Variables
are leaves: they are compared by type, label, metadata and value, and a patched tree shares
them among its parts exactly as the second tree does. A diff holds no variable, only
frozen values; `patch` makes new variables of them.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax

from pz_core._leaf_comparison import equal_leaves, fingerprint, is_array, max_abs_difference
from pz_core._nodes import children_of, keys_of, same_level, with_changes
from pz_core._places import Place, root_place
from pz_core._selection_text import path_text
from pz_core._struct_codegen import node_functions
from pz_core._text import describe_type, one_line
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue

__all__ = [
    "Added",
    "ArrayChanged",
    "Change",
    "PatchError",
    "Removed",
    "Replaced",
    "StaticChanged",
    "TreeDiff",
    "VariableChanged",
    "diff",
    "patch",
]

KeyPath: TypeAlias = tuple[Any, ...]


class PatchError(ValueError):
    """A diff does not fit the tree that it is applied to.

        patch(other_model, diff(model, edited_model))  # error: other_model has no third block

    Repair: apply it to a tree that has the structure of the diff's first tree along the changed
    paths.
    """


@dataclasses.dataclass(frozen=True)
class VariableToken:
    """Stands for a variable in the nodes that a diff holds.

    Attributes:
      number: Its number in `TreeDiff.variables`.
      text: The variable's type and label.
    """

    number: int
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Change(abc.ABC):
    """One change.

    Attributes:
      path: Key path in the first tree.
    """

    path: KeyPath

    @abc.abstractmethod
    def describe(self) -> str:
        """Returns one line of text."""


@dataclasses.dataclass(frozen=True)
class Added(Change):
    """An item that only the second tree has.

    Attributes:
      path: Key path, in the first tree, of the list, tuple or dictionary.
      key: The item's index or dictionary key in the second tree.
      node: The item.
    """

    key: Any
    node: Any

    def describe(self) -> str:
        """Returns one line of text."""
        return f"{path_text(self.path)}: added {one_line(self.node)} as [{self.key!r}]"


@dataclasses.dataclass(frozen=True)
class Removed(Change):
    """An item that only the first tree has.

    Attributes:
      node_text: What it was.
    """

    node_text: str

    def describe(self) -> str:
        """Returns one line of text."""
        return f"{path_text(self.path)}: removed {self.node_text}"


@dataclasses.dataclass(frozen=True)
class Replaced(Change):
    """A node in place of another one.

    Attributes:
      before_type: Qualified name of the type that the first tree has there.
      before_text: What it has there.
      after: What the second tree has there.
    """

    before_type: str
    before_text: str
    after: Any

    def describe(self) -> str:
        """Returns one line of text."""
        return f"{path_text(self.path)}: {self.before_text} replaced by {one_line(self.after)}"


@dataclasses.dataclass(frozen=True)
class StaticChanged(Change):
    """Another value of a static field.

    Attributes:
      path: Key path of the struct.
      field: The field's name.
      before: Its value in the first tree.
      after: Its value in the second tree.
    """

    field: str
    before: Any
    after: Any

    def describe(self) -> str:
        """Returns one line of text."""
        return (
            f"{path_text(self.path)}: static field {self.field!r} changed from "
            f"{one_line(self.before)} to {one_line(self.after)}"
        )


@dataclasses.dataclass(frozen=True)
class ArrayChanged(Change):
    """An array in place of another one.

    Attributes:
      before_shape: Shape in the first tree.
      before_dtype: Its type there, as text.
      after: The array of the second tree.
      max_abs_difference: Largest absolute difference; None if the shapes differ, or there are no
        numbers to compare.
    """

    before_shape: tuple[int, ...]
    before_dtype: str
    after: Any
    max_abs_difference: float | None

    def describe(self) -> str:
        """Returns one line of text."""
        before = _array_text(self.before_dtype, self.before_shape)
        after = _array_text(str(self.after.dtype), self.after.shape)
        text = f"{before} changed" if before == after else f"{before} became {after}"
        if self.max_abs_difference is not None:
            text += f", largest absolute difference {self.max_abs_difference:.4g}"
        return f"{path_text(self.path)}: {text}"


@dataclasses.dataclass(frozen=True)
class VariableChanged(Change):
    """A variable of the same type and label with another value or metadata.

    Attributes:
      after: Stands for the new variable.
      changes: How the frozen value changed.
    """

    after: Any
    changes: tuple[Change, ...]

    def describe(self) -> str:
        """Returns one line of text."""
        inside = "; ".join(change.describe() for change in self.changes)
        return f"{path_text(self.path)}: {self.after!r} changed: {inside}"


@dataclasses.dataclass(frozen=True)
class TreeDiff:
    """The changes from one tree to another.

    Attributes:
      changes: The changes, in flatten order of the first tree.
      variables: What each `VariableToken` stands for: the frozen value of a new variable, or the key
        path of one of the first tree's.
    """

    changes: tuple[Change, ...]
    variables: tuple[AbstractVariableValue | KeyPath, ...] = ()

    def is_empty(self) -> bool:
        """Whether the trees are the same."""
        return not self.changes

    def __len__(self) -> int:
        return len(self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "no changes"
        title = "1 change:" if len(self.changes) == 1 else f"{len(self.changes)} changes:"
        return "\n".join([title, *(f"  {change.describe()}" for change in self.changes)])


def _array_text(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


class _Variables:
    """Which variable of the first tree stands for which of the second, one to one."""

    def __init__(self, before: Any, after: Any) -> None:
        self._paths: dict[int, KeyPath] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(before):
            if isinstance(leaf, AbstractVariable):
                self._paths.setdefault(id(leaf), path)
        # A variable that both trees hold is its own partner, wherever it stands in them.
        self._partner: dict[int, AbstractVariable] = {
            id(leaf): leaf for leaf in jax.tree.leaves(after) if id(leaf) in self._paths
        }
        self._partner_of = dict(self._partner)
        self._numbers: dict[int, int] = {}
        self._alive: list[AbstractVariable] = []
        self.table: list[AbstractVariableValue | KeyPath] = []

    def pair(self, before: AbstractVariable, after: AbstractVariable) -> bool:
        """Notes that two variables are one, unless either has another partner."""
        if id(before) not in self._partner and id(after) not in self._partner_of:
            self._partner[id(before)], self._partner_of[id(after)] = after, before
        return self._partner.get(id(before)) is after

    def token(self, variable: AbstractVariable) -> VariableToken:
        """Returns what stands for a variable of the second tree."""
        number = self._numbers.get(id(variable))
        if number is None:
            number = self._numbers[id(variable)] = len(self.table)
            self._alive.append(variable)
            partner = self._partner_of.get(id(variable))
            is_same = partner is not None and equal_leaves(partner, variable)
            self.table.append(self._paths[id(partner)] if is_same else variable.freeze())
        return VariableToken(number, _variable_text(variable))

    def without_variables(self, node: Any) -> Any:
        """Returns a node of the second tree with tokens in place of its variables."""
        return jax.tree.map(
            lambda leaf: self.token(leaf) if isinstance(leaf, AbstractVariable) else leaf, node
        )


def _variable_text(variable: AbstractVariable) -> str:
    label = getattr(variable, "label", None)
    return f"{type(variable).__name__}({'' if label is None else f'label={label!r}'})"


def diff(tree_a: Any, tree_b: Any) -> TreeDiff:
    """Compares two trees.

    Args:
      tree_a: The tree before.
      tree_b: The tree after.

    Returns:
      The changes that lead from the first to the second. Arrays of the second tree are held by
      reference, variables as frozen values.
    """
    variables = _Variables(tree_a, tree_b)
    compared = _compare(tree_a, tree_b, variables)
    # Nodes get their tokens last, when it is known which variables the trees have in common.
    changes = tuple(_with_tokens(change, variables) for change in compared)
    return TreeDiff(changes, tuple(variables.table))


def _with_tokens(change: Change, variables: _Variables) -> Change:
    if isinstance(change, Added):
        return dataclasses.replace(change, node=variables.without_variables(change.node))
    if isinstance(change, Replaced | VariableChanged):
        return dataclasses.replace(change, after=variables.without_variables(change.after))
    return change


def _compare(tree_a: Any, tree_b: Any, variables: _Variables) -> list[Change]:
    """Compares in pre-order; what is added or replaced still holds its variables."""
    changes: list[Change] = []
    stack: list[Any] = [((), tree_a, tree_b)]
    while stack:
        entry = stack.pop()
        if isinstance(entry, Change):
            changes.append(entry)
            continue
        path, a, b = entry
        if a is b:
            continue
        if _is_opaque(a) or _is_opaque(b):
            changes += _compare_leaves(path, a, b, variables)
        elif type(a) is type(b) and type(a) in (list, tuple):
            stack += reversed(_compare_sequences(path, a, b))
        elif type(a) is type(b) is dict:
            stack += reversed(_compare_dicts(path, a, b))
        elif type(a) is type(b) and type(a) in node_functions:
            stack += reversed(_compare_structs(path, a, b))
        elif same_level(a, b):
            stack += reversed(_child_entries(path, a, b))
        else:
            changes.append(_replaced(path, a, b))
    return changes


def _is_opaque(node: Any) -> bool:
    return children_of(node) is None


def _replaced(path: KeyPath, a: Any, b: Any) -> Replaced:
    return Replaced(path, describe_type(a), one_line(a), b)


def _compare_leaves(path: KeyPath, a: Any, b: Any, variables: _Variables) -> list[Change]:
    if isinstance(a, AbstractVariable) and isinstance(b, AbstractVariable):
        if type(a) is type(b) and a.get_slot() == b.get_slot() and variables.pair(a, b):
            if equal_leaves(a, b):
                return []
            inside = _compare(a.freeze(), b.freeze(), variables)
            return [VariableChanged(path, b, tuple(inside))]
        return [_replaced(path, a, b)]
    if equal_leaves(a, b):
        return []
    if is_array(a) and is_array(b) and isinstance(a, jax.Array) == isinstance(b, jax.Array):
        return [ArrayChanged(path, a.shape, str(a.dtype), b, max_abs_difference(a, b))]
    return [_replaced(path, a, b)]


def _child_entries(path: KeyPath, a: Any, b: Any) -> list[Any]:
    """Returns what is still to compare of two nodes with the same keys."""
    children_a, children_b = children_of(a) or (), children_of(b) or ()
    return [
        ((*path, key), x, y)
        for key, x, y in zip(keys_of(a), children_a, children_b, strict=True)
        if x is not y
    ]


def _compare_structs(path: KeyPath, a: Any, b: Any) -> list[Any]:
    functions = node_functions[type(a)]
    statics = zip(functions.static_names, functions.static(a), functions.static(b), strict=True)
    changed: list[Any] = [
        StaticChanged(path, name, x, y) for name, x, y in statics if not equal_leaves(x, y)
    ]
    return changed + _child_entries(path, a, b)


def _compare_dicts(path: KeyPath, a: dict[Any, Any], b: dict[Any, Any]) -> list[Any]:
    entries: list[Any] = []
    for key, child in zip(keys_of(a), children_of(a) or (), strict=True):
        if key.key in b:
            entries.append(((*path, key), child, b[key.key]))
        else:
            entries.append(Removed((*path, key), one_line(child)))
    return entries + [Added(path, key, node) for key, node in b.items() if key not in a]


def _compare_sequences(path: KeyPath, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Aligns two sequences: equal items first, then those between them one by one."""
    entries: list[Any] = []
    for tag, a_start, a_end, b_start, b_end in _opcodes(a, b):
        keys = [jax.tree_util.SequenceKey(i) for i in range(a_start, a_end)]
        old, new = a[a_start:a_end], b[b_start:b_end]
        if tag != "equal" and len(old) != len(new):
            # Nothing says which items belong together, so only types that agree are paired.
            pairs = _pairs_by_type(old, new)
        else:
            pairs = list(zip(range(len(old)), range(len(new)), strict=True))
        partner = dict(pairs)
        entries += [
            ((*path, key), old[i], new[partner[i]])
            if i in partner
            else Removed((*path, key), one_line(old[i]))
            for i, key in enumerate(keys)
        ]
        taken = set(partner.values())
        entries += [Added(path, b_start + j, node) for j, node in enumerate(new) if j not in taken]
    return entries


def _opcodes(a: Sequence[Any], b: Sequence[Any]) -> Sequence[tuple[str, int, int, int, int]]:
    """Returns what `difflib` finds between the identical items at both ends."""
    start, end = 0, min(len(a), len(b))
    while start < end and a[start] is b[start]:
        start += 1
    tail = 0
    while tail < end - start and a[-1 - tail] is b[-1 - tail]:
        tail += 1
    middle_a, middle_b = (
        [fingerprint(x) for x in items[start : len(items) - tail]] for items in (a, b)
    )
    matcher = difflib.SequenceMatcher(None, middle_a, middle_b, autojunk=False)
    return [
        (tag, a0 + start, a1 + start, b0 + start, b1 + start)
        for tag, a0, a1, b0, b1 in matcher.get_opcodes()
    ]


def _pairs_by_type(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[int, int]]:
    matcher = difflib.SequenceMatcher(
        None, [_shape_key(x) for x in old], [_shape_key(x) for x in new], autojunk=False
    )
    return [
        (block.a + i, block.b + i)
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]


def _shape_key(node: Any) -> Any:
    return type(node), jax.tree_util.tree_structure(node) if not _is_opaque(node) else None


def patch(tree: Any, diff: TreeDiff) -> Any:
    """Applies a diff to a tree.

    Args:
      tree: A tree that has the structure of the diff's first tree along the changed paths.
      diff: The changes.

    Returns:
      The changed tree; applied to its first tree, a diff gives the second one. What did not change
      is shared with `tree`; new variables are copies.

    Raises:
      PatchError: If a path is not in the tree, or leads to something else than the diff says.
    """
    return _Patcher(tree, diff).run()


@dataclasses.dataclass
class _ContainerEdits:
    """What happens to one node of the tree.

    Attributes:
      place: Where it is.
      children: New children by index.
      removed: Indices of children to remove.
      added: New items by index or key in the result.
      static: New values of static fields.
    """

    place: Place
    children: dict[int, Any] = dataclasses.field(default_factory=dict)
    removed: set[int] = dataclasses.field(default_factory=set)
    added: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    static: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Patcher:
    """Applies the changes of one diff, deepest nodes first."""

    def __init__(self, tree: Any, diff: TreeDiff) -> None:
        self._root = root_place(tree)
        self._changes = diff.changes
        self._steps: dict[int, dict[Any, Place]] = {}  # a place's id -> the places one step below
        self._edits: list[dict[int, _ContainerEdits]] = [{}]  # by depth, then by place's id
        self._variables = [
            entry.unfreeze_as_copy()
            if isinstance(entry, AbstractVariableValue)
            else self._existing_variable(entry)
            for entry in diff.variables
        ]

    def _existing_variable(self, path: KeyPath) -> AbstractVariable:
        variable = self._place(path)[2]
        if not isinstance(variable, AbstractVariable):
            raise PatchError(
                f"patch: at {path_text(path)} the diff expects a variable, the tree has a "
                f"{describe_type(variable)}. Apply the diff to a tree like its first one."
            )
        return variable

    def _place(self, path: KeyPath) -> Place:
        place = self._root
        for depth, key in enumerate(path):
            below = self._steps.get(id(place))
            if below is None:
                children = children_of(place[2])
                keys = keys_of(place[2]) if children else ()
                below = self._steps[id(place)] = {
                    k: (place, i, child)
                    for i, (k, child) in enumerate(zip(keys, children or (), strict=True))
                }
            if key not in below:
                raise PatchError(
                    f"patch: the tree has nothing at {path_text(path[: depth + 1])}; at "
                    f"{path_text(path[:depth])} it has a {describe_type(place[2])}. Apply the diff "
                    f"to a tree like its first one."
                )
            place = below[key]
        return place

    def _edits_of(self, place: Place, depth: int) -> _ContainerEdits:
        while len(self._edits) <= depth:
            self._edits.append({})
        return self._edits[depth].setdefault(id(place), _ContainerEdits(place))

    def _with_variables(self, node: Any) -> Any:
        return jax.tree.map(
            lambda leaf: self._variables[leaf.number] if isinstance(leaf, VariableToken) else leaf,
            node,
        )

    def run(self) -> Any:
        """Returns the changed tree."""
        for change in self._changes:
            place, depth = self._place(change.path), len(change.path)
            _check_fits(change, place[2])
            if isinstance(change, Added):
                node = self._with_variables(change.node)
                self._edits_of(place, depth).added.append((change.key, node))
            elif isinstance(change, StaticChanged):
                self._edits_of(place, depth).static[change.field] = change.after
            elif isinstance(change, Removed):
                self._edits_of(place[0], depth - 1).removed.add(place[1])
            elif isinstance(change, Replaced | ArrayChanged | VariableChanged):
                after = self._with_variables(change.after)
                if not depth:
                    return after
                self._edits_of(place[0], depth - 1).children[place[1]] = after
        return self._rebuilt()

    def _rebuilt(self) -> Any:
        for depth in range(len(self._edits) - 1, 0, -1):
            for edits in self._edits[depth].values():
                place = edits.place
                parent = self._edits_of(place[0], depth - 1)
                parent.children[place[1]] = _edited_container(place[2], edits)
        at_root = self._edits[0].get(id(self._root))
        return self._root[2] if at_root is None else _edited_container(self._root[2], at_root)


def _check_fits(change: Change, node: Any) -> None:
    """Requires that the tree has at a change's path what the diff says."""
    where = path_text(change.path)
    if isinstance(change, Replaced) and describe_type(node) != change.before_type:
        expected = f"a {change.before_type}"
    elif isinstance(change, ArrayChanged) and not (
        is_array(node)
        and node.shape == change.before_shape
        and str(node.dtype) == change.before_dtype
    ):
        expected = f"an array {_array_text(change.before_dtype, change.before_shape)}"
    elif isinstance(change, VariableChanged) and not isinstance(node, AbstractVariable):
        expected = f"a variable, {change.after!r}"
    elif isinstance(change, StaticChanged) and (
        type(node) not in node_functions
        or change.field not in node_functions[type(node)].static_names
    ):
        expected = f"a struct with the static field {change.field!r}"
    elif isinstance(change, Added) and type(node) not in (list, tuple, dict):
        expected = "a list, tuple or dictionary"
    else:
        return
    raise PatchError(
        f"patch: at {where} the diff expects {expected}, the tree has {one_line(node)} (a "
        f"{describe_type(node)}). Apply the diff to a tree like its first one."
    )


def _edited_container(node: Any, edits: _ContainerEdits) -> Any:
    if edits.children:
        node = with_changes(node, edits.children)
    if edits.static:
        functions = node_functions[type(node)]
        children, static = functions.flatten(node)
        named = dict(zip(functions.static_names, static, strict=True)) | edits.static
        node = functions.unflatten([named[name] for name in functions.static_names], children)
    if not edits.removed and not edits.added:
        return node
    if isinstance(node, dict):
        removed = {keys_of(node)[index].key for index in edits.removed}
        return {k: v for k, v in node.items() if k not in removed} | dict(edits.added)
    items = [item for index, item in enumerate(node) if index not in edits.removed]
    for index, item in sorted(edits.added, key=lambda pair: pair[0]):
        items.insert(index, item)
    return type(node)(items)
