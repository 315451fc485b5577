"""Activation functions by our names, and HuggingFace's names for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError

__all__ = ["ACTIVATIONS", "huggingface_activation", "read_activation"]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_approx": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
_HUGGINGFACE = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_new": "gelu_approx",
    "gelu_pytorch_tanh": "gelu_approx",
    "gelu_fast": "gelu_approx",
    "gelu_accurate": "gelu_approx",
    "gelu_python_tanh": "gelu_approx",
    "relu": "relu",
}


def read_activation(
    reader: ConfigReader, field: str, default: str, allowed: Iterable[str] = ACTIVATIONS
) -> Any:
    """Our name of the activation that a field names.

    Args:
      reader: The configuration.
      field: The field.
      default: Its value where it is absent, in HuggingFace's spelling.
      allowed: Those of our names that the family has.

    Raises:
      UnsupportedConfigError: There is no such activation here.
    """
    name = reader.get(field, str, default)
    known = [theirs for theirs, ours in _HUGGINGFACE.items() if ours in allowed]
    if name not in known:
        raise UnsupportedConfigError(
            f"{reader.source}: {field!r} is {name!r}, an activation that is not supported here;"
            f" supported are {', '.join(known)}."
        )
    return _HUGGINGFACE[name]


def huggingface_activation(name: str) -> str:
    """HuggingFace's name of one of ours; the name itself if there is none."""
    if name == "gelu_approx":
        return "gelu_pytorch_tanh"  # the one of its names that all families take
    return next((theirs for theirs, ours in _HUGGINGFACE.items() if ours == name), name)
