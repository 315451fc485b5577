"""Checking shapes by name: does a tree of arrays look as it should, and what are its sizes?

A pattern is a tree of `ArraySpec`s; variables in it take the sizes found, and one variable has one
size everywhere.

Example:
    >>> import numpy as np
    >>> from pz_named import shapecheck as chk
    >>> sizes = chk.check_structure(
    ...     {"x": np.zeros((2, 3)), "y": np.zeros((3, 5))},
    ...     {"x": chk.ArraySpec((chk.var("a"), chk.var("b"))),
    ...      "y": chk.ArraySpec((chk.var("b"), *chk.var("rest")))},
    ... )
    >>> sizes.a, sizes.b, sizes.rest
    (2, 3, (5,))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._constraints import Constraint, binding_from, grouped, solve
from pz_named._layout import near_misses
from pz_named._pairing import briefly, pairs_of
from pz_named.array_specs import ANY as ANY
from pz_named.array_specs import ArraySpec as ArraySpec
from pz_named.array_specs import StructureAnnotation as StructureAnnotation
from pz_named.array_specs import Wildcard as Wildcard
from pz_named.array_specs import as_array_structure as as_array_structure
from pz_named.array_specs import dtype_text
from pz_named.arrays import is_namedarray
from pz_named.dimensions import DimVar as DimVar
from pz_named.dimensions import KnownDim as KnownDim
from pz_named.dimensions import MultiDimVar as MultiDimVar
from pz_named.dimensions import RemainingAxisPlaceholder as RemainingAxisPlaceholder
from pz_named.dimensions import var as var
from pz_named.dimensions import vars_for_axes as vars_for_axes
from pz_named.substitution import DimensionVariableSubstitution as DimensionVariableSubstitution
from pz_named.substitution import (
    full_substitute_dimension_variables as full_substitute_dimension_variables,  # fmt: skip
)
from pz_named.substitution import get_dimension_variables as get_dimension_variables

__all__ = [
    "ANY",
    "ArraySpec",
    "DimVar",
    "DimensionVariableSubstitution",
    "KnownDim",
    "MatchResult",
    "MultiDimVar",
    "RemainingAxisPlaceholder",
    "StructureAnnotation",
    "StructureMismatchError",
    "Wildcard",
    "as_array_structure",
    "check_structure",
    "full_substitute_dimension_variables",
    "get_dimension_variables",
    "var",
    "vars_for_axes",
]


class StructureMismatchError(ValueError):
    """A value does not look as its pattern says.

    All mismatches are listed together, each with its path. For example, this fails because one
    variable has two sizes:

        check_structure([np.zeros(2), np.zeros(3)], [ArraySpec((var("n"),))] * 2)

    Give the second array another variable, `var("m")`, or make the sizes agree.
    """


@dataclasses.dataclass(frozen=True)
class MatchResult(Mapping[Any, Any]):
    """The variables of a successful check, as a mapping and as attributes.

    `result["a"]` and `result.a` are the size of `a`; `result["a", "b"]` is a pair. A run of sizes is
    a tuple, a group of named axes a dict.
    """

    _bindings: dict[str, Any]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key in self._bindings:
                return self._bindings[key]
            raise KeyError(
                f"no dimension variable is named {key!r}. {near_misses(key, self._bindings)}"
            )
        if isinstance(key, Iterable):
            return tuple(self[name] for name in key)
        raise KeyError(key)

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling ask for attributes before the field is set.
        bindings = self.__dict__.get("_bindings", {})
        if name in bindings:
            return bindings[name]
        raise AttributeError(
            f"no dimension variable is named {name!r}. {near_misses(name, bindings)}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._bindings)

    def __len__(self) -> int:
        return len(self._bindings)


def _dtype_problem(found: Any, wanted: Any) -> str | None:
    if isinstance(wanted, type) and issubclass(wanted, np.generic):
        if wanted is np.generic or jnp.issubdtype(found, wanted):
            return None
    elif not (isinstance(found, type) and issubclass(found, np.generic)):
        canonical = jax.dtypes.canonicalize_dtype
        if canonical(found, allow_extended_dtype=True) == canonical(
            wanted, allow_extended_dtype=True
        ):
            return None
    return f"dtype {dtype_text(found)}, expected {dtype_text(wanted)}"


def _abstract(value: Any) -> ArraySpec | None:
    """The shapes and dtype of an array-like; None when it is none."""
    if isinstance(value, ArraySpec):
        return value
    if is_namedarray(value):
        value.check_valid()
        return ArraySpec(value.positional_shape, value.dtype, value.named_shape)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return ArraySpec(value.shape, value.dtype)
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return ArraySpec((), jnp.result_type(value))
    return None


def _is_equal(value: Any, literal: Any) -> bool:
    """Literal equality; arrays must agree in shape and all values."""
    if hasattr(value, "shape") or hasattr(literal, "shape"):
        if np.shape(value) != np.shape(literal):
            return False
    equal = value == literal
    if isinstance(equal, jax.core.Tracer):
        return False
    if is_namedarray(equal):
        leaf = equal.data_array
        return not isinstance(leaf, jax.core.Tracer) and bool(leaf.all())
    return bool(np.all(equal))


def _constraints(value: Any, pattern: Any) -> tuple[list[str], list[Constraint]]:
    """What is wrong whatever the variables are, and the shapes to solve for."""
    failures, constraints = [], []
    for pair in pairs_of(value, pattern):
        if pair.problem is not None:
            failures.append(f"At {pair.path}: {pair.problem}.")
        elif isinstance(pair.pattern, ArraySpec):
            found = _abstract(pair.value)
            if found is None:
                failures.append(
                    f"At {pair.path}: {briefly(pair.value)} is not array-like, expected {pair.pattern!r}."
                )
                continue
            if (problem := _dtype_problem(found.dtype, pair.pattern.dtype)) is not None:
                failures.append(f"At {pair.path}: {problem}.")
            constraints += [
                Constraint(pair.path, pair.pattern.shape, tuple(found.shape)),
                Constraint(pair.path, pair.pattern.named_shape, dict(found.named_shape)),
            ]
        elif not isinstance(pair.pattern, Wildcard) and not _is_equal(pair.value, pair.pattern):
            failures.append(
                f"At {pair.path}: {briefly(pair.value)} is not equal to {briefly(pair.pattern)}."
            )
    return failures, constraints


def check_structure(
    value: Any,
    pattern: StructureAnnotation,
    known_vars: Mapping[str, Any] | None = None,
    error_prefix: str = "",
) -> MatchResult:
    """Checks a tree of arrays against a pattern and solves for its dimension variables.

    Args:
      value: Arrays, named arrays, abstract arrays, scalars or specs, in any containers.
      pattern: The containers, with `ArraySpec` for arrays, `ANY` for anything, and other values
        for what must be equal.
      known_vars: Sizes that are known already, such as an earlier result.
      error_prefix: Text put before the message of a mismatch.

    Returns:
      The sizes by variable, known ones included.

    Raises:
      StructureMismatchError: When anything does not match, or the variables are ambiguous. The
        message lists every mismatch with its path.
    """
    bindings = {
        name: binding_from(name, size, "known_vars") for name, size in (known_vars or {}).items()
    }
    failures, constraints = _constraints(value, pattern)
    failures, remark = solve(constraints, bindings, failures)
    if failures:
        raise _mismatch(error_prefix, failures, remark)
    result, conflicts = grouped(bindings)
    if conflicts:
        raise _mismatch(error_prefix, conflicts, "")
    return MatchResult(result)


def _mismatch(prefix: str, failures: list[str], remark: str) -> StructureMismatchError:
    lines = [
        f"{prefix}The value does not have the expected structure ({len(failures)} "
        f"mismatch{'es' if len(failures) != 1 else ''}):",
        *("  " + failure for failure in failures),
    ]
    return StructureMismatchError("\n".join(lines + [remark] * bool(remark)))
