"""Which dtype a computation runs in, and which one its result has."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def cast(data: jax.Array, dtype: Any) -> jax.Array:
    """The data in a dtype; the data itself if it has it, which saves a step when tracing."""
    return data if data.dtype == dtype else data.astype(dtype)


@functools.lru_cache(maxsize=256)
def is_floating(dtype: Any) -> bool:
    """Whether a dtype is real floating."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


@functools.lru_cache(maxsize=256)
def _computation_dtypes(dtype: Any, compute_dtype: Any) -> tuple[Any, Any]:
    result = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(dtype, jnp.float32)
    wide = result if compute_dtype is None else jnp.promote_types(result, compute_dtype)
    return wide, result


def upcast(data: jax.Array, compute_dtype: Any) -> tuple[jax.Array, Any]:
    """Prepares data for a computation that low precision would spoil.

    Args:
        data: Any real or complex array.
        compute_dtype: Lowest dtype to compute in, or None for the dtype of the data.

    Returns:
        The data in the promotion of its own dtype and `compute_dtype`, and the dtype to cast the result
        to: that of the data, or a float for integers.
    """
    wide, result = _computation_dtypes(data.dtype, compute_dtype)
    return cast(data, wide), result
