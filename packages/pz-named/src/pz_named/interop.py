"""Exchange with other libraries, and what JAX knows about placement, by axis name.

Example:
    >>> import numpy as np
    >>> import pz_named as nx
    >>> nx.from_dlpack(np.ones((2, 3)), "row", "column").named_shape
    {'row': 2, 'column': 3}
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from pz_named._arguments import require_named
from pz_named.arrays import NamedArray, NamedArrayBase, wrap
from pz_named.axis_names import AxisName

__all__ = ["from_dlpack", "from_xarray", "sharding_of", "to_dlpack", "to_xarray"]


def _xarray() -> ModuleType:
    try:
        return importlib.import_module("xarray")
    except ImportError as exc:
        raise ImportError(
            "to_xarray and from_xarray need xarray, which is not installed: pip install xarray."
        ) from exc


def to_xarray(
    x: NamedArrayBase, *, coords: Mapping[AxisName, Any] | None = None, name: str | None = None
) -> Any:
    """An `xarray.DataArray` with the names as dimensions.

    Args:
      x: An array without positional axes.
      coords: Labels by name, which named arrays do not carry.
      name: The name of the DataArray.

    Returns:
      The DataArray; its data is copied to the host.

    Raises:
      ValueError: When there are positional axes.
      ImportError: When xarray is not installed.
    """
    layout = require_named("to_xarray", x)
    if layout.logical_axes:
        raise ValueError(
            f"to_xarray: every axis needs a name; positional_shape={layout.positional_shape}. Tag "
            "the positional axes first."
        )
    data = jax.device_get(x.unwrap(*layout.names))
    return _xarray().DataArray(data, dims=layout.names, coords=coords, name=name)


def from_xarray(array: Any) -> NamedArray:
    """A named array from an `xarray.DataArray`; its coordinates are dropped.

    Raises:
      TypeError: When it is no DataArray.
      ImportError: When xarray is not installed.
    """
    if not isinstance(array, _xarray().DataArray):
        raise TypeError(
            f"from_xarray: a DataArray is needed; this is {type(array).__name__}. Take one variable "
            "of a Dataset."
        )
    return NamedArray.wrap(array.values, *array.dims)


def from_dlpack(array: Any, *names: AxisName) -> NamedArray:
    """A named array over the memory of another library's array, without a copy where possible.

    Args:
      array: What has `__dlpack__`: an array of torch, NumPy, CuPy, ...
      *names: One name per axis; none keeps all axes positional.

    Returns:
      The named array.
    """
    return wrap(jnp.from_dlpack(array), *names)


def to_dlpack(x: NamedArrayBase, *names: AxisName) -> jax.Array:
    """The plain array, which other libraries take through `from_dlpack`.

    Args:
      x: The array.
      *names: All its names, in the order that the axes shall have. The order is asked for because
        names are lost on the way.

    Returns:
      A JAX array with `__dlpack__`: `torch.from_dlpack(nx.to_dlpack(x, "row", "column"))`.
    """
    require_named("to_dlpack", x)
    return jnp.asarray(x.unwrap(*names))


def sharding_of(x: NamedArrayBase) -> dict[AxisName, tuple[Any, ...]]:
    """How an array is laid out over a mesh of devices, by axis name.

    Args:
      x: A named array with a concrete or traced JAX array, or abstract data with a sharding.

    Returns:
      For each name (and for each positional axis its integer position) the mesh axes that it is
      split over; `()` where it is not split. On a single device nothing is.

    Raises:
      TypeError: When the sharding has no mesh axes to name.

    Example:
        >>> import pz_named as nx
        >>> nx.sharding_of(nx.ones({"batch": 4}))
        {'batch': ()}
    """
    layout = require_named("sharding_of", x)
    data = x.data_array
    traced = isinstance(data, jax.core.Tracer)
    sharding = jax.typeof(data).sharding if traced else getattr(data, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = tuple(sharding.spec) + (None,) * (len(layout.shape) - len(sharding.spec))
    elif sharding is None or isinstance(sharding, jax.sharding.SingleDeviceSharding):
        spec = (None,) * len(layout.shape)
    else:
        raise TypeError(
            f"sharding_of: only a NamedSharding has mesh axes to report; this array has {sharding!r}. "
            "Place it with jax.device_put(x, NamedSharding(mesh, spec))."
        )
    result: dict[AxisName, tuple[Any, ...]] = {}
    axes = [*zip(layout.names, layout.name_axes, strict=True), *enumerate(layout.logical_axes)]
    for name, axis in axes:
        entry = spec[axis]
        result[name] = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
    return result
