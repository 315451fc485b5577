"""Lifting of one `jax.Array` method to named arrays; shared by the method mixins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp

from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["lift_method"]


@functools.lru_cache(maxsize=256)
def _lifted(method: str) -> Callable[..., Any]:
    def call(array: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(jnp.asarray(array), method)(*args, **kwargs)

    call.__name__ = call.__qualname__ = method
    return nmap(call)


def lift_method(method: str, x: Any, /, *args: Any, **options: Any) -> NamedArrayBase:
    """Calls a `jax.Array` method on the positional axes of `x`.

    Args:
      method: The method's name.
      x: A named array.
      *args: Its positional arguments.
      **options: Its keywords; None stands for JAX's default, so that each JAX version is asked
        only for what it knows.

    Returns:
      The method's result, lifted.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return cast("NamedArrayBase", _lifted(method)(x, *args, **given))
