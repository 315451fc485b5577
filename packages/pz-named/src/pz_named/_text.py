"""The one-line text of a named array; it never copies a large array and works under tracing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._layout import NamedLeaf

__all__ = ["one_line"]

_MOST_VALUES = 12
_LONGEST_VALUES = 80


def _values(data: Any) -> str:
    """A few concrete values in brackets, or nothing."""
    if isinstance(data, jax.Array):
        if isinstance(data, jax.core.Tracer) or not data.is_fully_addressable or data.is_deleted():
            return ""
        if jnp.issubdtype(data.dtype, jax.dtypes.extended):
            return ""
    elif not isinstance(data, np.ndarray):
        return ""
    if not 0 < data.size <= _MOST_VALUES:
        return ""
    text = " ".join(np.array2string(np.asarray(data), precision=4, separator=",").split())
    return f" {text}" if len(text) <= _LONGEST_VALUES else ""


def one_line(x: Any) -> str:
    """`<NamedArray float32(2 | batch:3) (wrapping jax.Array)>`, with the values where they are few."""
    assert isinstance(x, NamedLeaf)
    data = x.data_array
    kind = "jax.Array" if isinstance(data, jax.Array) else type(data).__name__
    if isinstance(data, jax.core.Tracer):
        kind = type(data).__name__
    elif isinstance(data, np.ndarray):
        kind = "numpy.ndarray"
    try:
        layout = x._layout()
    except ValueError:
        return f"<{type(x).__name__} invalid (wrapping {kind})>"
    positional = ", ".join(map(str, layout.positional_shape))
    named = ", ".join(f"{name}:{size}" for name, size in layout.named_shape.items())
    shape = f"{positional} | {named}".strip() if positional or named else ""
    values = _values(data) if layout.shape == data.shape else ""
    return f"<{type(x).__name__} {data.dtype}({shape}){values} (wrapping {kind})>"
