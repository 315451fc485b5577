"""Quantiles by axis name, with masks.

Example:
    >>> import pz_named as nx
    >>> nx.median(nx.wrap([[3.0, 1.0, 7.0]], "row", "column"), "column").unwrap("row").tolist()
    [3.0]
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pz_named._arguments import names_in
from pz_named._layout import NamedLeaf
from pz_named._packing import names_first, pack
from pz_named.lifting import nmap
from pz_named.reductions import Axes

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["median", "quantile"]


def median(
    x: NamedArrayBase, axis: Axes = None, *, where: Any = None, keepdims: bool = False
) -> NamedArrayBase:
    """The median over names: `quantile(x, 0.5, axis)`.

    Example:
        >>> import pz_named as nx
        >>> nx.median(nx.wrap([3.0, 1.0, 7.0], "row"), "row").unwrap().item()
        3.0
    """
    return quantile(x, 0.5, axis, where=where, keepdims=keepdims)


def quantile(
    x: NamedArrayBase,
    q: Any,
    axis: Axes = None,
    *,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """A quantile over names, linearly interpolated.

    Args:
      x: The array; NaN anywhere gives NaN, and so does an axis of size 0.
      q: Which quantile, from 0 to 1: a number, a named array (its names are matched), or an array
        (its axes become the first positional axes of the result).
      axis: Names to reduce; None for all.
      where: What counts, a mask matched by name; NaN where nothing counts.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.quantile(nx.wrap([0.0, 1.0, 5.0], "row"), 0.25, "row").unwrap().item()
        0.5
    """
    names = names_in("quantile", x, axis)
    count = len(names)
    flat = functools.partial(_quantile, count=count)
    values = x.untag_prefix(*names)
    if where is not None:
        mask: Any = where if isinstance(where, NamedLeaf) else pack(jnp.asarray(where), ())
        rank = len(x.positional_shape)
        missing = {name: None for name in names if name not in mask.named_shape}
        padded = mask[(None,) * (rank - len(mask.positional_shape)) + (...,)][missing]
        result = nmap(flat)(values, q, padded.untag_prefix(*names))
    else:
        result = nmap(flat)(values, q)
    return _with_size_one(result, x, names) if keepdims else result


def _with_size_one(result: Any, x: NamedArrayBase, names: Any) -> NamedArrayBase:
    order = [name for name in x.named_shape if name in result.named_shape or name in names]
    extra = [name for name in result.named_shape if name not in order]
    wide = result[{name: None for name in names}]
    return pack(names_first(wide, [*order, *extra])[0], [*order, *extra])


# Compiled as a whole, as jnp.quantile is: a call outside jit is one program instead of twenty.
@functools.partial(jax.jit, static_argnames="count")
def _quantile(values: Any, q: Any, mask: Any = None, *, count: int) -> Any:
    """The quantile over the first `count` axes, of the values that the mask marks."""
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        values = values.astype(jnp.result_type(float))
    rest = values.shape[count:]
    merged = (math.prod(values.shape[:count]), *rest)  # -1 would fail beside an axis of size 0
    if 0 in merged:
        return jnp.full((*jnp.shape(q), *rest), jnp.nan, values.dtype)
    if mask is None:
        return jnp.quantile(values.reshape(merged), q, axis=0)
    mask = jnp.broadcast_to(mask, values.shape).reshape(merged)
    values = values.reshape(merged)
    has_nan = jnp.any(jnp.isnan(values) & mask, axis=0)
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0)
    total = jnp.sum(mask, axis=0)
    position = jnp.asarray(q)[(...,) + (None,) * len(rest)] * jnp.maximum(total - 1, 0)
    below = jnp.floor(position).astype(int)
    above = jnp.minimum(below + 1, jnp.maximum(total - 1, 0))
    weight = (position - below).astype(values.dtype)

    def at(index: Any) -> Any:
        flat = index.reshape((math.prod(jnp.shape(q)), *rest))
        return jnp.take_along_axis(ordered, flat, axis=0).reshape(index.shape)

    low, high = at(below), at(above)
    result = jnp.where(weight == 0, low, low * (1 - weight) + high * weight)
    return jnp.where((total == 0) | has_nan, jnp.nan, result)
