"""A key/value cache for sliding windows: it holds the window instead of the whole sequence.

Token i is written at place i mod C, over the token that has left the window. Memory, and the cost of a
step, then follow the window and not the length of the text:

    caching = RingKVCachingAttention.from_uncached(
        local_attention, "seq", cache_len=1024, cached_axes=axes, cache_end_index_key="cache_end_index"
    )

A single new token is written in place and attends to the ring. Several at once (a prompt) attend to the
old ring and to themselves side by side, because later ones may overwrite what earlier ones still see.

Rows may end at different places (a named index): each then has a ring of its own. Padding at the end of
a row, position -1, is not written, so that the row goes on where its text ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn import _cache_writes
from pz_nn._attention_positions import named_side_input
from pz_nn._cache_building import CacheLayout, attention_parts
from pz_nn.attention import Attention
from pz_nn.attention_masks import ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask
from pz_nn.kv_cache import CachingLayer, known_index, require_room

__all__ = ["RingKVCachingAttention"]


@pytree_dataclass
class RingKVCachingAttention(CachingLayer):
    """Attention with a ring buffer for keys and values, for layers with a sliding window.

    It is called like `KVCachingAttention`: with the index n at which new tokens begin, and with positions
    of the keys over the *whole* sequence (so that both kinds of layers can share side inputs). The layer
    picks from these the positions of what its ring holds, and hands them to its mask.

    Attributes:
        input_to_query: Input → queries.
        input_to_key: Input → keys.
        input_to_value: Input → values.
        query_key_to_attn: (queries, cached keys) → attention weights, with a sliding-window mask.
        attn_value_to_output: (attention weights, cached values) → output.
        sequence_axis: The axis of tokens in keys, values and caches.
        kv_cache_end_index_key: Name of the side input n: an int, a scalar array, or a named array with
            batch axes only, where rows end at different places.
        kv_positions_input_name: Name of the side input with the positions of the keys, the one that the
            mask reads; the axis `sequence_axis` counts all tokens that there will ever be.
        kv_cache: State variable with the cached keys and values, C places each.
    """

    input_to_query: Any
    input_to_key: Any
    input_to_value: Any
    query_key_to_attn: Any
    attn_value_to_output: Any
    sequence_axis: str = dataclasses.field(metadata={"pytree_node": False})
    kv_cache_end_index_key: Hashable = dataclasses.field(metadata={"pytree_node": False})
    kv_positions_input_name: str = dataclasses.field(metadata={"pytree_node": False})
    kv_cache: Any

    def __call__(self, x: Any, /, **side_inputs: Any) -> Any:
        """Adds the new tokens to the ring and attends to the window before them.

        Args:
            x: Input of the new tokens.
            **side_inputs: n, the positions of all keys, and what the parts read.

        Returns:
            The output for the new tokens; NaN in rows where n is traced and the positions end before the
            new tokens.

        Raises:
            KeyError: If n or the positions are missing.
            KVCacheOverflowError: If n is known and the positions end before the new tokens.
            TypeError: If n has positional axes or is no integer, or a dtype differs from the cache's.
            ValueError: If axes of keys or values differ from the cache's.
        """
        name, axis = type(self).__name__, self.sequence_axis
        start = _cache_writes.end_index(side_inputs, self.kv_cache_end_index_key, name)
        positions = named_side_input(self, side_inputs, self.kv_positions_input_name, axis)
        query = self.input_to_query(x, **side_inputs)
        new = (self.input_to_key(x, **side_inputs), self.input_to_value(x, **side_inputs))
        capacity = _cache_writes.require_fit(self.kv_cache, new, axis, name)
        tokens, length = new[0].named_shape[axis], positions.named_shape[axis]
        require_room(name, start, tokens, length)
        if tokens == 1:
            plan = _cache_writes.Write(new, axis, start % capacity, None)
            keys, values = _cache_writes.write(self.kv_cache, plan)
            held = _tokens_in_ring(start, axis, capacity)
        else:
            last = _last_with_position(positions, axis, start + tokens)
            keys, values, held = self._attend_beside(new, start, last, capacity)
        seen = {self.kv_positions_input_name: _positions_of(held, positions, axis)}
        attn = self.query_key_to_attn((query, keys), **{**side_inputs, **seen})
        output = self.attn_value_to_output((attn, values), **side_inputs)
        overflow = None if known_index(start) is not None else start + tokens > length
        return _cache_writes.nan_where(overflow, output)

    def _attend_beside(
        self, new: Any, start: Any, last: Any, capacity: int
    ) -> tuple[Any, Any, nx.NamedArrayBase]:
        """Writes several tokens; returns old ring and new tokens side by side, and which those are."""
        axis, tokens = self.sequence_axis, new[0].named_shape[self.sequence_axis]
        old = tuple(self.kv_cache.value)
        before = _tokens_in_ring(start - 1, axis, capacity)
        if tokens == 0:
            return *old, before
        after = _tokens_in_ring(last, axis, capacity)
        place = nx.nmap(jnp.clip)(after - start, 0, tokens - 1)

        def updated(cached: Any, update: Any) -> Any:
            picked = update[{axis: place}]
            return nx.nmap(jnp.where)(after >= start, picked, cached).order_like(cached)

        self.kv_cache.value = tuple(map(updated, old, new))
        keys, values = (nx.concatenate(pair, axis) for pair in zip(old, new, strict=True))
        held = nx.concatenate([before, start + nx.arange(axis, tokens)], axis)
        return keys, values, held

    def state_updated_in_place(self) -> tuple[Any, ...]:
        """The cache: layer stacks let this layer write into the stacked buffer."""
        return (self.kv_cache,)

    def capacity(self, side_inputs: Mapping[str, Any]) -> int | None:
        """How many tokens have positions; the ring itself has no end."""
        positions = side_inputs.get(self.kv_positions_input_name)
        return (
            positions.named_shape.get(self.sequence_axis) if nx.is_namedarray(positions) else None
        )

    @classmethod
    def from_uncached(
        cls,
        original: Attention,
        sequence_axis: str,
        cache_len: int,
        cached_axes: dict[str, int],
        cache_end_index_key: Hashable,
        cache_dtype: Any = jnp.float32,
        cache_label: Hashable | None = None,
        layerstack_axes: dict[str, int] | None = None,
        value_axes: dict[str, int] | None = None,
        kv_positions_input_name: str = "kv_token_positions",
    ) -> Self:
        """The form of a sliding-window attention layer that caches in a ring, with an empty ring.

        Args:
            original: Its parts are reused; its mask must be an `ApplyCausalSlidingWindowAttentionMask`,
                which will read `kv_positions_input_name`.
            sequence_axis: The axis of tokens in keys and values.
            cache_len: Places in the ring, at least the window.
            cached_axes: Sizes of all other axes of keys and values, batch axes included.
            cache_end_index_key: Name of the side input that tells at which index new tokens begin.
            cache_dtype: The dtype of keys and values.
            cache_label: Label of the state variable; by default one made up.
            layerstack_axes: Axes of the layer stacks around the layer, outermost first.
            value_axes: Sizes of all other axes of the values, where they differ from the keys'.
            kv_positions_input_name: Name of the side input with the positions of all keys.

        Returns:
            The layer.

        Raises:
            ValueError: If the layer has no sliding window, or one larger than the ring.
        """
        layout = CacheLayout(
            sequence_axis, cache_len, cached_axes, value_axes, layerstack_axes, cache_dtype
        )
        parts = attention_parts(original)
        parts["query_key_to_attn"] = _with_window(
            original.query_key_to_attn, cache_len, kv_positions_input_name
        )
        return cls(
            **parts,
            sequence_axis=sequence_axis,
            kv_cache_end_index_key=cache_end_index_key,
            kv_positions_input_name=kv_positions_input_name,
            kv_cache=layout.empty(f"{cls.__name__}.from_uncached", cache_label),
        )


def _tokens_in_ring(last: Any, axis: str, capacity: int) -> Any:
    """The index of the token that stands at each place when `last` was the last; negative if none."""
    return last - (last - nx.arange(axis, capacity)) % capacity


def _last_with_position(positions: nx.NamedArrayBase, axis: str, end: Any) -> Any:
    """The index before `end` of the last token that is no padding; -1 if there is none."""
    index = nx.arange(axis, positions.named_shape[axis])
    filled = nx.nmap(jnp.where)((positions >= 0) & (index < end), index, -1)
    return filled.untag(axis).max(initial=-1)


def _positions_of(held: Any, positions: nx.NamedArrayBase, axis: str) -> Any:
    """Positions of the tokens `held`, -1 where there is none."""
    index = nx.nmap(jnp.clip)(held, 0, positions.named_shape[axis] - 1)
    return nx.nmap(jnp.where)(held >= 0, positions[{axis: index}], -1)


def _with_window(part: Any, cache_len: int, kv_positions_input_name: str) -> Any:
    """The part with its masks reading `kv_positions_input_name`.

    Raises:
        ValueError: If there is no sliding window, or one that exceeds `cache_len`.
    """
    kinds = (ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask)
    leaves, structure = jax.tree.flatten(part, is_leaf=lambda x: isinstance(x, kinds))
    windows = [x for x in leaves if isinstance(x, ApplyCausalSlidingWindowAttentionMask)]
    if not windows:
        raise ValueError(
            "RingKVCachingAttention.from_uncached: the layer must have an "
            "ApplyCausalSlidingWindowAttentionMask, because a ring forgets what has left the window; it "
            "has none. Use KVCachingAttention for full attention."
        )
    for mask in windows:
        size = mask.sliding_window_size
        data = size.data_array if nx.is_namedarray(size) else size
        if not isinstance(data, jax.core.Tracer) and int(jnp.max(jnp.asarray(data))) > cache_len:
            raise ValueError(
                f"RingKVCachingAttention.from_uncached: the ring must hold the window, but cache_len is "
                f"{cache_len} and the window {data}. Build it with cache_len={data} or more."
            )
    renamed = [
        dataclasses.replace(x, kv_positions_input_name=kv_positions_input_name)
        if isinstance(x, kinds)
        else x
        for x in leaves
    ]
    return jax.tree.unflatten(structure, renamed)
