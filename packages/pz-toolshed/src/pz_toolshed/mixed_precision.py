"""Computes in a small dtype while the weights are kept and updated in float32.

    loss_fn = mixed_precision.in_dtype(loss_fn, jnp.bfloat16)
    trainer = StatefulTrainer.build(jax.random.key(0), model, optimizer, loss_fn)

The trainer differentiates with respect to the float32 parameters; the cast is part of what is
differentiated, so gradients arrive in float32, and the optimizer never sees the small dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pz_toolshed._array_leaves import is_array

__all__ = ["ComputesInDtype", "cast_floating", "in_dtype"]


def cast_floating(tree: Any, dtype: Any) -> Any:
    """Converts the floating-point arrays of a tree; variables and all else stay.

    Args:
      tree: A pytree; frozen parameters are part of it, mutable variables are not.
      dtype: The new dtype.

    Returns:
      The tree with the arrays converted.
    """

    def cast(leaf: Any) -> Any:
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(dtype)
        return leaf

    return jax.tree_util.tree_map(cast, tree)


@dataclasses.dataclass(frozen=True)
class ComputesInDtype:
    """A loss function whose model and arguments are converted first.

    Equal wrappers of one loss function are equal, so making one anew does not compile again.

    Attributes:
      loss_fn: The loss function, as `basic_training.LossFunction`.
      dtype: The dtype to compute in.
    """

    loss_fn: Callable[..., Any]
    dtype: Any

    def __call__(self, *, model: Any, state: Any, rng: Any, **kwargs: Any) -> Any:
        """Calls the loss function; the loss it returns is converted to float32."""
        model, kwargs = cast_floating((model, kwargs), self.dtype)
        results = self.loss_fn(model=model, state=state, rng=rng, **kwargs)
        if not isinstance(results, tuple) or len(results) != 3:
            return results  # the trainer says what is wrong with it
        loss, state, aux = results
        return cast_floating(loss, jnp.float32), state, aux


def in_dtype(loss_fn: Callable[..., Any], dtype: Any = jnp.bfloat16) -> ComputesInDtype:
    """Makes a loss function compute in a dtype.

    Args:
      loss_fn: A loss function for `StatefulTrainer`.
      dtype: The dtype for parameters, constants and floating-point arguments.

    Returns:
      The loss function for mixed precision.

    Raises:
      ValueError: If the dtype is not a floating-point one.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"in_dtype: the dtype must be a floating-point one such as jnp.bfloat16, got {dtype}."
        )
    return ComputesInDtype(loss_fn, jnp.dtype(dtype))
