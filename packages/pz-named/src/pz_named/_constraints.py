"""Solving for dimension variables: the engine of `shapecheck.check_structure`.

Each array gives up to two constraints, one for its positional and one for its named shape. A pass
tries every open constraint against the bindings so far; those with two or more unknown runs wait.
Passes repeat while they make progress, and the failures of a pass are reported together.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pz_named._layout import is_size
from pz_named.array_specs import dim_text, shape_text, variable_text
from pz_named.dimensions import DimVar, KnownDim, MultiDimVar

__all__ = ["Binding", "Constraint", "binding_from", "grouped", "solve"]


@dataclasses.dataclass(frozen=True)
class Binding:
    """A variable's value and where it came from.

    Attributes:
      value: An integer, a tuple of sizes (`*v`), or a dict of sizes by axis (`**v`).
      origin: The place, for messages.
    """

    value: Any
    origin: str


Bindings = dict[Any, Binding]


def binding_from(name: Any, value: Any, origin: str) -> Binding:
    """A binding given by a caller, with sizes as plain integers.

    Raises:
      TypeError: When the value is no size, sequence of sizes or mapping to sizes.
    """
    if isinstance(value, Mapping):
        return Binding({key: as_size(size) for key, size in value.items()}, origin)
    if isinstance(value, (tuple, list)):
        return Binding(tuple(as_size(size) for size in value), origin)
    try:
        return Binding(as_size(value), origin)
    except TypeError as exc:
        raise TypeError(
            f"known_vars[{name!r}] must be a size, a sequence of sizes or a mapping to sizes; it is "
            f"{value!r}."
        ) from exc


def as_size(size: Any) -> Any:
    """A size as a plain integer; symbolic dimensions stay."""
    if not is_size(size):
        raise TypeError(f"{size!r} is no size")
    return operator.index(size) if isinstance(size, np.integer) else size


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A shape that must match a pattern.

    Attributes:
      path: Where the array stands, for messages.
      pattern: Dimensions in order, or by axis name.
      shape: The sizes found, as a tuple or by axis name.
    """

    path: str
    pattern: tuple[Any, ...] | dict[Any, Any]
    shape: tuple[Any, ...] | dict[Any, Any]

    def describe(self) -> str:
        """Both sides, for readers."""
        if isinstance(self.shape, dict):
            assert isinstance(self.pattern, dict)
            return (
                f"At {self.path}: named shape ({shape_text((), self.shape)}) does not match "
                f"({shape_text((), self.pattern)}):"
            )
        return (
            f"At {self.path}: positional shape ({shape_text(self.shape, {})}) does not match "
            f"({shape_text(self.pattern, {})}):"
        )


class _Postponed(Exception):
    """Two or more runs are unknown; carries their names."""

    def __init__(self, unknown: list[str]) -> None:
        super().__init__(unknown)
        self.unknown = unknown


def _bound(name: str, kind: type, bindings: Bindings) -> Binding | None:
    """The binding of a run, None if there is none yet.

    Raises:
      _Conflict: When the variable stands for something else.
    """
    binding = bindings.get(name)
    if binding is not None and not isinstance(binding.value, kind):
        use = "a run of positional sizes" if kind is tuple else "a group of named axes"
        raise _Conflict(
            f"variable {name!r} is used for {use}, but it is {binding.value!r} from {binding.origin}"
        )
    return binding


class _Conflict(Exception):
    """A reason why a constraint cannot hold."""


def _match_dim(dim: Any, size: Any, where: str, path: str, bindings: Bindings) -> str | None:
    """Matches one size, binding its variable; the reason when it does not match."""
    if isinstance(dim, DimVar):
        known = bindings.setdefault(dim.name, Binding(size, path))
        if known.value != size:
            return (
                f"{where}: size {size}, but {dim_text(dim)} is {known.value!r} from {known.origin}"
            )
        return None
    if isinstance(dim, KnownDim):
        known = bindings.setdefault(dim.name, Binding(dim.size, dim.from_keypath or path))
        origin = f" (from {dim.from_keypath})" if dim.from_keypath else ""
        if dim.size != size:
            return f"{where}: size {size}, but {dim_text(dim)} is declared{origin}"
        if known.value != size:
            return (
                f"{where}: size {size}, but {variable_text(dim.name)} is {known.value!r} from "
                f"{known.origin}"
            )
        return None
    return None if dim == size else f"{where}: size {size}, expected {dim}"


def _positional(constraint: Constraint, bindings: Bindings) -> list[str]:
    pattern: list[Any] = []
    notes = []
    for dim in constraint.pattern:
        run = _bound(dim.name, tuple, bindings) if isinstance(dim, MultiDimVar) else None
        if run is None:
            pattern.append(dim)
            continue
        notes.append(f"with {dim_text(dim)} = {run.value!r} from {run.origin}")
        pattern += [KnownDim((dim.name, i), s, run.origin) for i, s in enumerate(run.value)]
    unknown = [i for i, dim in enumerate(pattern) if isinstance(dim, MultiDimVar)]
    if len(unknown) > 1:
        raise _Postponed([pattern[i].name for i in unknown])
    shape = tuple(constraint.shape)
    before, after = pattern, pattern[:0]
    if unknown:
        before, after = pattern[: unknown[0]], pattern[unknown[0] + 1 :]
        if len(shape) < len(before) + len(after):
            return [f"it has {len(shape)} axes, at least {len(before) + len(after)} are needed"]
        middle = shape[len(before) : len(shape) - len(after)]
        bindings[pattern[unknown[0]].name] = Binding(middle, constraint.path)
    elif len(shape) != len(pattern):
        return [f"it has {len(shape)} axes, {len(pattern)} are needed", *notes]
    offset = len(shape) - len(after)
    pairs = [*enumerate(before), *((offset + i, dim) for i, dim in enumerate(after))]
    reasons = [
        _match_dim(dim, shape[i], f"axis {i}", constraint.path, bindings) for i, dim in pairs
    ]
    failed = [reason for reason in reasons if reason]
    return failed + notes if failed else []


def _inlined_axes(constraint: Constraint, bindings: Bindings) -> tuple[dict[Any, Any], list[str]]:
    """The pattern's axes with known groups put in, and the names of unknown groups."""
    assert isinstance(constraint.pattern, dict)
    axes = {n: d for n, d in constraint.pattern.items() if not isinstance(n, MultiDimVar)}
    unknown = []
    for group in constraint.pattern:
        if not isinstance(group, MultiDimVar):
            continue
        known = _bound(group.name, dict, bindings)
        if known is None:
            unknown.append(group.name)
            continue
        for axis, size in known.value.items():
            if axis in axes:
                raise _Conflict(
                    f"key conflict: {{**{group.name}}} is {known.value!r} from {known.origin}, and "
                    f"its axis {axis!r} is in the pattern ({shape_text((), constraint.pattern)}) "
                    "already"
                )
            axes[axis] = KnownDim((group.name, axis), size, known.origin)
    return axes, unknown


def _named(constraint: Constraint, bindings: Bindings) -> list[str]:
    axes, unknown = _inlined_axes(constraint, bindings)
    if len(unknown) > 1:
        raise _Postponed(unknown)
    shape = dict(constraint.shape)
    reasons: list[str | None] = [
        f"axis {name!r} is missing (expected size {dim_text(dim)})"
        for name, dim in axes.items()
        if name not in shape
    ]
    rest = {name: size for name, size in shape.items() if name not in axes}
    if unknown:
        bindings[unknown[0]] = Binding(rest, constraint.path)
    else:
        reasons += [f"axis {name!r} (size {size}) is unexpected" for name, size in rest.items()]
    reasons += [
        _match_dim(dim, shape[name], f"axis {name!r}", constraint.path, bindings)
        for name, dim in axes.items()
        if name in shape
    ]
    return [reason for reason in reasons if reason]


def solve(
    constraints: Sequence[Constraint], bindings: Bindings, failures: Sequence[str]
) -> tuple[list[str], str]:
    """Binds variables until every constraint holds.

    Args:
      constraints: The shapes to match.
      bindings: Known variables; extended in place.
      failures: What is wrong already; reported after the first pass.

    Returns:
      All failures of the pass that failed (empty if none), and a remark on what stays open.
    """
    open_constraints = list(constraints)
    failures = list(failures)
    while True:
        waiting, unknown = [], set()
        for constraint in open_constraints:
            attempt: Callable[[Constraint, Bindings], list[str]] = (
                _named if isinstance(constraint.shape, dict) else _positional
            )
            try:
                reasons = attempt(constraint, bindings)
            except _Postponed as postponed:
                waiting.append(constraint)
                unknown.update(postponed.unknown)
                continue
            except _Conflict as conflict:
                reasons = [str(conflict)]
            if reasons:
                failures.append("\n    ".join([constraint.describe(), *reasons]))
        if failures:
            remark = f"{len(waiting)} more shapes were not checked yet." if waiting else ""
            return failures, remark
        if not waiting:
            return [], ""
        if len(waiting) == len(open_constraints):
            stuck = [
                "ambiguous: the variables "
                + ", ".join(repr(name) for name in sorted(unknown))
                + " cannot be told apart. Unsolved:"
            ]
            stuck += [
                f"  {c.path}: ({_side(c.shape)}) against ({_side(c.pattern)})" for c in waiting
            ]
            return ["\n    ".join(stuck)], "Give one of them in known_vars."
        open_constraints = waiting


def _side(shape: Any) -> str:
    return shape_text((), shape) if isinstance(shape, dict) else shape_text(shape, {})


def grouped(bindings: Bindings) -> tuple[dict[str, Any], list[str]]:
    """The result of a check: members of a group are put together.

    Args:
      bindings: Solved variables; `(group, index)` names a member.

    Returns:
      Values by variable, and the conflicts between groups and their members.
    """
    values = {name: b.value for name, b in bindings.items() if isinstance(name, str)}
    conflicts = []
    members: dict[str, dict[Any, int]] = {}
    for name, binding in bindings.items():
        if isinstance(name, str):
            continue
        group, index = name
        if group not in values:
            members.setdefault(group, {})[index] = binding.value
            continue
        whole = bindings[group]
        found = dict(enumerate(whole.value)) if isinstance(whole.value, tuple) else whole.value
        if not isinstance(found, dict) or found.get(index) != binding.value:
            conflicts.append(
                f"{variable_text(name)} is {binding.value} from {binding.origin}, but {group} is "
                f"{whole.value!r} from {whole.origin}"
            )
    return {**values, **members}, conflicts
