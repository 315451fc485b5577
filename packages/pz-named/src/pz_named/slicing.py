"""Slices by name, with bounds that are known or traced.

Example:
    >>> import pz_named as nx
    >>> cache = nx.zeros({"token": 4}, int)
    >>> nx.dynamic_update_slice(cache, nx.ones({"token": 2}, int), {"token": 1}).unwrap("token").tolist()
    [0, 1, 1, 0]
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

from pz_named._arguments import names_in, require_named, single_name
from pz_named._layout import NamedLeaf, named_shape_text
from pz_named._packing import as_jax, names_first, pack, transposed
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["dynamic_slice", "dynamic_update_slice", "slice_axis"]


def slice_axis(
    x: NamedArrayBase,
    axis: AxisName,
    start: int | None = None,
    stop: int | None = None,
    step: int | None = None,
) -> NamedArrayBase:
    """A slice of one axis, which keeps its place among the names.

    Args:
      x: The array.
      axis: The name.
      start: Where it begins, as in Python's slices.
      stop: Where it ends, excluded.
      step: The distance; may be negative.

    Returns:
      The smaller array.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.slice_axis(nx.arange("row", 5), "row", 1, 4).unwrap("row").tolist()
        [1, 2, 3]
    """
    axis = single_name("slice_axis", x, axis)
    order = tuple(x.named_shape)
    cut = x[{axis: slice(start, stop, step)}]
    return pack(names_first(cut, order)[0], order)


def _start_scalars(what: str, starts: Mapping[AxisName, Any]) -> dict[AxisName, Any]:
    """The starts, those without any axis as plain scalars."""
    scalars = {}
    for name, start in starts.items():
        if isinstance(start, NamedLeaf):
            layout = start._layout()
            if layout.logical_axes:
                raise ValueError(
                    f"{what}: the start for {name!r} must be one integer (for each element of its "
                    f"names); it has positional shape {layout.positional_shape}."
                )
            start = start if layout.names else as_jax(start.data_array)
        elif jnp.ndim(start) != 0:
            raise ValueError(
                f"{what}: the start for {name!r} must be one integer; its shape is "
                f"{jnp.shape(start)}. Name its axes for one slice per element."
            )
        if not jnp.issubdtype(jnp.result_type(_data(start)), jnp.integer):
            raise TypeError(f"{what}: the start for {name!r} must be an integer; it is {start!r}.")
        scalars[name] = start
    return scalars


def _data(value: Any) -> Any:
    return value.data_array if isinstance(value, NamedLeaf) else value


def _has_names(starts: Mapping[AxisName, Any]) -> bool:
    return any(isinstance(start, NamedLeaf) for start in starts.values())


def dynamic_slice(
    x: NamedArrayBase, starts: Mapping[AxisName, Any], sizes: Mapping[AxisName, int]
) -> NamedArrayBase:
    """A slice whose start may be traced.

    Args:
      x: The array.
      starts: The first position, by name; moved inwards where the slice would not fit, as JAX does.
        A named start gives one slice for each element of its names.
      sizes: How many positions, by name; the same names as `starts`.

    Returns:
      The array with those sizes.

    Raises:
      ValueError: When the names differ, or a size does not fit.

    Example:
        >>> import pz_named as nx
        >>> nx.dynamic_slice(nx.arange("row", 5), {"row": 3}, {"row": 2}).unwrap("row").tolist()
        [3, 4]
    """
    names = names_in("dynamic_slice", x, tuple(starts))
    if set(sizes) != set(starts):
        raise ValueError(
            f"dynamic_slice: starts and sizes must have the same names; they have {names!r} and "
            f"{tuple(sizes)!r}."
        )
    for name in names:
        if not 0 <= operator.index(sizes[name]) <= x.axis_size(name):
            raise ValueError(
                f"dynamic_slice: a slice of {sizes[name]} does not fit axis {name!r} of size "
                f"{x.axis_size(name)}."
            )
    scalars = _start_scalars("dynamic_slice", starts)
    if _has_names(scalars):
        lengths = [sizes[name] for name in names]

        def cut(data: Any, places: Any) -> Any:
            rest = data.ndim - len(places)
            return lax.dynamic_slice(
                data, [*places, *[0] * rest], [*lengths, *data.shape[len(places) :]]
            )

        order = tuple(x.named_shape)
        result: NamedArrayBase = nmap(cut)(x.untag_prefix(*names), list(scalars.values()))
        result = result.tag_prefix(*names)
        kept = [*order, *(name for name in result.named_shape if name not in order)]
        return pack(names_first(result, kept)[0], kept)
    data, layout = names_first(x)
    begin = [scalars.get(name, 0) for name in layout.names] + [0] * len(layout.logical_axes)
    lengths = [sizes.get(name, layout.named_shape[name]) for name in layout.names]
    data = lax.dynamic_slice(data, begin, [*lengths, *layout.positional_shape])
    return pack(data, layout.names)


def dynamic_update_slice(
    x: NamedArrayBase, update: Any, starts: Mapping[AxisName, Any]
) -> NamedArrayBase:
    """Writes a slice at a start that may be traced.

    The result has the structure and axis order of `x`, so it can be a loop's carry, and JAX can
    write in place when `x` is donated. It is one `dynamic_update_slice`, without any scatter, when
    no start is a named array with axes.

    Args:
      x: The array to write into.
      update: What to write: a named array (or a number). A name in `starts` that it lacks has size
        1 there; another name that it lacks is broadcast. It is cast to the dtype of `x`.
      starts: The first position, by name; moved inwards where the update would not fit, as JAX
        does. A named start (its names are names of `x`) writes one slice for each element.

    Returns:
      The updated array.

    Raises:
      ValueError: When the update has a name or a size that does not fit.
    """
    layout = require_named("dynamic_update_slice", x)
    names = names_in("dynamic_update_slice", x, tuple(starts))
    scalars = _start_scalars("dynamic_update_slice", starts)
    fitted = _fitted(
        x, update if isinstance(update, NamedLeaf) else pack(jnp.asarray(update), ()), names
    )
    if _has_names(scalars):

        def write(data: Any, new: Any, places: Any) -> Any:
            return lax.dynamic_update_slice(data, new, [*places, *[0] * (data.ndim - len(places))])

        result: NamedArrayBase = nmap(write)(
            x.untag_prefix(*names), fitted.untag_prefix(*names), list(scalars.values())
        )
        updated: NamedArrayBase = result.tag_prefix(*names)
        return updated.order_like(x)
    data = as_jax(x.data_array)
    begin: list[Any] = [0] * data.ndim
    for name, axis in zip(layout.names, layout.name_axes, strict=True):
        begin[axis] = scalars.get(name, 0)
    source = {name: axis for axis, name in enumerate(layout.names)}
    order = [0] * data.ndim
    for name, axis in zip(layout.names, layout.name_axes, strict=True):
        order[axis] = source[name]
    for position, axis in enumerate(layout.logical_axes):
        order[axis] = len(layout.names) + position
    new = transposed(names_first(fitted, layout.names)[0], tuple(order))
    written: Any = lax.dynamic_update_slice(data, new, begin)
    return dataclasses.replace(x, data_array=written)  # type: ignore[type-var]


def _fitted(x: NamedArrayBase, update: Any, names: tuple[AxisName, ...]) -> Any:
    """The update with all names of `x`, its positional shape, and its dtype."""
    shape, own = x.named_shape, update.named_shape
    for name, size in own.items():
        if name not in shape or (size > shape[name] if name in names else size != shape[name]):
            raise ValueError(
                f"dynamic_update_slice: axis {name!r} of the update has size {size}, which does not "
                f"fit; x is {named_shape_text(shape, x.positional_shape)}, update is "
                f"{named_shape_text(own, update.positional_shape)}, starts has {names!r}. Axes in "
                "starts may be smaller than in x; all others must be equal or absent."
            )
    missing = {name: 1 if name in names else shape[name] for name in shape if name not in own}
    wide = update.broadcast_to(x.positional_shape, {**own, **missing})
    return wide if wide.dtype == x.dtype else wide.astype(x.dtype)
