"""Checks of the numbers that an adapter is built from."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax

__all__ = ["check_options"]


def check_options(call: str, *, rank: Any, alpha: Any, dropout: Any) -> None:
    """Raises if an adapter cannot be built from these; arrays as alpha or dropout are not looked into.

    Args:
      call: What the error says was called.
      rank: Should be a whole number, at least 1.
      alpha: None, or a finite number other than 0.
      dropout: None, or a number; `StochasticDropout` knows which.

    Raises:
      TypeError: If something is no number, or the rank no whole one.
      ValueError: If the rank or alpha is out of its range.
    """
    if not isinstance(rank, numbers.Integral) or isinstance(rank, bool):
        raise TypeError(
            f"{call}: rank must be a whole number, got {rank!r} of type {type(rank).__name__}. Give "
            "an int, e.g. rank=8."
        )
    if rank < 1:
        raise ValueError(
            f"{call}: rank must be at least 1, got {rank}. Leave the layer as it is for rank 0."
        )
    for name, value in (("alpha", alpha), ("dropout", dropout)):
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (value is None or is_number or isinstance(value, jax.Array)):
            raise TypeError(
                f"{call}: {name} must be a number or None, got {value!r} of type "
                f"{type(value).__name__}. Give a float, e.g. {name}=0.5, or {name}=None for none."
            )
    if isinstance(alpha, numbers.Real) and not (math.isfinite(alpha) and alpha):
        raise ValueError(
            f"{call}: alpha must be a finite number other than 0, got {alpha!r}; the correction is "
            f"scaled by alpha / rank. Give alpha={rank}, or None, not to scale it."
        )
