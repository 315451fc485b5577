"""Llama-like configurations in HuggingFace's spelling, for models that were not loaded.

All fields that any member of the family has are written; a member keeps those that it reads, and what
it would then build is compared with the model (`pz_models.saving`).
"""

from __future__ import annotations

from typing import Any

from pz_models._rope_config import written_rotary
from pz_models.transformer.variants._activations import huggingface_activation
from pz_models.transformer.variants._llamalike_loading import GATES
from pz_models.transformer.variants.llamalike_common import LlamalikeTransformerConfig

__all__ = ["llamalike_fields", "llamalike_fields_of_one_window"]


def llamalike_fields_of_one_window(config: Any) -> dict[str, Any] | None:
    """As `llamalike_fields`, for members whose blocks all have the same window, or none."""
    fields = llamalike_fields(config)
    return fields and {key: value for key, value in fields.items() if key != "layer_types"}


def llamalike_fields(config: Any) -> dict[str, Any] | None:
    """The fields, or None for a configuration of another kind."""
    if not isinstance(config, LlamalikeTransformerConfig):
        return None
    activation = huggingface_activation(
        next((ours for ours, gate in GATES.items() if gate == config.mlp_variant), "")
    )
    heads = config.num_kv_heads * config.query_head_multiplier
    scale: Any = config.query_scaling_factor
    scalar = config.projection_dim if scale == "default" else scale**-2
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embedding_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_decoder_blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.projection_dim,
        "hidden_act": activation,
        "hidden_activation": activation,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embedder_and_logits,
        "attention_bias": config.attention_bias is True,
        "mlp_bias": config.mlp_bias,
        # Whole numbers as such: transformers checks types.
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-3 else scalar,
        "final_logit_softcapping": config.final_logit_softcap,
        "attn_logit_softcapping": config.attn_logits_soft_cap,
        "no_rope_layers": [
            int(r) for r in config.rope_layers or [True] * config.num_decoder_blocks
        ],
    }
    return fields | _windows(config) | _rotary(config) | _experts(config)


def _windows(config: LlamalikeTransformerConfig) -> dict[str, Any]:
    kinds: Any = config.attention_type
    kinds = list(kinds) if isinstance(kinds, tuple | list) else [kinds]
    windows = [
        getattr(kinds[index % len(kinds)], "window_size", None)
        for index in range(config.num_decoder_blocks)
    ]
    slides = [window is not None for window in windows]
    return {
        "sliding_window": next((window for window in windows if window is not None), None),
        "use_sliding_window": any(slides),
        "max_window_layers": slides.index(True) if any(slides) else config.num_decoder_blocks,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
    }


def _rotary(config: LlamalikeTransformerConfig) -> dict[str, Any]:
    fields = written_rotary(config.rope_wavelength, config.rope_scaling)
    if config.local_rope_wavelength is not None:
        fields["rope_local_base_freq"] = config.local_rope_wavelength
    if config.rope_subset_size is not None:
        fields["partial_rotary_factor"] = config.rope_subset_size / config.projection_dim
    if config.query_position_scaling is not None:  # Ministral 3
        beta, original = config.query_position_scaling
        fields["rope_parameters"] = {
            "rope_theta": config.rope_wavelength,
            **fields.pop("rope_scaling", {}),
            "llama_4_scaling_beta": beta,
            "original_max_position_embeddings": original,
        }
    return fields


def _experts(config: LlamalikeTransformerConfig) -> dict[str, Any]:
    if config.experts is None:
        return {}
    experts = config.experts
    return {
        "num_local_experts": experts.count,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.hidden_dim,
        "norm_topk_prob": experts.normalise_weights,
        "mlp_only_layers": list(experts.dense_blocks),
    }
