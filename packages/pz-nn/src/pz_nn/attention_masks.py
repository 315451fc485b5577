"""Masks for attention logits: causal, windows, explicit, bidirectional, prefix, packed documents, sinks.

All follow `ApplyAttentionMask`. They compare *positions*, which come in as side inputs, never indices:
position -1 marks padding and slots of a cache that nothing has filled, and is never attended.

    ApplyCausalAttentionMask(-1e30)                           # each token sees itself and those before
    ApplyCausalSlidingWindowAttentionMask(-1e30, 1024)        # the same, reaching back 1023 tokens
    ApplyBidirectionalAttentionMask(-1e30)                    # encoders, and cross-attention
    ApplyPrefixAttentionMask(-1e30)                           # prefix language models
    ApplyPackedDocumentAttentionMask(-1e30)                   # several documents in one row
    ApplySlidingWindowWithSinksAttentionMask(-1e30, 1024, 4)  # streaming with attention sinks
"""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn._attention_positions import (
    key_positions,
    named_side_input,
    query_and_key_positions,
)
from pz_nn._axes import Names, broadcast_against, names_and_data, with_names
from pz_nn._side_inputs import required
from pz_nn.layer import Layer

__all__ = [
    "ApplyAttentionMask",
    "ApplyBidirectionalAttentionMask",
    "ApplyCausalAttentionMask",
    "ApplyCausalSlidingWindowAttentionMask",
    "ApplyExplicitAttentionMask",
    "ApplyPackedDocumentAttentionMask",
    "ApplyPrefixAttentionMask",
    "ApplySlidingWindowWithSinksAttentionMask",
]


class ApplyAttentionMask(Layer):
    """Base of the layers that mask attention logits: y = where(keep, logits, masked_out_value).

    A subclass has a field `masked_out_value`, a static number or an array, and says in `keep_mask` which
    entries stay. Axes of the result stand as in the logits; axes that only the mask has follow. A finite
    `masked_out_value` makes the softmax of a row without any kept entry uniform, -inf makes it NaN.
    """

    masked_out_value: Any

    @abc.abstractmethod
    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """Which entries stay.

        Args:
            side_inputs: The side inputs of the call.

        Returns:
            A boolean named array; axes it lacks are broadcast.
        """

    @typing.final
    def __call__(self, logits: Any, /, **side_inputs: Any) -> nx.NamedArray:
        """Replaces the entries that the mask does not keep.

        Args:
            logits: Named array without positional axes.
            **side_inputs: What `keep_mask` reads.

        Returns:
            The masked logits, in the dtype that logits and `masked_out_value` promote to.

        Raises:
            KeyError: If a side input that the mask reads is missing.
        """
        names, data = names_and_data(logits, type(self).__name__)
        keep_names, keep = names_and_data(self.keep_mask(side_inputs), type(self).__name__)
        fill_names: Names = ()
        fill = self.masked_out_value
        if nx.is_namedarray(fill):
            fill_names, fill = names_and_data(fill, type(self).__name__)
        target = tuple(dict.fromkeys((*names, *keep_names, *fill_names)))
        return with_names(
            target,
            jnp.where(
                broadcast_against(keep_names, keep, target),
                broadcast_against(names, data, target),
                broadcast_against(fill_names, fill, target) if fill_names else fill,
            ),
        )


@pytree_dataclass
class ApplyExplicitAttentionMask(ApplyAttentionMask):
    """Masks logits with a mask given as a side input.

    Attributes:
        mask_input_name: The side input: a named array, truthy where an entry stays.
        masked_out_value: What stands in masked places.
    """

    mask_input_name: str = dataclasses.field(metadata={"pytree_node": False})
    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """The given mask."""
        mask = named_side_input(self, side_inputs, self.mask_input_name)
        return mask if mask.dtype == jnp.bool_ else typing.cast(nx.NamedArrayBase, mask != 0)


@pytree_dataclass
class ApplyCausalAttentionMask(ApplyAttentionMask):
    """Lets each query see the keys at its own position and before: keep iff q >= k and k >= 0.

    Attributes:
        masked_out_value: What stands in masked places.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """q >= k and k >= 0, {..., seq, kv_seq}."""
        query, key = query_and_key_positions(self, side_inputs)
        keep: nx.NamedArrayBase = (query >= key) & (key >= 0)
        return keep


@pytree_dataclass
class ApplyCausalSlidingWindowAttentionMask(ApplyAttentionMask):
    """A causal mask that reaches back a limited way: keep iff 0 <= q - k < window and k >= 0.

    A window of w is the token itself and the w - 1 before it.

    Attributes:
        masked_out_value: What stands in masked places.
        sliding_window_size: The window, at least 1: a number, which is static, or for blocks of a layer
            stack that differ in it a named array with the stack axis, a leaf.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    sliding_window_size: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """q >= k, k >= 0 and q - k < window, {..., seq, kv_seq}."""
        query, key = query_and_key_positions(self, side_inputs)
        near = query - key < self.sliding_window_size
        keep: nx.NamedArrayBase = (query >= key) & near & (key >= 0)
        return keep


@pytree_dataclass
class ApplyBidirectionalAttentionMask(ApplyAttentionMask):
    """Lets each query see every key that is no padding: keep iff k >= 0.

    In cross-attention, `kv_positions_input_name` names the positions of the other sequence.

    Attributes:
        masked_out_value: What stands in masked places.
        kv_positions_input_name: Side input with the keys' positions, with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """k >= 0, {..., kv_seq}."""
        keep: nx.NamedArrayBase = key_positions(self, side_inputs) >= 0
        return keep


@pytree_dataclass
class ApplyPrefixAttentionMask(ApplyAttentionMask):
    """Causal, but every query sees the whole prefix: keep iff (q >= k or k < prefix) and k >= 0.

    Attributes:
        masked_out_value: What stands in masked places.
        prefix_length_input_name: Side input with the length of the prefix: an integer, or a named array
            of integers with batch axes.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.

    Reference: Raffel et al., "Exploring the Limits of Transfer Learning" (2020), figure 3.
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    prefix_length_input_name: str = dataclasses.field(
        default="prefix_length", metadata={"pytree_node": False}
    )
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """(q >= k or k < prefix) and k >= 0, {..., seq, kv_seq}."""
        query, key = query_and_key_positions(self, side_inputs)
        prefix = required(dict(side_inputs), self.prefix_length_input_name, type(self).__name__)
        keep: nx.NamedArrayBase = ((query >= key) | (key < prefix)) & (key >= 0)
        return keep


@pytree_dataclass
class ApplyPackedDocumentAttentionMask(ApplyAttentionMask):
    """Causal within documents packed into one row: keep iff q >= k, k >= 0 and doc(q) = doc(k).

    Positions may start again at 0 in each document, as rotary embeddings want.

    Attributes:
        masked_out_value: What stands in masked places.
        document_ids_input_name: Side input with the document that each token belongs to, integers with
            the axis `seq_axis`.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.
        causal: Whether a token sees only tokens before it in its document.
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    document_ids_input_name: str = dataclasses.field(
        default="document_ids", metadata={"pytree_node": False}
    )
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})
    causal: bool = dataclasses.field(default=True, metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """q >= k, k >= 0 and doc(q) = doc(k), {..., seq, kv_seq}."""
        query, key = query_and_key_positions(self, side_inputs)
        ids = named_side_input(self, side_inputs, self.document_ids_input_name, self.seq_axis)
        keep: Any = (ids == ids.untag(self.seq_axis).tag(self.kv_seq_axis)) & (key >= 0)
        if self.causal:
            keep = keep & (query >= key)
        typed: nx.NamedArrayBase = keep
        return typed


@pytree_dataclass
class ApplySlidingWindowWithSinksAttentionMask(ApplyAttentionMask):
    """A causal sliding window that never loses the first tokens.

    Keep iff q >= k, k >= 0, and q - k < window or k < sinks.

    Attributes:
        masked_out_value: What stands in masked places.
        sliding_window_size: The window, at least 1.
        num_sink_tokens: How many tokens at the beginning every query sees.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.

    Reference: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2023).
    """

    masked_out_value: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    sliding_window_size: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    num_sink_tokens: Any = dataclasses.field(metadata={"pytree_node": "unless_number"})
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def keep_mask(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """q >= k, k >= 0, and q - k < window or k < sinks, {..., seq, kv_seq}."""
        query, key = query_and_key_positions(self, side_inputs)
        seen = (query - key < self.sliding_window_size) | (key < self.num_sink_tokens)
        keep: nx.NamedArrayBase = (query >= key) & seen & (key >= 0)
        return keep
