"""What an array's summary says of its values, and the values that an open node shows.

Small arrays are summarised on the host. Larger ones are reduced where they lie, and only the
handful of results is copied. Nothing is computed under tracing or for data that cannot be read.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from treescope.external import jax_support

from pz_viz.host_copies import unreadable_reason

__all__ = ["statistics_text", "values_text"]

HOST_SUMMARY_BUDGET = 100_000
"""The most elements that a summary copies to the host."""

_HINTS = {
    "tracer": "",  # the class name already says so
    "abstract": "",
    "deleted": " - deleted!",
    "multi-host": " - multi-host array!",
}


def statistics_text(array: Any) -> str:
    """Mean, deviation, bounds and counts, with a leading space; or why there are none.

    Which arrays are small enough is treescope's setting,
    `treescope.external.jax_support.summarization_threshold` (100,000 elements on a CPU).

    Args:
      array: What a named array or a struct holds: a jax or numpy array, a tracer, anything.

    Returns:
      For example ` ≈0.0 ±1.0 [≥-2.3, ≤2.1] nonzero:64`, ` - deleted!`, or the empty string.
    """
    reason = unreadable_reason(array)
    if reason is not None:
        return _HINTS[reason]
    kind = _kind(array.dtype)
    if kind is None:
        return ""
    if array.size == 0:
        return " empty"
    if not _small_enough(array):
        return " - too large to summarize"
    if isinstance(array, np.ndarray) or array.size <= HOST_SUMMARY_BUDGET:
        results = _reduce(np.asarray(array), kind, np)
    else:
        with jax.ensure_compile_time_eval():  # concrete data, though tracing may be on
            results = jax.device_get(_reduce_on_device(array, kind))
    return _sentence(kind, {name: np.asarray(x).item() for name, x in results.items()})


def _small_enough(array: Any) -> bool:
    if isinstance(array, jax.Array):
        return bool(jax_support.safe_to_summarize(array))
    limits = jax_support.summarization_threshold.get()
    limit = limits.get("numpy", limits["default"])
    return limit is None or bool(array.size < limit)


def _kind(dtype: Any) -> str | None:
    for kind, parent in (("float", jnp.floating), ("int", jnp.integer), ("bool", jnp.bool_)):
        if jnp.issubdtype(dtype, parent):
            return kind
    return None


def _reduce(x: Any, kind: str, xp: Any) -> dict[str, Any]:
    if x.dtype.kind not in "biuf" or x.dtype == np.float16:
        # Narrow types: numpy cannot reduce some, and a sum of halves would overflow.
        x = x.astype(np.float32 if kind == "float" else np.int32)
    if kind == "bool":
        true = xp.count_nonzero(x)
        return {"true": true, "false": x.size - true}
    nonzero = xp.count_nonzero(x)
    results = {"min": x.min(), "max": x.max(), "nonzero": nonzero, "zero": x.size - nonzero}
    if kind == "int":
        return results
    finite = xp.isfinite(x)
    count = xp.count_nonzero(finite)
    some = xp.maximum(count, 1)
    kept = xp.where(finite, x, 0)
    mean = kept.sum() / some
    spread = xp.sqrt(xp.where(finite, xp.square(kept - mean), 0).sum() / some)
    numbers = xp.isnan(x)
    return results | {
        "min": xp.where(numbers, xp.inf, x).min(),
        "max": xp.where(numbers, -xp.inf, x).max(),
        "mean": mean,
        "std": spread,
        "finite": count,
        "nan": xp.count_nonzero(numbers),
        "inf": xp.count_nonzero(x == xp.inf),
        "-inf": xp.count_nonzero(x == -xp.inf),
    }


@functools.partial(jax.jit, static_argnums=1)
def _reduce_on_device(x: jax.Array, kind: str) -> dict[str, Any]:
    return _reduce(x, kind, jnp)


def _sentence(kind: str, results: dict[str, Any]) -> str:
    parts = []
    if kind == "float" and results["finite"]:
        parts.append(f"≈{results['mean']:.2} ±{results['std']:.2}")
        parts.append(f"[≥{results['min']:.2}, ≤{results['max']:.2}]")
    elif kind == "int":
        parts.append(f"[≥{results['min']:_d}, ≤{results['max']:_d}]")
    counts = ("zero", "nonzero", "nan", "inf", "-inf", "true", "false")
    parts += [f"{name}:{results[name]:_d}" for name in counts if results.get(name)]
    return "".join(f" {part}" for part in parts)


def values_text(array: jax.Array) -> str:
    """The array's repr; of a large one only the values at its edges leave the device.

    Args:
      array: A concrete, readable array.
    """
    options = np.get_printoptions()
    if array.size <= options["threshold"]:
        return repr(array)
    if _kind(array.dtype) is None:
        return f"{array.size:_} elements of {array.dtype}"
    edge = options["edgeitems"]
    with jax.ensure_compile_time_eval():
        for axis, size in enumerate(array.shape):
            if size > 2 * edge + 1:
                kept = np.r_[: edge + 1, size - edge : size]  # one more stands for the omitted ones
                array = jnp.take(array, kept, axis=axis)
        host = np.asarray(array)
    values = np.array2string(host, prefix="Array(", suffix=",", separator=", ", threshold=0)
    return f"Array({values}, dtype={array.dtype})"
