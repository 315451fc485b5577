"""What changed from one tree to another, as an account that prints and that can be applied again.

>>> before = {"blocks": [1.0, 2.0, 3.0], "name": "net"}
>>> after = {"blocks": [1.0, 3.0], "name": "big net"}
>>> changes = diff(before, after)
>>> print(changes)
2 changes:
  ['blocks'][1]: removed 2.0
  ['name']: 'net' replaced by 'big net'

`pz_core.tree_patch.patch` applies a diff to a tree.

Items of lists and tuples are aligned, so that a removed or inserted block is one change. Variables
are leaves: they are compared by type, label, metadata and value, and a patched tree shares
them among its parts exactly as the second tree does. A diff holds no variable, only
frozen values.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax

from pz_core._leaf_comparison import equal_leaves, fingerprint, is_array, max_abs_difference
from pz_core._nodes import children_of, keys_of, same_level
from pz_core._selection_text import path_text
from pz_core._struct_codegen import node_functions
from pz_core._text import describe_type, one_line
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue

__all__ = [
    "Added",
    "ArrayChanged",
    "Change",
    "Removed",
    "Replaced",
    "StaticChanged",
    "TreeDiff",
    "VariableChanged",
    "VariableToken",
    "array_text",
    "diff",
]

KeyPath: TypeAlias = tuple[Any, ...]


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
        before = array_text(self.before_dtype, self.before_shape)
        after = array_text(str(self.after.dtype), self.after.shape)
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


def array_text(dtype: str, shape: Sequence[int]) -> str:
    """Returns an array's type and shape as text, such as `float32[2,3]`."""
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
