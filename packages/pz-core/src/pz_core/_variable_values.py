"""What variables do to the values and the metadata that they are given."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from pz_core._text import describe_type

__all__ = ["as_arrays", "fresh_containers"]


def _leaf_as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def as_arrays(label: Hashable, value: Any) -> Any:
    """Returns the tree in fresh containers, with every leaf as a JAX array."""
    if isinstance(value, jax.Array):
        return value
    try:
        leaves, treedef = jax.tree_util.tree_flatten(value)
        return jax.tree_util.tree_unflatten(treedef, [_leaf_as_array(leaf) for leaf in leaves])
    except (TypeError, ValueError) as exc:
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            try:
                _leaf_as_array(leaf)
            except (TypeError, ValueError):
                raise TypeError(
                    f"The value of the variable labelled {label!r} must be a pytree of arrays and "
                    f"numbers; value{jax.tree_util.keystr(path)} is a {describe_type(leaf)}. Keep "
                    f"what is no array in the metadata, or in a static field."
                ) from exc
        raise


def fresh_containers(value: Any) -> Any:
    """Returns a value with its dictionaries, lists and sets copied, at any depth of nesting."""
    if type(value) is dict:
        return {key: fresh_containers(item) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(fresh_containers, value))
    return set(value) if type(value) is set else value
