"""Which dtype a computation runs in, and which one its result has."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def upcast(data: jax.Array, compute_dtype: Any) -> tuple[jax.Array, Any]:
    """Prepares data for a computation that low precision would spoil.

    Args:
        data: Any real or complex array.
        compute_dtype: Lowest dtype to compute in, or None for the dtype of the data.

    Returns:
        The data in the promotion of its own dtype and `compute_dtype`, and the dtype to cast the result
        to: that of the data, or the default float for integers.
    """
    if not jnp.issubdtype(data.dtype, jnp.inexact):
        data = data.astype(jnp.result_type(float))
    result_dtype = data.dtype
    if compute_dtype is None:
        return data, result_dtype
    return data.astype(jnp.promote_types(result_dtype, compute_dtype)), result_dtype
