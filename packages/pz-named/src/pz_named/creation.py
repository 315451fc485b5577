"""New named arrays from shapes given by name.

Example:
    >>> import pz_named as nx
    >>> nx.zeros({"batch": 2, "feature": 3}).named_shape
    {'batch': 2, 'feature': 3}
"""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pz_named._arguments import require_named
from pz_named._layout import is_size, rule_broken_by_name
from pz_named.arrays import NamedArray, NamedArrayBase, wrap
from pz_named.axis_names import AxisName

__all__ = ["arange", "full", "full_like", "linspace", "ones", "ones_like", "zeros", "zeros_like"]


def checked_sizes(what: str, named_shape: Mapping[AxisName, int]) -> dict[AxisName, int]:
    """The named shape with plain integer sizes.

    Raises:
      ValueError: For an integer as a name or a size that is none.
      TypeError: When it is no mapping.
    """
    if not isinstance(named_shape, Mapping):
        raise TypeError(
            f"{what}: named_shape must be a mapping from names to sizes; it is {named_shape!r}. "
            'Write {"name": size}.'
        )
    sizes: dict[AxisName, int] = {}
    for name, size in named_shape.items():
        if (rule := rule_broken_by_name(name)) is not None:
            raise ValueError(f"{what}: {rule}; named_shape={dict(named_shape)!r}.")
        if not is_size(size):
            raise ValueError(
                f"{what}: the size of axis {name!r} must be an integer; it is {size!r}."
            )
        sizes[name] = operator.index(size) if hasattr(size, "__index__") else size
        if isinstance(sizes[name], int) and sizes[name] < 0:
            raise ValueError(f"{what}: the size of axis {name!r} is negative: {size!r}.")
    return sizes


def full(named_shape: Mapping[AxisName, int], fill_value: Any, dtype: Any = None) -> NamedArray:
    """An array of one value.

    Args:
      named_shape: Sizes by name; the result's names are in this order.
      fill_value: The value, or an array that broadcasts against the sizes by position.
      dtype: The dtype; default that of `fill_value`.

    Returns:
      The array, without positional axes.

    Raises:
      ValueError: For an integer as a name or an unfit size.
    """
    sizes = checked_sizes("full", named_shape)
    data = jnp.full(tuple(sizes.values()), fill_value, dtype)
    return NamedArray(collections.OrderedDict(sizes), data)


def zeros(named_shape: Mapping[AxisName, int], dtype: Any = None) -> NamedArray:
    """An array of zeros; see `full`."""
    sizes = checked_sizes("zeros", named_shape)
    return NamedArray(collections.OrderedDict(sizes), jnp.zeros(tuple(sizes.values()), dtype))


def ones(named_shape: Mapping[AxisName, int], dtype: Any = None) -> NamedArray:
    """An array of ones; see `full`."""
    sizes = checked_sizes("ones", named_shape)
    return NamedArray(collections.OrderedDict(sizes), jnp.ones(tuple(sizes.values()), dtype))


def arange(
    name: AxisName, start: Any, stop: Any = None, step: Any = None, dtype: Any = None
) -> NamedArray:
    """`jnp.arange` with its axis named.

    Args:
      name: The axis.
      start: The first value, or the end (excluded) when `stop` is not given.
      stop: The end, excluded.
      step: The distance between values.
      dtype: The dtype.

    Returns:
      An array with the one axis `name`.
    """
    if stop is None and step is None and not isinstance(start, jax.core.Tracer):
        start = max(start, 0)  # jax 0.8 refuses a negative end, which leaves no elements
    return wrap(jnp.arange(start, stop, step, dtype)).tag(name)


def linspace(
    name: AxisName,
    start: Any,
    stop: Any,
    size: int,
    *,
    endpoint: bool = True,
    dtype: Any = None,
) -> NamedArray:
    """Evenly spaced numbers along a name.

    Args:
      name: The axis.
      start: The first number.
      stop: The last number.
      size: How many.
      endpoint: Whether `stop` is included.
      dtype: The dtype; default JAX's float.

    Returns:
      An array with the one axis `name`.

    Example:
        >>> import pz_named as nx
        >>> nx.linspace("step", 0.0, 1.0, 3).unwrap("step").tolist()
        [0.0, 0.5, 1.0]
    """
    return wrap(jnp.linspace(start, stop, operator.index(size), endpoint, dtype=dtype)).tag(name)


def full_like(x: NamedArrayBase, fill_value: Any, dtype: Any = None) -> NamedArrayBase:
    """An array of one value with the names, positional axes and structure of another.

    Args:
      x: The array to imitate; it may be abstract.
      fill_value: The number.
      dtype: The dtype; default that of `x`.

    Returns:
      An array with the treedef of `x`.

    Example:
        >>> import pz_named as nx
        >>> nx.full_like(nx.arange("row", 2), 7).unwrap("row").tolist()
        [7, 7]
    """
    require_named("full_like", x)
    data = jnp.full(x.data_array.shape, fill_value, x.dtype if dtype is None else dtype)
    return dataclasses.replace(x, data_array=data)  # type: ignore[type-var]


def zeros_like(x: NamedArrayBase, dtype: Any = None) -> NamedArrayBase:
    """An array of zeros like another; see `full_like`."""
    return full_like(x, 0, dtype)


def ones_like(x: NamedArrayBase, dtype: Any = None) -> NamedArrayBase:
    """An array of ones like another; see `full_like`."""
    return full_like(x, 1, dtype)
