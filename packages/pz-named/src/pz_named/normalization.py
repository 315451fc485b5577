"""Softmax and standardization over names.

Example:
    >>> import pz_named as nx
    >>> scores = nx.wrap([[0.0, 0.0]], "query", "key")
    >>> nx.softmax(scores, "key").unwrap("query", "key").tolist()
    [[0.5, 0.5]]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pz_named._aligned import align
from pz_named._arguments import names_in
from pz_named._packing import names_first, pack
from pz_named.reductions import Axes

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["log_softmax", "softmax", "standardize"]


def _over(
    what: str, fun: Callable[..., Any], x: NamedArrayBase, axis: Axes, where: Any, **options: Any
) -> NamedArrayBase:
    """Applies `fun(data, axis=..., where=...)`, which keeps the shape, over names."""
    names = names_in(what, x, axis)
    if where is None:
        data, layout = names_first(x)
        order = layout.names
    else:
        (data, mask), order = align(what, x, where)
        shape = np.broadcast_shapes(data.shape, np.shape(mask))
        data = jax.numpy.broadcast_to(data, shape)
        options["where"] = mask
    axes = tuple(order.index(name) for name in names)
    return pack(fun(data, axis=axes, **options), order)


def softmax(x: NamedArrayBase, axis: Axes, *, where: Any = None) -> NamedArrayBase:
    """Exponentials that sum to 1 over names, `exp(x) / sum(exp(x))`.

    Args:
      x: The array.
      axis: Names to sum over; None for all.
      where: What takes part, a mask matched by name; elsewhere the result is 0.

    Returns:
      The weights, in the shape of `x`.

    Raises:
      ValueError: For an unknown name.
    """
    return _over("softmax", jax.nn.softmax, x, axis, where)


def log_softmax(x: NamedArrayBase, axis: Axes, *, where: Any = None) -> NamedArrayBase:
    """The logarithm of `softmax`, computed without overflow.

    Args:
      x: The array.
      axis: Names to sum over; None for all.
      where: What takes part, a mask matched by name; elsewhere the result is -inf.

    Returns:
      The logarithms, in the shape of `x`.

    Raises:
      ValueError: For an unknown name.
    """
    return _over("log_softmax", jax.nn.log_softmax, x, axis, where)


def standardize(
    x: NamedArrayBase, axis: Axes, *, epsilon: float = 1e-5, where: Any = None
) -> NamedArrayBase:
    """Shifts and scales to mean 0 and variance 1 over names, `(x - mean) / sqrt(var + epsilon)`.

    Args:
      x: The array.
      axis: Names to take the mean and variance over; None for all.
      epsilon: What keeps the divisor away from 0.
      where: What takes part in mean and variance, a mask matched by name.

    Returns:
      The standardized values, in the shape of `x`.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.standardize(nx.wrap([1.0, 3.0], "row"), "row", epsilon=0.0).unwrap("row").tolist()
        [-1.0, 1.0]
    """
    return _over("standardize", _standardize, x, axis, where, epsilon=epsilon)


def _standardize(data: Any, axis: Any, epsilon: float, where: Any = None) -> Any:
    mean = data.mean(axis, keepdims=True, where=where)
    centred = data - mean
    variance = (centred * centred).mean(axis, keepdims=True, where=where)
    return centred * jax.lax.rsqrt(variance + epsilon)
