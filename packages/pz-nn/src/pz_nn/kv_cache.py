"""Key/value caches: what is checked of their room, when, and how to ask in advance.

`lax.dynamic_update_slice` moves a write that does not fit back until it does, over entries that are
still needed. Our caches never do that silently:

* where the index is known (a Python or NumPy integer, a concrete array) a write that does not fit is a
  `KVCacheOverflowError`, before anything runs;
* where it is traced, the outputs of the tokens concerned are NaN, and `kv_cache_overflows` gives the
  flag to return from a compiled loop:

    overflowed = kv_cache_overflows(model, new_tokens=1, cache_end_index=n)   # bool, or a traced one
"""

from __future__ import annotations

import abc
import typing
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named import named_axes as nx
from pz_nn._stacked_state import LayerWithStateInPlace

__all__ = ["CachingLayer", "KVCacheOverflowError", "kv_cache_overflows"]


class KVCacheOverflowError(ValueError):
    """More tokens were given to a key/value cache than it has places left.

    Bad: a cache of 16 places, 12 of them filled, and 8 new tokens:

        caching_layer(x, cache_end_index=12)

    Repair: build the cache with room for prompt and continuation together
    (`KVCachingAttention.from_uncached(..., cache_len=20)`), or pass fewer tokens.
    """


class CachingLayer(LayerWithStateInPlace):
    """Base of the attention layers with a key/value cache."""

    sequence_axis: str
    kv_cache_end_index_key: Hashable

    @abc.abstractmethod
    def capacity(self, side_inputs: Mapping[str, Any]) -> int | None:
        """How many tokens may be given to the cache in all; None where that cannot be told.

        Args:
            side_inputs: The side inputs of the call.
        """

    @typing.final
    def prepare_for_stack(self, argument: Any, side_inputs: dict[str, Any]) -> dict[str, Any]:
        """Checks the room while the index may still be known, and makes a known index an array."""
        end_index, capacity = side_inputs.get(self._key), self.capacity(side_inputs)
        known = None if end_index is None else known_index(end_index)
        if known is None:
            return side_inputs
        if capacity is not None and nx.is_namedarray(argument):
            require_room(
                type(self).__name__,
                known,
                argument.named_shape.get(self.sequence_axis, 0),
                capacity,
            )
        if isinstance(end_index, int):
            return {**side_inputs, self._key: jnp.asarray(end_index, jnp.int32)}
        return side_inputs

    @property
    def _key(self) -> Any:
        return self.kv_cache_end_index_key


def known_index(index: Any) -> int | None:
    """The (largest) index as an integer, or None where it is traced."""
    data = index.data_array if nx.is_namedarray(index) else index
    if isinstance(data, jax.core.Tracer):
        return None
    return int(np.max(np.asarray(data), initial=0))


def require_room(layer: str, index: Any, tokens: int, capacity: int) -> None:
    """Raises `KVCacheOverflowError` if the index is known and the tokens do not fit."""
    known = known_index(index)
    if known is not None and known + tokens > capacity:
        raise KVCacheOverflowError(
            f"{layer}: the key/value cache has {capacity} places, {known} are filled, and {tokens} new "
            f"tokens do not fit. Build it with cache_len={known + tokens} or more "
            f"({layer}.from_uncached), or pass fewer tokens."
        )


def kv_cache_overflows(model: Any, new_tokens: int, **side_inputs: Any) -> bool | jax.Array:
    """Whether a call with `new_tokens` more tokens would exceed a key/value cache of the model.

    Args:
        model: A tree that holds caching attention layers, their caches bound or frozen.
        new_tokens: How many tokens the next call adds.
        **side_inputs: The side inputs of that call; only the index of the caches' end is read.

    Returns:
        A bool where the index is known, else a traced boolean scalar: the flag for compiled loops.
        False for a model without caches.

    Raises:
        KeyError: If the index of a cache's end is not among the side inputs.

    >>> from pz_nn.attention import Attention, KVCachingAttention
    >>> layer = Attention.from_config("attn", None, embedding_dim=8, num_heads=2)
    >>> axes = {"heads": 2, "projection": 4}
    >>> cached = KVCachingAttention.from_uncached(layer, "seq", 16, axes, "cache_end_index")
    >>> kv_cache_overflows(cached, new_tokens=4, cache_end_index=12)
    False
    >>> kv_cache_overflows(cached, new_tokens=5, cache_end_index=12)
    True
    """
    flag: bool | jax.Array = False
    for layer in _caching_layers(model):
        index, capacity = side_inputs[layer._key], layer.capacity(side_inputs)
        if capacity is not None:
            flag = flag | (_largest(index) + new_tokens > capacity)
    return flag


def _largest(index: Any) -> Any:
    """The largest index, an integer where it is known, else a traced scalar."""
    known = known_index(index)
    if known is not None:
        return known
    return jnp.max(index.data_array) if nx.is_namedarray(index) else index


def _caching_layers(model: Any) -> list[CachingLayer]:
    leaves = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, CachingLayer))
    return [leaf for leaf in leaves if isinstance(leaf, CachingLayer)]
