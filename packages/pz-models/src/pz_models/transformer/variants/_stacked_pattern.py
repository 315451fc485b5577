"""Blocks that differ in window or rotary positions, as one layer stack.

A stack holds one block. What differs between its blocks is put in as arrays with the axis
"blocks": the windows of the masks, and the rotary frequencies. A global block has a window wider
than any context; a block without rotary positions has frequency 0, which turns nothing.

What cannot be an array (that a block has no experts, or a rotary scaling that depends on the length)
must repeat; then one turn of the stack runs a super-block, which has one block of each kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from pz_core.selectors import select
from pz_models.transformer.variants._llamalike_parts import rotary
from pz_named import named_axes as nx
from pz_nn.attention import ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask
from pz_nn.embeddings import ApplyRoPE, ApplyRoPEToSubset
from pz_nn.layer_stack import LayerStack
from pz_nn.rope_scaling import DefaultScaling, RoPEScaling

if TYPE_CHECKING:
    from pz_models.transformer.variants.llamalike_common import LlamalikeTransformerConfig

__all__ = ["super_block_size", "with_pattern"]

_WIDER_THAN_ANY_CONTEXT = 1 << 30


def super_block_size(windows: Sequence[int | None], config: LlamalikeTransformerConfig) -> int:
    """How many blocks one turn of the stack runs; 1 where all that differs can be arrays.

    Args:
      windows: For each block its window, or None for a global block.
      config: The model's configuration.

    Raises:
      ValueError: There would have to be a super-block, but the blocks do not repeat.
    """
    count = len(windows)
    dense = config.experts.dense_blocks if config.experts is not None else ()
    layers = [rotary(window, config, index) for index, window in enumerate(windows)]
    scaled = [_scaling(layer).needs_length for layer in layers]
    partly_scaled = any(scaled) and any(layer != layers[0] for layer in layers)
    if not dense and not partly_scaled:
        return 1
    kinds = [(index in dense, windows[index], layers[index]) for index in range(count)]
    for size in range(2, count // 2 + 1):
        if count % size == 0 and kinds == kinds[:size] * (count // size):
            return size
    reason = (
        f"the blocks {', '.join(map(str, dense))} have no experts and the others have"
        if dense
        else f"{config.rope_scaling} differs between the blocks"
    )
    raise ValueError(
        f"build_llamalike_transformer: {reason}, and they do not repeat, so that they cannot be one"
        " layer stack. Set use_layer_stack=False."
    )


def with_pattern(
    stack: LayerStack, windows: Sequence[int | None], config: LlamalikeTransformerConfig
) -> LayerStack:
    """The stack with the window and rotary positions of each block.

    Args:
      stack: The stack, built as if all blocks were like the first.
      windows: For each block its window, or None for a global block.
      config: The model's configuration, of super-block size 1.
    """
    masks = ApplyCausalAttentionMask | ApplyCausalSlidingWindowAttentionMask
    if len(set(windows)) > 1:
        sizes = [_WIDER_THAN_ANY_CONTEXT if window is None else window for window in windows]
        per_block = nx.wrap(jnp.asarray(sizes, jnp.int32), "blocks")

        def widen(mask: Any) -> Any:
            return ApplyCausalSlidingWindowAttentionMask(
                masked_out_value=mask.masked_out_value, sliding_window_size=per_block
            )

        stack = select(stack).at_instances_of(masks).apply(widen)
    layers = [rotary(window, config, index) for index, window in enumerate(windows)]
    if all(layer == layers[0] for layer in layers[1:]):
        return stack if layers[0] else select(stack).at_instances_of(ApplyRoPE).remove_from_parent()
    frequencies = np.stack([_frequencies(layer, config) for layer in layers])
    changes: dict[str, Any] = {
        "frequencies": nx.wrap(jnp.asarray(frequencies), "blocks", "projection"),
        "scaling": None,
        "scale_factor": 1.0,
    }
    factors = [_scaling(layer).attention_scale() for layer in layers]
    if set(factors) != {1.0}:
        changes["attention_scale"] = nx.wrap(jnp.asarray(factors, jnp.float32), "blocks")

    def spread(layer: Any) -> Any:
        return dataclasses.replace(layer, **changes)

    spread_stack: LayerStack = (
        select(stack).at_instances_of(ApplyRoPE | ApplyRoPEToSubset).apply(spread)
    )
    return spread_stack


def _scaling(layers: Sequence[Any]) -> RoPEScaling:
    """The rule for one block's rotary frequencies; the plain one where it has none."""
    scaling: RoPEScaling | None = layers[0].scaling if layers else None
    return DefaultScaling() if scaling is None else scaling


def _frequencies(layers: Sequence[Any], config: LlamalikeTransformerConfig) -> np.ndarray:
    """Rotary frequencies of one block."""
    size = config.rope_subset_size or config.projection_dim
    if not layers:
        return np.zeros(size // 2, np.float32)
    found: np.ndarray = _scaling(layers).frequencies(size, layers[0].max_wavelength)
    return found / np.float32(layers[0].scale_factor)
