"""Elementwise operations on named arrays: alignment, then one array operation.

The operands' axes are brought into one order by a transpose and missing ones are put in with size
1; the raw operator then broadcasts. The jaxpr is that of the hand-written `a + b.T[None]`:

    names = ordered union of the operands' names
    datas = [transpose + size-1 axes, so that names come first and positional axes last]
    pack(op(*datas), names)

Lifting through one `vmap` per name gives the same values at many times the cost; it remains the
fallback for operands that JAX does not take for arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
from jax import lax

from pz_named._layout import Layout, NamedLeaf, ordered_union
from pz_named._packing import ResultForm, as_jax, pack, transposed
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap, raise_size_conflict

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["align", "apply_divmod", "apply_elementwise", "is_array_like"]

_SCALARS = (int, float, complex)
_RAW_ARRAYS = (jax.Array, np.ndarray, np.generic)


class _Step(NamedTuple):
    """What brings one operand into the common order; None where nothing is to do."""

    permutation: tuple[int, ...] | None
    new_axes: tuple[int, ...] | None


class _Plan(NamedTuple):
    steps: tuple[_Step | None, ...]
    is_trivial: bool
    result: ResultForm


_Key: TypeAlias = Layout | int | None
_NO_ARRAY = object()


def _key(operand: Any) -> Any:
    """What a plan needs to know of an operand: a layout, a rank, or None for a Python scalar."""
    if isinstance(operand, NamedLeaf):
        return operand._layout()
    if isinstance(operand, _SCALARS):
        return None
    return operand.ndim if isinstance(operand, _RAW_ARRAYS) else _NO_ARRAY


def is_array_like(value: object) -> bool:
    """Whether an operand is a named array or something JAX's operators take for an array."""
    return isinstance(value, (NamedLeaf, *_SCALARS, *_RAW_ARRAYS))


@functools.lru_cache(maxsize=8192)
def _plan(operands: tuple[_Key, ...]) -> _Plan | None:
    """How to align operands: layouts, ranks of raw arrays, None for Python scalars.

    None is returned where a name has two sizes.
    """
    union = ordered_union(o for o in operands if isinstance(o, Layout))
    if union is None:
        return None
    names = tuple(union)
    rank = max(len(o.logical_axes) if isinstance(o, Layout) else (o or 0) for o in operands)
    steps = tuple(_step(o, names, rank) for o in operands)
    return _Plan(steps, not any(steps), ResultForm(union))


def _step(operand: _Key, names: tuple[AxisName, ...], rank: int) -> _Step | None:
    if isinstance(operand, Layout):
        axis_of = dict(zip(operand.names, operand.name_axes, strict=True))
        order = tuple(axis_of[n] for n in names if n in axis_of) + operand.logical_axes
        absent = tuple(i for i, n in enumerate(names) if n not in axis_of)
        missing = rank - len(operand.logical_axes)
        new_axes = absent + tuple(range(len(names), len(names) + missing))
        permutation = None if order == tuple(range(len(order))) else order
        return _Step(permutation, new_axes or None) if permutation or new_axes else None
    if not operand:  # a scalar or a 0-d array, which broadcasts by itself
        return None
    missing = len(names) + rank - operand
    return _Step(None, tuple(range(missing))) if missing else None


def _aligned(plan: _Plan, operands: Sequence[Any]) -> list[Any]:
    if plan.is_trivial:
        return [as_jax(o.data_array) if isinstance(o, NamedLeaf) else o for o in operands]
    return [_carry_out(step, o) for step, o in zip(plan.steps, operands, strict=True)]


def _carry_out(step: _Step | None, operand: Any) -> Any:
    data = as_jax(operand.data_array) if isinstance(operand, NamedLeaf) else operand
    if step is None:
        return data
    if step.permutation is not None:
        data = transposed(data, step.permutation)
    if step.new_axes is not None:
        data = lax.expand_dims(data, step.new_axes)
    return data


def align(what: str, *operands: Any) -> tuple[list[Any], tuple[AxisName, ...]]:
    """Brings operands into one axis order: the union of their names, then positional axes.

    Args:
      what: The operation, for messages.
      *operands: Named arrays, arrays and Python scalars.

    Returns:
      The operands as arrays of equal rank (scalars and 0-d arrays unchanged), and the names of the
      leading axes.

    Raises:
      ValueError: When a name has two sizes.
      TypeError: When an operand is no array.
    """
    keys = tuple(map(_key, operands))
    if _NO_ARRAY in keys:
        wrong = operands[keys.index(_NO_ARRAY)]
        raise TypeError(
            f"{what}: every operand must be a named array, an array or a number; one is {wrong!r} "
            f"of type {type(wrong).__name__}. Convert it with jnp.asarray."
        )
    plan = _plan(keys)
    if plan is None:
        raise_size_conflict(what, operands, {})
    return _aligned(plan, operands), plan.result.names


def apply_elementwise(op: Callable[..., Any], *operands: Any) -> NamedArrayBase:
    """Applies an operator to aligned operands; results have names first.

    Args:
      op: An elementwise function of arrays.
      *operands: At least one named array; others may be anything `op` takes.

    Returns:
      A named array.

    Raises:
      ValueError: When a name has two sizes.
    """
    keys = tuple(map(_key, operands))
    if _NO_ARRAY in keys:
        return cast("NamedArrayBase", _lifted(op, operands))
    plan = _plan(keys)
    if plan is None:
        raise_size_conflict(getattr(op, "__name__", repr(op)), operands, {})
    return plan.result.pack(op(*_aligned(plan, operands)))


def _lifted(op: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """The operator on slices, for operands that bring an operator of their own.

    Raises:
      TypeError: When they bring none.
    """
    try:
        return nmap(op)(*operands)
    except TypeError as exc:
        kinds = ", ".join(type(o).__name__ for o in operands)
        raise TypeError(
            f"{getattr(op, '__name__', repr(op))}: unsupported operands ({kinds}); besides named "
            "arrays, operators take arrays and numbers. Convert lists with jnp.asarray."
        ) from exc


def apply_divmod(x: Any, y: Any) -> tuple[NamedArrayBase, NamedArrayBase]:
    """`divmod` of aligned operands; one of them is a named array."""
    if not (is_array_like(x) and is_array_like(y)):
        return cast("tuple[NamedArrayBase, NamedArrayBase]", _lifted(divmod, (x, y)))
    (first, second), names = align("divmod", x, y)
    quotient, remainder = divmod(first, second)
    return pack(quotient, names), pack(remainder, names)
