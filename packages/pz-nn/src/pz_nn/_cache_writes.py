"""Writing new keys and values into caches: check, plan, write.

The work is just, for a scalar index n and each of keys and values:

    cache = lax.dynamic_update_slice(cache, new, (layer, 0, 0, 0, n))

after the axes were put in the cache's order. An index with batch axes (rows that end at different
places) is mapped over them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pz_core.variables import AbstractVariable, AbstractVariableValue
from pz_named import named_axes as nx
from pz_nn._side_inputs import required
from pz_nn._stacked_state import StackedStateVariable, write_slice
from pz_nn.kv_cache import known_index, require_room

Cache = tuple[nx.NamedArray, nx.NamedArray]


class Write(NamedTuple):
    """A checked write of new keys and values.

    Attributes:
        update: New keys and values.
        axis: The token axis.
        start: Where they begin.
        overflow: Whether they do not fit: None where that is known to be false, else traced.
    """

    update: tuple[nx.NamedArrayBase, nx.NamedArrayBase]
    axis: str
    start: Any
    overflow: Any


def end_index(side_inputs: dict[str, Any], key: Hashable, layer: str) -> Any:
    """The index at which new tokens are written, as an int where it is known.

    Raises:
        KeyError: If the side input is missing.
        TypeError: If it is neither an integer scalar nor a named array without positional axes.
    """
    index = required(side_inputs, key, layer)
    if nx.is_namedarray(index):
        if index.named_shape and not index.positional_shape:
            return index
        index = index.data_array
    if isinstance(index, jax.core.Tracer):
        shape, integral = index.shape, jnp.issubdtype(index.dtype, jnp.integer)
    else:
        concrete = np.asarray(index)
        shape, integral = concrete.shape, jnp.issubdtype(concrete.dtype, jnp.integer)
    if shape or not integral:
        raise TypeError(
            f"{layer}: side input {key!r} must be an integer scalar, or a named array of integers with "
            f"batch axes only; it is a {type(index).__name__} of shape {shape}. Name its axes: "
            f"wrap(index, 'batch')."
        )
    return index if isinstance(index, jax.core.Tracer) else operator.index(int(index))


def plan_write(variable: Any, update: Any, axis: str, start: Any, layer: str) -> Write:
    """Checks that new keys and values fit the caches.

    Args:
        variable: The state variable with (keys, values).
        update: New (keys, values).
        axis: The token axis.
        start: As `end_index` returns it.
        layer: Name of the layer, for messages.

    Raises:
        KVCacheOverflowError: If `start` is known and there is no room.
        TypeError: If there are more new tokens than places, or a dtype differs.
        ValueError: If axes differ.
    """
    capacity, tokens = require_fit(variable, update, axis, layer), update[0].named_shape[axis]
    if tokens > capacity:
        raise TypeError(
            f"{layer}: {tokens} new tokens cannot be cached in {capacity} places. Build the cache with "
            f"cache_len={tokens} or more."
        )
    require_room(layer, start, tokens, capacity)
    overflow = None
    if known_index(start) is None:
        overflow = start + tokens > capacity
    return Write(update, axis, start, overflow)


def require_fit(variable: Any, update: Any, axis: str, layer: str) -> int:
    """Checks names, sizes and dtypes of new keys and values; returns the number of places.

    Raises:
        TypeError: If a dtype differs.
        ValueError: If axes differ.
    """
    specs = _cache_specs(variable)
    for what, new, cached in zip(("keys", "values"), update, specs, strict=True):
        _require_fit(layer, what, new, cached, axis)
    return specs[0].shape[axis]


def write(variable: Any, plan: Write) -> Cache:
    """Writes, and returns the caches of this layer as they stand then."""
    specs = _cache_specs(variable)
    new = tuple(
        _with_axes(update, spec.shape, plan.axis)
        for update, spec in zip(plan.update, specs, strict=True)
    )
    starts: dict[Hashable, Any] = {plan.axis: plan.start}
    if nx.is_namedarray(plan.start):
        variable.value = tuple(
            map(_write_rows, variable.value, new, [plan.axis] * 2, [plan.start] * 2)
        )
    elif isinstance(variable, StackedStateVariable):
        variable.update_slice(new, starts)
    else:
        variable.value = tuple(map(write_slice, variable.value, new, [starts] * 2))
    keys, values = variable.value
    return keys, values


def nan_where(overflow: Any, output: Any) -> Any:
    """The output with NaN in the rows that overflowed; itself where `overflow` is None."""
    if overflow is None:
        return output

    flags = overflow.data_array if nx.is_namedarray(overflow) else overflow
    nan_or_zero: Any = jnp.where(flags, jnp.nan, 0.0)
    if nx.is_namedarray(overflow):
        named: Any = overflow
        nan_or_zero = dataclasses.replace(named, data_array=nan_or_zero)

    def poison(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf + nan_or_zero.astype(leaf.dtype)

    return jax.tree.map(poison, output, is_leaf=nx.is_namedarray)


class _Spec(NamedTuple):
    shape: dict[Any, int]
    dtype: Any


def _cache_specs(variable: Any) -> tuple[_Spec, _Spec]:
    """Axes and dtypes of one layer's caches, without reading a slice of a stacked one."""
    stacked = isinstance(variable, StackedStateVariable)
    skipped = variable.indices if stacked else {}
    caches = variable.stacked if stacked else variable.value
    keys, values = (
        _Spec({n: s for n, s in c.named_shape.items() if n not in skipped}, c.dtype) for c in caches
    )
    return keys, values


def _require_fit(layer: str, what: str, new: Any, cache: _Spec, axis: str) -> None:
    shape = new.named_shape
    if axis not in shape:
        raise ValueError(
            f"{layer}: the new {what} must have the axis {axis!r} along which they are cached, but have "
            f"named_shape={shape}. Give the layer the token axis of its keys as sequence_axis."
        )
    unfit = {n: s for n, s in shape.items() if n != axis and cache.shape.get(n) != s}
    if unfit:
        raise ValueError(
            f"{layer}: axes {unfit} of the new {what} differ from the cache; new "
            f"named_shape={shape}, cache named_shape={cache.shape}. Build the cache for them: every "
            "axis but the tokens' belongs in cached_axes, batch axes included."
        )
    if new.dtype != cache.dtype:
        raise TypeError(
            f"{layer}: the new {what} are {new.dtype}, but the cache is {cache.dtype}. Build the cache "
            f"with cache_dtype={new.dtype}, or cast the {what}."
        )


def _with_axes(new: nx.NamedArrayBase, shape: Mapping[Any, int], axis: str) -> nx.NamedArrayBase:
    """New keys or values, repeated along the cache's axes that they lack."""
    if all(name in new.named_shape for name in shape):
        return new
    return new.broadcast_to((), {**shape, axis: new.named_shape[axis]})


def _write_rows(
    cache: nx.NamedArrayBase, new: nx.NamedArrayBase, axis: str, starts: nx.NamedArrayBase
) -> nx.NamedArray:
    """Writes each row at its own start; rows are mapped over, the result is laid out as the cache."""

    def write_row(row: jax.Array, update: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(row, update, (start,))

    written = nx.nmap(write_row)(cache.untag(axis), new.untag(axis), starts).tag(axis)
    laid_out: nx.NamedArray = written.order_like(cache)
    return laid_out


def size_along(variable: Any, axis: str) -> int | None:
    """The size of the caches along an axis; None for a slot without a value."""
    if not isinstance(variable, (AbstractVariable, AbstractVariableValue)):
        return None
    return _cache_specs(variable)[0].shape[axis]
