"""Turns the attention layers of a model into ones with key/value caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pz_core.selectors import select
from pz_models.transformer.model_parts import TransformerMetadata
from pz_nn.attention import (
    ApplyCausalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    Attention,
    KVCachingAttention,
)
from pz_nn.layer_stack import layerstack_axes_from_keypath

__all__ = ["CACHE_END", "KV_POSITIONS", "with_caches"]

CACHE_END = "cache_end_index"
KV_POSITIONS = "kv_token_positions"
_QUERY_POSITIONS = "token_positions"


def with_caches(
    body: Any,
    metadata: TransformerMetadata,
    *,
    cache_len: int,
    batch_axes: Mapping[str, int],
    label_prefix: str,
) -> Any:
    """The body with every `Attention` replaced by its caching form, with empty caches.

    Args:
      body: The body of a model, edited or not. What is not attention stays, by identity.
      metadata: Tells the sizes of keys and values.
      cache_len: Capacity.
      batch_axes: Batch axes of the tokens, with sizes.
      label_prefix: Cache n is labelled `f"{label_prefix}/cache_{n}"`, n in tree order.

    Raises:
      ValueError: A causal mask reads other key positions than the query's, so that it is not
        known what it should read when keys are cached.
    """
    found = select(body).at_instances_of(Attention)
    cached = {}
    for index, (path, attention) in enumerate(found.get_by_path().items()):
        cached[path] = KVCachingAttention.from_uncached(
            _with_kv_positions(attention),
            sequence_axis="seq",
            cache_len=cache_len,
            cached_axes={
                **batch_axes,
                **metadata.common_head_axes,
                "projection": metadata.projection_dim,
            },
            cache_end_index_key=CACHE_END,
            cache_dtype=metadata.activation_dtype,
            cache_label=f"{label_prefix}/cache_{index}",
            layerstack_axes=layerstack_axes_from_keypath(path),
        )
    return found.set_by_path(cached)


def _with_kv_positions(attention: Attention) -> Attention:
    """Points the causal masks at the positions of the whole cache."""

    def convert(mask: Any) -> Any:
        if mask.kv_positions_input_name != _QUERY_POSITIONS:
            raise ValueError(
                "from_uncached: a causal mask reads the positions of keys from"
                f" {mask.kv_positions_input_name!r}; only {_QUERY_POSITIONS!r} can be converted to"
                f" a cache. The mask is {mask!r}."
            )
        return dataclasses.replace(mask, kv_positions_input_name=KV_POSITIONS)

    masks = ApplyCausalAttentionMask | ApplyCausalSlidingWindowAttentionMask
    converted: Attention = select(attention).at_instances_of(masks).apply(convert)
    return converted
