"""Attention: its data flow, its standard builder, and the form that caches keys and values.

The parts are layers, so a model says in its own tree how queries and keys are made, how they meet and
what masks the result; `Attention` only fixes who feeds whom:

    q, k, v = input_to_query(x), input_to_key(x), input_to_value(x)
    attn = query_key_to_attn((q, k))            # {..., heads, seq, kv_seq}
    out = attn_value_to_output((attn, v))

Masks stand in `pz_nn.attention_masks`, and the causal ones are named here too; biases, ring caches and
fused attention have modules of their own.

Source: Vaswani et al., "Attention Is All You Need" (2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_nn import _attention_builder, _cache_writes
from pz_nn._cache_building import CacheLayout, attention_parts
from pz_nn.attention_masks import (
    ApplyAttentionMask,
    ApplyCausalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    ApplyExplicitAttentionMask,
)
from pz_nn.kv_cache import CachingLayer
from pz_nn.layer import Layer

__all__ = [
    "ApplyAttentionMask",
    "ApplyCausalAttentionMask",
    "ApplyCausalSlidingWindowAttentionMask",
    "ApplyExplicitAttentionMask",
    "Attention",
    "KVCachingAttention",
]


@pytree_dataclass
class Attention(Layer):
    """The data flow of attention; all five parts are layers and receive the side inputs.

        q, k, v = input_to_query(x), input_to_key(x), input_to_value(x)
        out = attn_value_to_output((query_key_to_attn((q, k)), v))

    It masks and scales nothing itself. By convention keys and values have the axis `seq`, and only the
    attention matrix has `kv_seq` (its einsum renames).

    Attributes:
        input_to_query: Input → queries.
        input_to_key: Input → keys.
        input_to_value: Input → values.
        query_key_to_attn: (queries, keys) → attention weights.
        attn_value_to_output: (attention weights, values) → output.
    """

    input_to_query: Any
    input_to_key: Any
    input_to_value: Any
    query_key_to_attn: Any
    attn_value_to_output: Any

    def __call__(self, x: Any, /, **side_inputs: Any) -> Any:
        """Runs queries, keys, values, attention weights and output, in this order."""
        query = self.input_to_query(x, **side_inputs)
        key = self.input_to_key(x, **side_inputs)
        value = self.input_to_value(x, **side_inputs)
        attn = self.query_key_to_attn((query, key), **side_inputs)
        return self.attn_value_to_output((attn, value), **side_inputs)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        embedding_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        projection_dim: int | None = None,
        *,
        mask: Layer | None = None,
        rope: Layer | None = None,
        query_key_norm: bool = False,
        use_bias: bool = False,
        use_output_bias: bool = False,
        query_scale: float | None = None,
        logit_soft_cap: float | None = None,
        logit_bias: Layer | None = None,
        softmax: Layer | None = None,
        context_input_name: str | None = None,
        embedding_axis: str = "embedding",
        seq_axis: str = "seq",
        kv_seq_axis: str = "kv_seq",
        dtype: Any = jnp.float32,
    ) -> Self:
        """Builds multi-head, multi-query or grouped-query attention.

        The queries are projected, normed, rotated and scaled, the keys projected, normed and rotated; then

            logits → soft cap → bias → mask → softmax → mix values → project

        Heads are axes by these rules: `heads` where each has its own keys, `query_heads` (queries only)
        where all share one key/value head, else `head_groups` and, on queries only, `query_heads`.
        Vectors of a head have the axis `projection`.

        Args:
            name: Name of the layer; parameters are `{name}/query.weights` (`key`, `value`, `output`).
            init_base_rng: Key, or None to build the structure only.
            embedding_dim: Size of the embedding axis.
            num_heads: Number of query heads.
            num_kv_heads: Number of key/value heads; by default as many.
            projection_dim: Size of a head; by default embedding_dim / num_heads.
            mask: Layer on the logits; by default a causal mask with -1e30 (-1e4 in float16). Pass
                `Identity()` for none.
            rope: Rotary embedding on the axis `projection`, for queries and keys; by default none.
            query_key_norm: Whether queries and keys get an RMS norm over `projection`.
            use_bias: Whether the three projections have biases.
            use_output_bias: Whether the output projection has one.
            query_scale: Factor on the queries; by default projection_dim ** -0.5.
            logit_soft_cap: Cap on the logits, by tanh; by default none.
            logit_bias: Layer on the logits before the mask, such as `ApplyALiBi`; by default none.
            softmax: Layer instead of `Softmax(kv_seq_axis)`, such as `SoftmaxWithSink`.
            context_input_name: For cross-attention: side input that keys and values are made of, with the
                axes of the input and as many tokens as it likes. There is no mask then by default.
            embedding_axis: Name of the embedding axis of input and output.
            seq_axis: Name of the token axis.
            kv_seq_axis: Name of the token axis on the side of the keys.
            dtype: Dtype of all parameters.

        Returns:
            The layer.

        Raises:
            ValueError: If num_heads is no multiple of num_kv_heads, or embedding_dim none of num_heads
                where projection_dim is not given.

        >>> layer = Attention.from_config("attn", None, embedding_dim=8, num_heads=4, num_kv_heads=2)
        >>> layer.input_to_value.out_axis_names
        ('head_groups', 'projection')
        """
        user = f"{cls.__name__}.from_config({name!r})"
        heads = _attention_builder.head_axes(user, num_heads, num_kv_heads or num_heads)
        if projection_dim is None:
            if embedding_dim % num_heads:
                raise ValueError(
                    f"{user}: without projection_dim, embedding_dim must be a multiple of num_heads, but "
                    f"embedding_dim={embedding_dim} and num_heads={num_heads}. Give projection_dim."
                )
            projection_dim = embedding_dim // num_heads
        if mask is None and context_input_name is None:
            fill = -1e4 if jnp.dtype(dtype) == jnp.float16 else -1e30
            mask = ApplyCausalAttentionMask(fill, seq_axis=seq_axis, kv_seq_axis=kv_seq_axis)
        config = _attention_builder.AttentionConfig(
            embedding_dim=embedding_dim,
            heads=heads,
            projection_dim=projection_dim,
            mask=mask,
            rope=rope,
            query_key_norm=query_key_norm,
            use_bias=use_bias,
            use_output_bias=use_output_bias,
            query_scale=projection_dim**-0.5 if query_scale is None else query_scale,
            logit_soft_cap=logit_soft_cap,
            logit_bias=logit_bias,
            softmax=softmax,
            context_input_name=context_input_name,
            embedding_axis=embedding_axis,
            seq_axis=seq_axis,
            kv_seq_axis=kv_seq_axis,
            dtype=dtype,
        )
        return cls(**_attention_builder.build_parts(name, init_base_rng, config))

    def treescope_color(self) -> str:
        """An orange of the same lightness as the colours of other layers."""
        return "oklch(0.785 0.103 38.5)"


@pytree_dataclass
class KVCachingAttention(CachingLayer):
    """Attention that keeps keys and values of earlier tokens in a state variable.

    Each call computes queries, keys and values of the new tokens alone, writes keys and values into the
    caches at the places n, n + 1, … (n is a side input: how many places were filled before the call),
    and attends to the *whole* caches. Which places are filled is for the mask to know: its positions
    of the keys are a side input over the full cache, -1 where nothing stands. Keys are cached as
    `input_to_key` returns them, after any rotary embedding.

    More tokens than the cache has room for are never clamped: a `KVCacheOverflowError` where n is
    known, and NaN outputs where n is traced (`kv_cache_overflows` tells in advance).

    Attributes:
        input_to_query: Input → queries.
        input_to_key: Input → keys.
        input_to_value: Input → values.
        query_key_to_attn: (queries, all keys) → attention weights.
        attn_value_to_output: (attention weights, all values) → output.
        sequence_axis: The axis of tokens in keys, values and caches.
        kv_cache_end_index_key: Name of the side input n: an int, a scalar array, or a named array with
            batch axes only.
        kv_cache: State variable with the cached keys and values, named arrays.
    """

    input_to_query: Any
    input_to_key: Any
    input_to_value: Any
    query_key_to_attn: Any
    attn_value_to_output: Any
    sequence_axis: str = dataclasses.field(metadata={"pytree_node": False})
    kv_cache_end_index_key: Hashable = dataclasses.field(metadata={"pytree_node": False})
    kv_cache: Any

    def __call__(self, x: Any, /, **side_inputs: Any) -> Any:
        """Adds the new tokens to the caches and attends to all of them.

        Args:
            x: Input of the new tokens.
            **side_inputs: n under `kv_cache_end_index_key`, and what the parts read.

        Returns:
            The output for the new tokens.

        Raises:
            KeyError: If the side input n is missing.
            KVCacheOverflowError: If n is known and the cache has no room.
            TypeError: If the new tokens alone exceed the cache, or dtypes differ.
            ValueError: If axes of keys or values differ from the cache's.
        """
        name = type(self).__name__
        start = _cache_writes.end_index(side_inputs, self.kv_cache_end_index_key, name)
        query = self.input_to_query(x, **side_inputs)
        key = self.input_to_key(x, **side_inputs)
        value = self.input_to_value(x, **side_inputs)
        plan = _cache_writes.plan_write(
            self.kv_cache, (key, value), self.sequence_axis, start, name
        )
        keys, values = _cache_writes.write(self.kv_cache, plan)
        attn = self.query_key_to_attn((query, keys), **side_inputs)
        output = self.attn_value_to_output((attn, values), **side_inputs)
        return _cache_writes.nan_where(plan.overflow, output)

    def state_updated_in_place(self) -> tuple[Any, ...]:
        """The cache: layer stacks let this layer write into the stacked buffer."""
        return (self.kv_cache,)

    def capacity(self, _side_inputs: Mapping[str, Any]) -> int | None:
        """The number of places in the cache; None where no cache is bound."""
        return _cache_writes.size_along(self.kv_cache, self.sequence_axis)

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
    ) -> Self:
        """The caching form of an attention layer, with empty caches.

        Args:
            original: Its parts are reused.
            sequence_axis: The axis of tokens in keys and values.
            cache_len: Capacity: the most tokens that prompt and continuation may have together.
            cached_axes: Sizes of all other axes of keys and values, batch axes included.
            cache_end_index_key: Name of the side input that tells how much is filled.
            cache_dtype: The dtype of keys and values.
            cache_label: Label of the state variable; by default one made up.
            layerstack_axes: Axes of the layer stacks around the layer, outermost first, as given by
                `layerstack_axes_from_keypath`. They come first in the cache, so that each layer's part
                is contiguous.
            value_axes: Sizes of all other axes of the values, where they differ from the keys'.

        Returns:
            The layer, its caches zeros: axes of stacks first, the token axis last in the keys and before
            the last in the values.
        """
        layout = CacheLayout(
            sequence_axis, cache_len, cached_axes, value_axes, layerstack_axes, cache_dtype
        )
        return cls(
            **attention_parts(original),
            sequence_axis=sequence_axis,
            kv_cache_end_index_key=cache_end_index_key,
            kv_cache=layout.empty(f"{cls.__name__}.from_uncached", cache_label),
        )
