"""The only way in which pz_viz brings array data to the host.

Every view states how many elements it may copy. Tracers, abstract, deleted and multi-host arrays
are never read: `unreadable_reason` says why in a word that the renderings print.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

__all__ = ["HostCopyError", "array_of", "to_host", "unreadable_reason"]


class HostCopyError(ValueError):
    """A view was asked to read an array that cannot be read, or one that is too large.

    Raised for example by `attention_view(weights, tokens)` where `weights` is a tracer, a
    `jax.ShapeDtypeStruct`, a donated array, or larger than the view's budget. Compute the array
    first, outside of `jax.jit`, or slice it: `weights[{"layer": slice(0, 4)}]`.
    """


def array_of(value: Any) -> Any:
    """The array inside a named array, or the value itself."""
    return getattr(value, "data_array", value)


def unreadable_reason(array: Any) -> str | None:
    """Why the data cannot be read: "tracer", "deleted", "multi-host", "abstract", or None."""
    if isinstance(array, jax.core.Tracer):
        return "tracer"
    if isinstance(array, jax.ShapeDtypeStruct):
        return "abstract"
    if isinstance(array, jax.Array):
        if array.is_deleted():
            return "deleted"
        if not (array.is_fully_addressable or array.is_fully_replicated):
            return "multi-host"
        return None
    if isinstance(array, (np.ndarray, np.generic, bool, int, float, complex)):
        return None
    return "abstract"


def to_host(value: Any, budget: int, what: str) -> np.ndarray[Any, Any]:
    """Copies an array to the host.

    Args:
      value: A jax or numpy array, or a Python scalar or nested list of numbers.
      budget: The most elements that may be copied.
      what: The argument's name, for errors.

    Returns:
      The data as a numpy array; bfloat16 and the small float formats as float32.

    Raises:
      HostCopyError: If the data cannot be read, or has more than `budget` elements.
    """
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    reason = unreadable_reason(value)
    if reason is not None:
        raise HostCopyError(
            f"{what}: a view shows values, and this {type(value).__name__} has none to read "
            f"({reason}). Pass a computed array, from outside of jax.jit."
        )
    size = int(np.prod(np.shape(value), dtype=np.int64))
    if size > budget:
        raise HostCopyError(
            f"{what}: the array has {size:_} elements of shape {np.shape(value)}; this view copies "
            f"at most {budget:_} to the host. Slice or reduce it first."
        )
    host = np.asarray(jax.device_get(value))
    if host.dtype.kind not in "biufc":  # bfloat16 and the float8 family are void to numpy
        host = host.astype(np.float32)
    return host
