"""How the result of an operation becomes a named array again.

One rule for all results: names first, in the stated order, then positional axes; a `NamedArray`
when no positional axis is left and a `NamedArrayView` otherwise. The two classes stand above the
operations that are their methods, so they hand themselves down to this module when they are
defined (`arrays.py` calls `register_classes` once). A cycle of imports was the alternative.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._layout import Layout, NamedLeaf
from pz_named.axis_names import AxisName

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["as_jax", "is_named", "names_first", "pack", "register_classes", "transposed"]

_classes: dict[str, Callable[..., NamedArrayBase]] = {}


def register_classes(
    named_array: Callable[..., NamedArrayBase], named_array_view: Callable[..., NamedArrayBase]
) -> None:
    """Tells this module the two classes; called once, by the module that defines them."""
    _classes["prefix"] = named_array
    _classes["view"] = named_array_view


def is_named(value: object) -> bool:
    """Whether `value` is a named array; an `is_leaf` predicate."""
    return isinstance(value, NamedLeaf)


def as_jax(data: Any) -> Any:
    """`data` with NumPy arrays turned into JAX's; everything else (abstract data too) as it is."""
    return jnp.asarray(data) if isinstance(data, (np.ndarray, np.generic)) else data


def pack(data: Any, names: Sequence[AxisName]) -> NamedArrayBase:
    """The named array over `data`, whose leading axes are `names` and whose others are positional."""
    shape = data.shape
    count = len(names)
    if len(shape) == count:
        return _classes["prefix"](collections.OrderedDict(zip(names, shape, strict=True)), data)
    return _classes["view"](
        shape, tuple(range(count, len(shape))), dict(zip(names, range(count), strict=True)), data
    )


def transposed(data: Any, order: tuple[int, ...]) -> Any:
    """`data` with its axes in `order`; the same object when they are already.

    NumPy data stays NumPy and abstract data stays abstract.
    """
    if order == tuple(range(len(order))):
        return data
    if isinstance(data, jax.ShapeDtypeStruct):
        shape = tuple(data.shape[axis] for axis in order)
        abstract: Any = jax.ShapeDtypeStruct  # its constructor has no annotations
        return abstract(shape, data.dtype)
    return data.transpose(order)


def names_first(x: NamedLeaf, order: Sequence[AxisName] | None = None) -> tuple[Any, Layout]:
    """The data of `x` with axes `order` (default: its own order) first and positional axes after."""
    layout = x._layout()
    names = layout.names if order is None else tuple(order)
    axis_of = dict(zip(layout.names, layout.name_axes, strict=True))
    permutation = tuple(axis_of[name] for name in names) + layout.logical_axes
    return transposed(as_jax(x.data_array), permutation), layout
