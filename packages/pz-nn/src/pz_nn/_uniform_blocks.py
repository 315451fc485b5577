"""Blocks of different kinds: their period, and giving them one structure by turning settings into data.

What can become data, position by position:

* causal masks with and without a window: a window larger than any sequence changes nothing;
* rotary embeddings with different wavelengths or scalings: an array of frequencies, and one of attention
  factors where a scaling has one;
* a rotary embedding in some blocks and `Identity` in others: frequencies of zero turn nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pz_core.variables import LabeledVariable, LabeledVariableValue
from pz_named import named_axes as nx
from pz_nn._block_splitting import is_unit
from pz_nn._rope import attention_scale
from pz_nn.attention_masks import ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask
from pz_nn.embeddings import ApplyRoPE, ApplyRoPEToSubset
from pz_nn.grouping import Identity
from pz_nn.rope_scaling import DefaultScaling

_UNBOUNDED = 2**30  # larger than any sequence, and q - k cannot reach it in int32
_MASKS = (ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask)
_ROTARY = (ApplyRoPE, ApplyRoPEToSubset)
_SETTINGS = (*_MASKS, *_ROTARY, Identity)


def period_of(blocks: Sequence[Any]) -> int:
    """The smallest p such that block i and block i + p have one kind for every i."""
    kinds = [_kind(block) for block in blocks]
    for period in range(1, len(kinds)):
        if all(a == b for a, b in zip(kinds, kinds[period:], strict=False)):
            return period
    return max(len(kinds), 1)


def _kind(block: Any) -> Any:
    """What must agree for blocks to be stacked: structure, static settings, numbers."""
    leaves, structure = jax.tree.flatten(block, is_leaf=is_unit)
    return structure, [_leaf_kind(leaf) for leaf in leaves]


def _leaf_kind(leaf: Any) -> Any:
    if nx.is_namedarray(leaf):
        return leaf.named_shape, leaf.positional_shape, leaf.dtype
    if isinstance(leaf, LabeledVariable) or is_unit(leaf):
        return type(leaf)
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype
    return leaf


class _Known(NamedTuple):
    """What rotary frequencies may need to be known: sizes of axes, and the length of the sequence."""

    sizes: Mapping[Any, int]
    rope_length: int | None


def with_one_structure(
    blocks: Sequence[Any], axis_sizes: Mapping[str, int], rope_length: int | None = None
) -> list[Any]:
    """Blocks with settings that differ between them as arrays.

    Args:
        blocks: The blocks.
        axis_sizes: Sizes of axes that rotary embeddings turn, where no array of the blocks tells them.
        rope_length: The length of sequence for which frequencies that depend on it are computed.

    Raises:
        ValueError: If layers at one place differ in what cannot become data.
    """

    def is_setting(node: Any) -> bool:
        return is_unit(node) or isinstance(node, _SETTINGS)

    flat = [jax.tree_util.tree_flatten_with_path(block, is_leaf=is_setting) for block in blocks]
    structures: list[Any] = [structure for _, structure in flat]
    for index, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                f'restack(form="scanned"): blocks 0 and {index} differ in more than masks and rotary '
                "embeddings, and nothing else can become data. Put Identity() where some blocks lack a "
                'rotary embedding, or use form="super_block".'
            )
    known = _Known({**_sizes_in(blocks), **axis_sizes}, rope_length)
    columns = [
        _unify(jax.tree_util.keystr(column[0][0]), [leaf for _, leaf in column], known)
        for column in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return [
        jax.tree.unflatten(structure, list(leaves))
        for structure, leaves in zip(structures, zip(*columns, strict=True), strict=True)
    ]


def _unify(where: str, layers: list[Any], known: _Known) -> list[Any]:
    if not any(isinstance(layer, _SETTINGS) for layer in layers):
        return layers
    if all(isinstance(layer, Identity) for layer in layers):
        return layers
    if all(isinstance(layer, _MASKS) for layer in layers):
        return _unify_masks(layers)
    if all(isinstance(layer, (*_ROTARY, Identity)) for layer in layers):
        return _unify_rotary(where, layers, known)
    raise ValueError(
        f'restack(form="scanned"): the layers at {where} cannot get one structure: '
        f"{', '.join(sorted({type(layer).__name__ for layer in layers}))}. Use "
        'form="super_block".'
    )


def _unify_masks(masks: list[Any]) -> list[Any]:
    if all(type(mask) is ApplyCausalAttentionMask for mask in masks):
        return masks
    return [
        mask
        if isinstance(mask, ApplyCausalSlidingWindowAttentionMask)
        else ApplyCausalSlidingWindowAttentionMask(
            mask.masked_out_value,
            _UNBOUNDED,
            mask.query_positions_input_name,
            mask.kv_positions_input_name,
            mask.seq_axis,
            mask.kv_seq_axis,
        )
        for mask in masks
    ]


def _unify_rotary(where: str, layers: list[Any], known: _Known) -> list[Any]:
    rotary = [layer for layer in layers if not isinstance(layer, Identity)]
    settings = [_without_frequencies(layer) for layer in rotary]
    # Layers that hold arrays have no single truth of equality; those stay arrays in any case.
    if not jax.tree.leaves(layers) and all(layer == layers[0] for layer in layers):
        return layers
    if any(setting != settings[0] for setting in settings):
        raise ValueError(
            f'restack(form="scanned"): the rotary embeddings at {where} differ in more than their '
            f'frequencies: {settings[0]} and others. Use form="super_block".'
        )
    axis = rotary[0].embedding_axis
    given = [_frequencies(where, layer, known) for layer in rotary]
    frequencies = iter(given)
    scales = [1.0 if isinstance(layer, Identity) else attention_scale(layer) for layer in layers]
    has_scales = any(not isinstance(scale, float) or scale != 1.0 for scale in scales)
    return [
        dataclasses.replace(
            settings[0],
            frequencies=nx.wrap(
                jnp.zeros_like(given[0]) if isinstance(layer, Identity) else next(frequencies), axis
            ),
            attention_scale=nx.wrap(jnp.float32(scale)) if has_scales else None,
        )
        for layer, scale in zip(layers, scales, strict=True)
    ]


def _without_frequencies(layer: Any) -> Any:
    """What of a rotary layer must agree: everything but the frequencies and what they come from."""
    return dataclasses.replace(
        layer,
        max_wavelength=1.0,
        scale_factor=1.0,
        scaling=None,
        frequencies=None,
        attention_scale=None,
    )


def _frequencies(where: str, layer: Any, known: _Known) -> jax.Array:
    if layer.frequencies is not None:
        given: jax.Array = layer.frequencies.unwrap(layer.embedding_axis)
        divided: jax.Array = given / layer.scale_factor
        return divided
    scaling = layer.scaling or DefaultScaling()
    if scaling.needs_length and known.rope_length is None:
        raise ValueError(
            f'restack(form="scanned"): the frequencies of the rotary embedding at {where} depend on the '
            f"length of the sequence ({scaling}), and arrays that the loop slices cannot. Fix them for one "
            'length: restack(..., rope_length=...), or use form="super_block".'
        )
    size = layer.rope_subset_size if isinstance(layer, ApplyRoPEToSubset) else None
    size = known.sizes.get(layer.embedding_axis) if size is None else size
    if size is None:
        raise ValueError(
            f'restack(form="scanned"): the size of the axis {layer.embedding_axis!r} that the rotary '
            f"embedding at {where} turns is not known from any array of the blocks. Give it: "
            f"restack(..., axis_sizes={{{layer.embedding_axis!r}: ...}})."
        )
    undivided = scaling.frequencies(size, layer.max_wavelength, known.rope_length)
    frequencies: jax.Array = jnp.asarray(undivided) / layer.scale_factor
    return frequencies


def _sizes_in(blocks: Sequence[Any]) -> dict[Any, int]:
    """Sizes of all axes of the arrays and bound variables in some blocks."""
    sizes: dict[Any, int] = {}
    for leaf in jax.tree.leaves(blocks, is_leaf=is_unit):
        value = leaf.value if isinstance(leaf, LabeledVariable | LabeledVariableValue) else leaf
        for array in jax.tree.leaves(value, is_leaf=nx.is_namedarray):
            if nx.is_namedarray(array):
                sizes.update(array.named_shape)
    return sizes
