"""How the result of an operation becomes a named array again.

One rule for all results: names first, in the stated order, then positional axes; a `NamedArray`
when no positional axis is left and a `NamedArrayView` otherwise. The two classes stand above the
operations that are their methods, so they hand themselves down to this module when they are
defined (`arrays.py` calls `register_makers` once). A cycle of imports was the alternative.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._layout import Layout, NamedLeaf
from pz_named.axis_names import AxisName

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = [
    "ResultForm",
    "as_jax",
    "is_named",
    "names_first",
    "pack",
    "register_makers",
    "transposed",
]

_makers: dict[str, Callable[..., NamedArrayBase]] = {}


def register_makers(
    named_array: Callable[..., NamedArrayBase], named_array_view: Callable[..., NamedArrayBase]
) -> None:
    """Tells this module the constructors of the two classes.

    Called once, by the module that defines them.
    """
    _makers["prefix"] = named_array
    _makers["view"] = named_array_view


def is_named(value: object) -> bool:
    """Whether `value` is a named array; an `is_leaf` predicate."""
    return isinstance(value, NamedLeaf)


_NUMPY = (np.ndarray, np.generic)


def as_jax(data: Any) -> Any:
    """`data` with NumPy arrays turned into JAX's; everything else (abstract data too) as it is."""
    return jnp.asarray(data) if isinstance(data, _NUMPY) else data


class ResultForm:
    """The names of a result, prepared once for all results of a plan.

    Results share the mappings, which is why the fields of a named array must not be mutated.
    """

    __slots__ = ("_axes", "_sizes", "names")

    def __init__(self, sizes: Mapping[AxisName, int]) -> None:
        self.names = tuple(sizes)
        self._sizes = collections.OrderedDict(sizes)
        self._axes = {name: axis for axis, name in enumerate(sizes)}

    def pack(self, data: Any) -> NamedArrayBase:
        """The named array over `data`, whose leading axes are the names."""
        shape = data.shape
        count = len(self.names)
        if len(shape) == count:
            return _makers["prefix"](self._sizes, data)
        return _makers["view"](shape, tuple(range(count, len(shape))), self._axes, data)


def pack(data: Any, names: Sequence[AxisName]) -> NamedArrayBase:
    """The named array over `data`, whose leading axes are `names` and whose others are positional."""
    return ResultForm(dict(zip(names, data.shape, strict=False))).pack(data)


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
