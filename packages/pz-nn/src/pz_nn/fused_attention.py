"""Attention in one fused kernel, as an explicit change of a model.

    fast = use_fused_attention(select(model))      # or any selection inside the model

Logits, biases such as ALiBi, mask, softmax and the mixing of values become one
`jax.nn.dot_product_attention`, which never writes the attention matrix to memory where the backend has
such a kernel. Logits and softmax are then computed in float32 at least, which may differ in the last
digits. A site where something else reads or changes logits or weights (a soft cap, a saver, a sink) is
refused: it needs the matrix.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp

from pz_core.selectors import Selection
from pz_core.struct import Struct, pytree_dataclass
from pz_named import named_axes as nx
from pz_nn._attention_roles import attention_roles
from pz_nn._axes import as_names
from pz_nn.attention import Attention, KVCachingAttention
from pz_nn.attention_bias import ApplyAttentionBias
from pz_nn.attention_masks import ApplyAttentionMask
from pz_nn.basic_ops import Softmax
from pz_nn.contraction import NamedEinsum
from pz_nn.grouping import Sequential, is_sequential_or_named
from pz_nn.layer import Layer
from pz_nn.ring_cache import RingKVCachingAttention

__all__ = [
    "FusedAttentionError",
    "FusedMixValues",
    "PendingAttention",
    "PrepareAttention",
    "use_fused_attention",
]


class FusedAttentionError(ValueError):
    """An attention layer needs its explicit weights and cannot be fused.

    Bad: a model whose attention logits pass through a soft cap:

        use_fused_attention(select(model))

    Repair: leave those layers out of the selection, or take the layer that reads or changes the weights
    out first.
    """


@pytree_dataclass
class PendingAttention(Struct):
    """Queries, keys and what may be seen: attention that waits for its values.

    Attributes:
        query: The queries.
        key: The keys.
        bias: Named array that is added to the logits, or None.
        keep: Boolean named array, or None where everything may be seen.
    """

    query: Any
    key: Any
    bias: Any
    keep: Any


@pytree_dataclass
class PrepareAttention(Layer):
    """Takes the place of einsum, biases, masks and softmax: (queries, keys) → `PendingAttention`.

    Attributes:
        biases: What is added to the logits first.
        masks: The masks.
    """

    biases: list[ApplyAttentionBias]
    masks: list[ApplyAttentionMask]

    def __call__(self, query_and_key: Any, /, **side_inputs: Any) -> PendingAttention:
        """Collects biases and masks."""
        query, key = query_and_key
        biases = [part.bias(side_inputs) for part in self.biases]
        keeps = [part.keep_mask(side_inputs) for part in self.masks]
        return PendingAttention(
            query,
            key,
            functools.reduce(operator.add, biases) if biases else None,
            functools.reduce(operator.and_, keeps) if keeps else None,
        )


@pytree_dataclass
class FusedMixValues(Layer):
    """Takes the place of the einsum that mixes values: (`PendingAttention`, values) → mixed values.

    Attributes:
        token_axis: The axis of tokens in queries, keys and values.
        kv_token_axis: The name that it has on the side of the keys, in biases and masks.
        shared_head_axes: Axes of the heads that queries, keys and values have.
        query_head_axes: Axes of the heads that only the queries have.
        feature_axis: The axis that queries and keys are contracted over.
        value_axis: The axis of the values' features.
        implementation: As in `jax.nn.dot_product_attention`; None lets JAX choose.
    """

    token_axis: str = dataclasses.field(metadata={"pytree_node": False})
    kv_token_axis: str = dataclasses.field(metadata={"pytree_node": False})
    shared_head_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    query_head_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    feature_axis: str = dataclasses.field(metadata={"pytree_node": False})
    value_axis: str = dataclasses.field(metadata={"pytree_node": False})
    implementation: Literal["xla", "cudnn"] | None = dataclasses.field(
        default=None, metadata={"pytree_node": False}
    )

    def __call__(self, pending_and_value: Any, /, **_side_inputs: Any) -> nx.NamedArray:
        """Computes attention.

        Returns:
            The mixed values: batch axes, tokens, axes of the heads, features of the values.
        """
        pending, value = pending_and_value
        heads = (*self.shared_head_axes, *self.query_head_axes)
        own = {*heads, self.token_axis, self.feature_axis}
        batch = {n: s for n, s in pending.query.named_shape.items() if n not in own}
        sizes = {**pending.query.named_shape}
        query = _grouped(pending.query, batch, self.token_axis, heads, self.feature_axis)
        key = _grouped(
            pending.key, batch, self.token_axis, self.shared_head_axes, self.feature_axis
        )
        values = _grouped(value, batch, self.token_axis, self.shared_head_axes, self.value_axis)
        over_logits = functools.partial(self._over_logits, pending, batch, heads)
        arrays = (query, key, values, over_logits(pending.bias))
        mixed = self._kernel(arrays, over_logits(pending.keep))  # {batch, tokens, heads, features}
        names = (*batch, self.token_axis, *heads, self.value_axis)
        shape = [*(sizes[name] for name in names[:-1]), mixed.shape[-1]]
        return nx.wrap(mixed.reshape(shape), *names)

    def _kernel(self, arrays: Any, keep: jax.Array | None) -> jax.Array:
        """JAX's function on (queries, keys, values, bias or None) and a mask."""

        def attend(arrays: Any, keep: jax.Array | None) -> jax.Array:
            query, key, values, bias = arrays
            return jax.nn.dot_product_attention(
                query,
                key,
                values,
                bias=None if bias is None else bias.astype(query.dtype),
                mask=keep,
                scale=1.0,
                implementation=self.implementation,
            )

        def attend_in_float32(arrays: Any, keep: jax.Array | None) -> jax.Array:
            wide = jax.tree.map(lambda array: array.astype(jnp.float32), arrays)
            return attend(wide, keep).astype(jnp.float16)

        if arrays[0].dtype != jnp.float16:
            return attend(arrays, keep)
        # On CPUs JAX 0.10 refuses products of float16 that are summed in float32.
        mixed: jax.Array = jax.lax.platform_dependent(
            arrays, keep, cpu=attend_in_float32, default=attend
        )
        return mixed

    def _over_logits(
        self,
        pending: PendingAttention,
        batch: Mapping[Any, int],
        heads: Sequence[str],
        array: nx.NamedArrayBase | None,
    ) -> jax.Array | None:
        """A bias or mask as {batch, heads, tokens, keys}, batch and heads 1 where it does not vary."""
        if array is None:
            return None
        sizes = {**pending.query.named_shape}
        group_sizes = []
        for group in (tuple(batch), tuple(heads)):
            varies = any(name in array.named_shape for name in group)
            if varies:
                array = array.broadcast_to((), {name: sizes[name] for name in group})
            group_sizes.append(math.prod(sizes[name] for name in group) if varies else 1)
        keys = pending.key.named_shape[self.token_axis]
        tail: dict[Any, int] = {self.token_axis: sizes[self.token_axis], self.kv_token_axis: keys}
        array = array.broadcast_to((), tail)
        order = [n for n in (*batch, *heads, *tail) if n in array.named_shape]
        laid_out: jax.Array = array.unwrap(*order).reshape(*group_sizes, *tail.values())
        return laid_out


def _grouped(
    array: nx.NamedArrayBase, batch: Mapping[Any, int], token: str, heads: Sequence[str], last: str
) -> jax.Array:
    """An array as {batch, tokens, heads, features}."""
    data = array.unwrap(*batch, token, *heads, last)
    shape = array.named_shape
    grouped: jax.Array = data.reshape(
        math.prod(batch.values()), shape[token], math.prod(shape[h] for h in heads), shape[last]
    )
    return grouped


def use_fused_attention(
    selection: Selection[Any], implementation: Literal["xla", "cudnn"] | None = None
) -> Any:
    """Puts fused attention into every attention layer inside a selection.

    Args:
        selection: Parts of a model; all attention layers in them are changed, cached ones too.
        implementation: As in `jax.nn.dot_product_attention`; None lets JAX choose.

    Returns:
        The model.

    Raises:
        FusedAttentionError: If a site needs its explicit weights; nothing is changed then.
        ValueError: If there is no attention layer.

    >>> from pz_core.selectors import select
    >>> layer = Attention.from_config("attn", None, embedding_dim=8, num_heads=2)
    >>> type(use_fused_attention(select(layer)).query_key_to_attn).__name__
    'PrepareAttention'
    """
    kinds = (Attention, KVCachingAttention, RingKVCachingAttention)
    layers = selection.at_instances_of(kinds)
    if layers.is_empty():
        raise ValueError(
            "use_fused_attention: the selection holds no attention layer. Select a part of the model that "
            "does, for example the whole: select(model)."
        )

    def fuse(path: Any, layer: Any) -> Any:
        return _fused(layer, jax.tree_util.keystr(path), implementation)

    return layers.apply(fuse, with_keypath=True)


def _fused(layer: Any, where: str, implementation: Any) -> Any:
    to_logits, *changes = _flat(layer.query_key_to_attn)
    mix, *rest = _flat(layer.attn_value_to_output)
    *parts, softmax = changes or [None]
    biases, masks = _biases_and_masks(parts, softmax, where)
    if not isinstance(to_logits, NamedEinsum) or not isinstance(mix, NamedEinsum):
        _refuse(where, "logits or mixed values are not made by a NamedEinsum")
    roles = attention_roles(to_logits, mix)
    if roles is None:
        _refuse(where, "its einsums are not those of attention")
    if not isinstance(softmax, Softmax) or as_names(softmax.axes) != (roles.kv_token_axis,):
        _refuse(where, f"the weights are made by {type(softmax).__name__}")
    return dataclasses.replace(
        layer,
        query_key_to_attn=PrepareAttention(biases, masks),
        attn_value_to_output=Sequential(
            [FusedMixValues(*roles, implementation=implementation), *rest]
        ),
    )


def _biases_and_masks(
    parts: Sequence[Any], softmax: Any, where: str
) -> tuple[list[ApplyAttentionBias], list[ApplyAttentionMask]]:
    """What stands between logits and softmax: biases, then masks, and nothing else."""
    biases: list[ApplyAttentionBias] = []
    masks: list[ApplyAttentionMask] = []
    for part in parts:
        if isinstance(part, Softmax):
            _refuse(where, f"{type(softmax).__name__} follows its softmax")
        if isinstance(part, ApplyAttentionMask):
            masks.append(part)
        elif not isinstance(part, ApplyAttentionBias):
            _refuse(where, f"{type(part).__name__} reads or changes the logits")
        elif masks:
            # The kernel adds first and masks then; the other way round, masked places are biased too.
            _refuse(where, f"{type(part).__name__} follows a mask")
        else:
            biases.append(part)
    return biases, masks


def _refuse(where: str, reason: str) -> NoReturn:
    raise FusedAttentionError(
        f"use_fused_attention: the attention layer at {where or 'the root'} needs its explicit weights: "
        f"{reason}. Leave it out of the selection, or take that out first."
    )


def _flat(part: Any) -> list[Any]:
    """The layers of a part in order, groups inside groups opened."""
    if not is_sequential_or_named(part):
        return [part]
    return [layer for sublayer in part.sublayers for layer in _flat(sublayer)]
