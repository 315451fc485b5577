"""Reductions and cumulations along axes given by position or by name.

The axes are translated to data axes and the array function runs once; only its (smaller) result is
brought into names-first order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from pz_named._aligned import align
from pz_named._layout import Layout, NamedLeaf, axis_positions, near_misses
from pz_named._packing import as_jax, names_first, pack, transposed
from pz_named.axis_names import AxisName

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = [
    "all_of",
    "along_names",
    "any_of",
    "axis_names_in",
    "count_nonzero_of",
    "positions_in",
    "reduce_names",
    "reduce_positions",
    "require_positions",
]


def _is_position(entry: object) -> bool:
    return isinstance(entry, (int, np.integer))


def axis_names_in(axis: Any, x: NamedLeaf) -> tuple[AxisName, ...] | None:
    """The names that `axis` lists, or None when it means positions (integers, None, nothing).

    A tuple or list lists several names, unless a tuple is itself a name of `x`; anything else is
    one name.

    Raises:
      ValueError: When names and positions are mixed.
    """
    if axis is None or _is_position(axis):
        return None
    if isinstance(axis, tuple) and axis in x._layout().names:
        return (axis,)
    entries = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    if all(_is_position(entry) for entry in entries):
        return None
    if any(_is_position(entry) for entry in entries):
        raise ValueError(
            f"axis={axis!r} mixes names and positions; give one kind: reduce the names first and "
            "the positions of the result afterwards."
        )
    return entries


def require_positions(method: str, x: NamedLeaf, *axes: Any) -> None:
    """Raises for a name where a position is meant.

    Raises:
      ValueError: When an entry of `axes` is, or lists, a name.
    """
    for axis in axes:
        names = axis_names_in(axis, x)
        if names:
            raise ValueError(
                f"{method}: axis={axis!r} is a name, but this method takes positions. "
                f"{near_misses(names[0], x._layout().names)} Make the axis positional first, "
                f".untag({', '.join(map(repr, names))}), or use the function of that purpose in "
                "pz_named, which takes names."
            )


def positions_in(layout: Layout, axis: Any) -> tuple[int, ...]:
    """Positions, counted from the end when negative; None means all of them.

    Raises:
      ValueError: For a position out of range, or a repeated one.
    """
    rank = len(layout.logical_axes)
    if axis is None:
        return tuple(range(rank))
    positions = []
    for entry in axis if isinstance(axis, (tuple, list)) else (axis,):
        position = operator.index(entry)
        if not -rank <= position < rank:
            raise ValueError(
                f"axis={axis!r} is out of range for positional shape {layout.positional_shape}; "
                f"the array's named axes {layout.names!r} are given by name."
            )
        positions.append(position % rank)
    if len(set(positions)) < len(positions):
        raise ValueError(f"axis={axis!r} names one positional axis twice.")
    return tuple(positions)


def _with_mask(what: str, x: NamedLeaf, where: Any) -> tuple[Any, Any, Layout]:
    """Data and mask of one shape, names first, and the layout of both."""
    rank = len(x._layout().logical_axes)
    (data, mask), names = align(what, x, where)
    shape = np.broadcast_shapes(data.shape, jnp.shape(mask))
    if len(shape) - len(names) > rank:
        raise ValueError(
            f"{what}: where= has more positional axes than the array; positional shapes "
            f"{shape[len(names) :]} and {x._layout().positional_shape}. Name its extra axes."
        )
    count = len(names)
    layout = Layout(names, tuple(range(count)), tuple(range(count, len(shape))), shape)
    return jnp.broadcast_to(data, shape), mask, layout


def _reduce(
    fun: Callable[..., Any],
    data: Any,
    layout: Layout,
    axes: tuple[int, ...],
    keepdims: bool,
    options: dict[str, Any],
) -> NamedArrayBase:
    result = fun(data, axis=axes, keepdims=keepdims, **options)
    kept = [a for a in range(len(layout.shape)) if keepdims or a not in axes]
    names = [n for n, a in zip(layout.names, layout.name_axes, strict=True) if a in kept]
    name_axes = [a for a in layout.name_axes if a in kept]
    order = name_axes + [a for a in layout.logical_axes if a in kept]
    return pack(transposed(result, tuple(kept.index(a) for a in order)), names)


def reduce_positions(
    what: str,
    fun: Callable[..., Any],
    x: NamedLeaf,
    axis: Any = None,
    *,
    keepdims: bool = False,
    where: Any = None,
    options: dict[str, Any] | None = None,
) -> NamedArrayBase:
    """Reduces positional axes (all for None), or the named axes when `axis` lists names.

    Args:
      what: The operation, for messages.
      fun: An array function with `axis` and `keepdims` (and `where`).
      x: The array.
      axis: Positions or names.
      keepdims: Whether reduced axes stay, with size 1.
      where: A mask, named or not, of what counts.
      options: More keywords for `fun`.

    Returns:
      The reduced array, names first.
    """
    names = axis_names_in(axis, x)
    if names is not None:
        return reduce_names(what, fun, x, names, keepdims=keepdims, where=where, options=options)
    options = dict(options or {})
    if where is None:
        data, layout = as_jax(x.data_array), x._layout()
    else:
        data, options["where"], layout = _with_mask(what, x, where)
    axes = tuple(layout.logical_axes[position] for position in positions_in(layout, axis))
    return _reduce(fun, data, layout, axes, keepdims, options)


def reduce_names(
    what: str,
    fun: Callable[..., Any],
    x: NamedLeaf,
    names: Sequence[AxisName],
    *,
    keepdims: bool = False,
    where: Any = None,
    options: dict[str, Any] | None = None,
) -> NamedArrayBase:
    """Reduces named axes; arguments as for `reduce_positions`."""
    axis_positions(what, x._layout(), names)  # the mask's names are not the array's to reduce
    options = dict(options or {})
    if where is None:
        data, layout = as_jax(x.data_array), x._layout()
    else:
        data, options["where"], layout = _with_mask(what, x, where)
    return _reduce(fun, data, layout, axis_positions(what, layout, names), keepdims, options)


def along_names(
    what: str, fun: Callable[..., Any], x: NamedLeaf, name: AxisName, **options: Any
) -> NamedArrayBase:
    """Applies `fun(data, axis=...)` along one named axis, which the result still has."""
    data, layout = names_first(x)
    axis_positions(what, layout, (name,))
    return pack(fun(data, axis=layout.names.index(name), **options), layout.names)


def count_nonzero_of(data: Any, axis: Any, keepdims: bool, where: Any = None) -> Any:
    """`jnp.count_nonzero` with a mask, which that lacks."""
    return jnp.sum(data != 0, axis=axis, keepdims=keepdims, where=where)


def all_of(data: Any, axis: Any, keepdims: bool, **options: Any) -> Any:
    """`jnp.all`, which looks only at the real part of complex numbers."""
    return jnp.all(_truth(data), axis=axis, keepdims=keepdims, **options)


def any_of(data: Any, axis: Any, keepdims: bool, **options: Any) -> Any:
    """`jnp.any`, which looks only at the real part of complex numbers."""
    return jnp.any(_truth(data), axis=axis, keepdims=keepdims, **options)


def _truth(data: Any) -> Any:
    return data != 0 if jnp.issubdtype(data.dtype, jnp.complexfloating) else data
