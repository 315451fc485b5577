"""Comparing leaves: arrays by value, variables by label and value, anything else by `==`."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.abstract_variables import AbstractVariable

__all__ = ["equal_leaves", "fingerprint", "is_array", "max_abs_difference"]


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _plain(array: Any) -> Any:
    """Returns random keys as numbers, other arrays as they are."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    return array


def _equal_arrays(a: Any, b: Any) -> bool:
    if (
        a.shape != b.shape
        or a.dtype != b.dtype
        or isinstance(a, jax.Array) != isinstance(b, jax.Array)
    ):
        return False
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    a, b = _plain(a), _plain(b)
    nan_is_equal = bool(jnp.issubdtype(a.dtype, jnp.inexact))
    if isinstance(a, jax.Array):
        return bool(jnp.array_equal(a, b, equal_nan=nan_is_equal))
    return np.array_equal(a, b, equal_nan=nan_is_equal)


def equal_leaves(a: Any, b: Any) -> bool:
    """Whether two leaves are the same object, or have the same type and value."""
    if a is b:
        return True
    if is_array(a) and is_array(b):
        return _equal_arrays(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, AbstractVariable):
        return _equal_trees(a.freeze(), b.freeze())
    try:
        return bool(a == b) or (a != a and b != b)
    except (TypeError, ValueError):  # the truth of the comparison is ambiguous
        return False


def _equal_trees(a: Any, b: Any) -> bool:
    leaves_a, treedef_a = jax.tree_util.tree_flatten(a)
    leaves_b, treedef_b = jax.tree_util.tree_flatten(b)
    same_structure = bool(treedef_a == treedef_b)  # type: ignore[operator]
    return same_structure and all(map(equal_leaves, leaves_a, leaves_b))


def max_abs_difference(a: Any, b: Any) -> float | None:
    """Returns the largest absolute difference of two arrays; None where there is none.

    Args:
      a: An array.
      b: Another one.

    Returns:
      NaN if a difference is NaN; None if the shapes differ, or the arrays are empty, being
      traced, or no numbers.
    """
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return None
    a, b = _plain(a), _plain(b)
    is_number = jnp.issubdtype(a.dtype, jnp.number) and jnp.issubdtype(b.dtype, jnp.number)
    if a.shape != b.shape or not a.size or not is_number:
        return None
    # Small types overflow in their own arithmetic; float64 holds all but the largest integers.
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    return float(np.max(np.abs(np.asarray(a).astype(wide) - np.asarray(b).astype(wide))))


def fingerprint(tree: Any) -> Any:
    """Returns a hashable value that is equal for trees of equal structure and leaves."""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    return treedef, tuple(map(_leaf_fingerprint, leaves))


def _leaf_fingerprint(leaf: Any) -> Any:
    if is_array(leaf) and not isinstance(leaf, jax.core.Tracer):
        # `view` needs an axis, and some types (bfloat16) offer no buffer of their own.
        array = np.ascontiguousarray(np.atleast_1d(np.asarray(_plain(leaf))))
        digest = hashlib.blake2b(array.view(np.uint8).data).hexdigest()
        return isinstance(leaf, jax.Array), str(leaf.dtype), leaf.shape, digest
    if isinstance(leaf, AbstractVariable):
        return type(leaf), fingerprint(leaf.freeze())
    try:
        hash(leaf)
    except TypeError:
        return type(leaf), id(leaf)
    return type(leaf), leaf
