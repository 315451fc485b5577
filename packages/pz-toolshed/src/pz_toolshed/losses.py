"""Losses for language models on padded and packed batches.

The idea: a loss is a sum and a count, so that batches of different size, and texts packed into one
row, average rightly.

    from pz_toolshed.losses import next_token_loss

    def loss_fn(model, state, rng, tokens, segment_ids):
        loss = next_token_loss(model(tokens), tokens, segment_ids=segment_ids)
        return loss.mean, state, {"tokens": loss.count}
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from pz_named import named_axes as nx
from pz_named.named_axes import NamedArrayBase, nmap

__all__ = ["TokenLoss", "next_token_loss"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """A loss summed over tokens.

    Attributes:
      total: Sum over all counted tokens, in nats; a float32 scalar.
      count: How many tokens were counted; a float32 scalar.
    """

    total: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """Loss per counted token; 0 where there is none."""
        return self.total / jnp.maximum(self.count, 1)

    @property
    def perplexity(self) -> jax.Array:
        """The exponential of the mean: among how many equally likely tokens the model wavers."""
        return jnp.exp(self.mean)


def next_token_loss(
    logits: NamedArrayBase,
    tokens: NamedArrayBase,
    *,
    segment_ids: NamedArrayBase | None = None,
    loss_mask: NamedArrayBase | None = None,
    pad_id: int | None = None,
    seq_axis: Hashable = "seq",
    vocabulary_axis: Hashable = "vocabulary",
) -> TokenLoss:
    """Cross entropy of each token given those before it.

    The logits at position `i` are compared with the token at `i + 1`; the last position has no
    successor and is not counted. With `l` the logits and `t` the next token, the loss of a position
    is `logsumexp(l) - l[t]`, in float32.

    Args:
      logits: Named array {..., seq, vocabulary}, of any floating dtype.
      tokens: Named integer array {..., seq}.
      segment_ids: For packed batches, named integers {..., seq}: which text each token is from, 0 for
        padding. The first token of a text is not predicted from the text before, nor is padding.
      loss_mask: Named array {..., seq}, true (or a weight) where a token counts as a target.
      pad_id: Token that does not count as a target, for padded batches.
      seq_axis: Name of the sequence axis.
      vocabulary_axis: Name of the vocabulary axis.

    Returns:
      Sum and number (or sum of weights) of the counted tokens.

    Raises:
      ValueError: If an axis is missing.
    """
    for what, array, axes in (
        ("logits", logits, (seq_axis, vocabulary_axis)),
        ("tokens", tokens, (seq_axis,)),
        ("segment_ids", segment_ids, (seq_axis,)),
        ("loss_mask", loss_mask, (seq_axis,)),
    ):
        for axis in axes:
            if array is not None and axis not in array.named_shape:
                raise ValueError(
                    f"next_token_loss: {what} must have the axis {axis!r}; its axes are "
                    f"{array.named_shape}. Name the axis, or give its name (seq_axis, "
                    "vocabulary_axis)."
                )
    loss: TokenLoss = _token_loss(
        logits, tokens, segment_ids, loss_mask, pad_id, seq_axis, vocabulary_axis
    )
    return loss


# Compiled as a whole, so that an eager call is one small program.
@functools.partial(jax.jit, static_argnames=("pad_id", "seq_axis", "vocabulary_axis"))
def _token_loss(
    logits: Any,
    tokens: Any,
    segment_ids: Any,
    loss_mask: Any,
    pad_id: int | None,
    seq_axis: Hashable,
    vocabulary_axis: Hashable,
) -> TokenLoss:
    # Targets are moved rather than logits cut off: a cut would copy the largest array of a training
    # step, forwards and backwards.
    targets = _moved_forward(tokens, seq_axis)
    has_target = (
        nx.arange(seq_axis, tokens.named_shape[seq_axis]) < tokens.named_shape[seq_axis] - 1
    )
    weights = has_target.astype(jnp.float32).broadcast_like(targets)
    if pad_id is not None:
        weights = weights * (targets != pad_id)
    if segment_ids is not None:
        next_ids = _moved_forward(segment_ids, seq_axis)
        weights = weights * (segment_ids == next_ids) * (next_ids != 0)
    if loss_mask is not None:
        weights = weights * _moved_forward(loss_mask, seq_axis).astype(jnp.float32)
    losses = nmap(_cross_entropy)(logits.untag(vocabulary_axis), targets, weights)
    return TokenLoss(_sum_all(losses), _sum_all(weights.broadcast_like(losses)))


def _moved_forward(array: NamedArrayBase, axis: Hashable) -> NamedArrayBase:
    """At each position the entry of the next one; at the last position the first entry."""
    moved: NamedArrayBase = nmap(lambda row: jnp.roll(row, -1))(array.untag(axis)).tag(axis)
    return moved


def _cross_entropy(logits: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    # What does not count may hold infinities; 0 * inf would be NaN, in the gradient as well.
    logits = jnp.where(weight > 0, logits, 0).astype(jnp.float32)
    return (jax.nn.logsumexp(logits) - logits[target]) * weight


def _sum_all(array: NamedArrayBase) -> jax.Array:
    total: jax.Array = jnp.sum(array.unwrap(*array.named_shape))
    return total
