"""GPT-NeoX and GPT-2 configurations in HuggingFace's spelling, for models that were not loaded."""

from __future__ import annotations

from typing import Any

from pz_models._rope_config import written_rotary
from pz_models.transformer.variants._activations import huggingface_activation

__all__ = ["gpt2_fields", "gpt_neox_fields"]


def gpt_neox_fields(config: Any) -> dict[str, Any] | None:
    """GPT-NeoX's fields, or None for a configuration of another kind."""
    if not _is_of_this_kind(config) or config.max_positions is not None:
        return None
    rotary = written_rotary(config.rope_wavelength, config.rope_scaling)
    return rotary | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embedding_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_decoder_blocks,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": huggingface_activation(config.activation_fn),
        "layer_norm_eps": config.layernorm_epsilon,
        "rotary_emb_base": config.rope_wavelength,
        "rotary_pct": config.rope_subset_size / config.projection_dim,
        "use_parallel_residual": config.use_parallel_residual,
        "tie_word_embeddings": config.tie_embedder_and_logits,
    }


def gpt2_fields(config: Any) -> dict[str, Any] | None:
    """GPT-2's fields, or None for a configuration of another kind."""
    if not _is_of_this_kind(config) or config.max_positions is None:
        return None
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.embedding_dim,
        "n_inner": config.mlp_hidden_dim,
        "n_layer": config.num_decoder_blocks,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_positions,
        "activation_function": huggingface_activation(config.activation_fn),
        "layer_norm_epsilon": config.layernorm_epsilon,
        "scale_attn_weights": config.query_scaling_factor == "default",
        "scale_attn_by_inverse_layer_idx": config.scale_queries_by_depth,
        "tie_word_embeddings": config.tie_embedder_and_logits,
    }


def _is_of_this_kind(config: Any) -> bool:
    from pz_models.transformer.variants.gpt_neox import GPTNeoXTransformerConfig

    return isinstance(config, GPTNeoXTransformerConfig)
