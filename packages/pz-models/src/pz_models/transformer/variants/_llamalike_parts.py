"""Small parts that the Llama-like builders put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pz_models.transformer.variants._activations import ACTIVATIONS
from pz_nn.attention import ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask
from pz_nn.embeddings import ApplyRoPE, ApplyRoPEToSubset
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Affine, Linear
from pz_nn.standardization import RMSLayerNorm

if TYPE_CHECKING:
    from pz_models.transformer.variants.llamalike_common import LlamalikeTransformerConfig

__all__ = ["GATES", "causal_mask", "projection", "rms_norm", "rotary"]

GATES: dict[str, Callable[[Any], Any]] = {
    "geglu_exact": ACTIVATIONS["gelu_exact"],
    "geglu_approx": ACTIVATIONS["gelu_approx"],
    "swiglu": ACTIVATIONS["silu"],
}
# Finite, so that a row that sees nothing (padding) becomes uniform instead of NaN.
_MASKED_OUT = -2.3819763e38
_MASKED_OUT_FLOAT16 = -65504.0


def rms_norm(
    name: str, rng: jax.Array | None, axes: dict[str, int], config: LlamalikeTransformerConfig
) -> RMSLayerNorm:
    """A norm over `axes`, as the configuration has all of them."""
    return RMSLayerNorm.from_config(
        name,
        rng,
        axes,
        epsilon=config.rms_norm_eps,
        dtype=config.parameter_dtype,
        offset=config.norm_offset,
        scale_before_cast=config.norm_scale_before_cast,
    )


def projection(
    name: str,
    rng: jax.Array | None,
    axes: tuple[dict[str, int], dict[str, int]],
    bias: bool,
    config: LlamalikeTransformerConfig,
) -> Layer:
    """Linear, or affine with a bias, from the first axes to the second."""
    build = Affine.from_config if bias else Linear.from_config
    layer: Layer = build(
        name, rng, input_axes=axes[0], output_axes=axes[1], dtype=config.parameter_dtype
    )
    return layer


def causal_mask(window: int | None, dtype: Any) -> Layer:
    """A causal mask, reaching back `window` tokens if that is given."""
    lowest = _MASKED_OUT_FLOAT16 if jnp.dtype(dtype) == jnp.float16 else _MASKED_OUT
    if window is None:
        return ApplyCausalAttentionMask(lowest)
    return ApplyCausalSlidingWindowAttentionMask(lowest, window)


def rotary(
    window: int | None, config: LlamalikeTransformerConfig, block_index: int | None
) -> list[Layer]:
    """Rotary positions of a layer with this window (None is a global layer); may be none."""
    if config.rope_layers and block_index is not None and not config.rope_layers[block_index]:
        return []
    own_base = window is not None and config.local_rope_wavelength is not None
    settings: dict[str, Any] = {
        "embedding_axis": "projection",
        "max_wavelength": config.local_rope_wavelength if own_base else config.rope_wavelength,
        "positions_input_name": "token_positions",
        "scale_factor": config.global_scale_factor or 1.0 if window is None else 1.0,
        # Models with one base for all layers scale all of them; with two, only the global ones.
        "scaling": None if own_base else config.rope_scaling,
        "angles_in_input_dtype": True,  # as HuggingFace
    }
    if config.rope_subset_size is None:
        return [ApplyRoPE(**settings)]
    return [ApplyRoPEToSubset(rope_subset_size=config.rope_subset_size, **settings)]
