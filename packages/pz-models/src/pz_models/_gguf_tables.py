"""What GGUF's architectures call things, and what its converter did to the weights.

llama.cpp's converter renames tensors, renames configuration fields, and for some architectures
changes values: it reorders the rows of Llama's query and key projections for interleaved rotary
positions, and adds the one to Gemma's norm weights. All of it is undone here, as data.

Source: `conversion/` and `gguf-py/gguf/tensor_mapping.py` in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["ARCHITECTURES", "ROPE_FACTORS", "Architecture"]

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor of divisors of the rotary frequencies: what Llama 3.1 calls scaling, worked out."""

Adjustment = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


def _restore_query_rows(plain: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return _restore_rows(plain, config["num_attention_heads"])


def _restore_key_rows(plain: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return _restore_rows(plain, config["num_key_value_heads"])


def _restore_rows(plain: np.ndarray, heads: int) -> np.ndarray:
    """Puts the rows of each head back from interleaved to half-split rotary order.

    The converter did `w.reshape(heads, 2, half, ...).swapaxes(1, 2)`; this is its inverse.
    """
    rest = plain.shape[1:]
    return plain.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(plain.shape)


def _subtract_one(plain: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return plain - np.float32(1)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of GGUF's architectures, in terms of HuggingFace's.

    Attributes:
      name: GGUF's name, which also prefixes its metadata keys.
      model_type: HuggingFace's name of the family.
      fields: Metadata key (without prefix) -> HuggingFace's configuration field.
      defaults: Configuration that the format implies without writing it.
      tensors: HuggingFace's tensor name -> GGUF's; `{i}` stands for the block.
      adjustments: End of HuggingFace's tensor name -> what restores its values.
      derive: Configuration that follows from the rest of it, as llama.cpp derives it.
    """

    name: str
    model_type: str
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    tensors: Mapping[str, str]
    adjustments: Mapping[str, Adjustment] = dataclasses.field(default_factory=dict)
    derive: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}

    def adjustment(self, key: str) -> Adjustment | None:
        """What restores the values of HuggingFace's tensor `key`; None where nothing changed."""
        for ending, adjust in self.adjustments.items():
            if key.endswith(ending):
                return adjust
        return None


_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{i}.input_layernorm.weight": "blk.{i}.attn_norm.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blk.{i}.attn_q.weight",
    "model.layers.{i}.self_attn.k_proj.weight": "blk.{i}.attn_k.weight",
    "model.layers.{i}.self_attn.v_proj.weight": "blk.{i}.attn_v.weight",
    "model.layers.{i}.self_attn.o_proj.weight": "blk.{i}.attn_output.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blk.{i}.ffn_gate.weight",
    "model.layers.{i}.mlp.up_proj.weight": "blk.{i}.ffn_up.weight",
    "model.layers.{i}.mlp.down_proj.weight": "blk.{i}.ffn_down.weight",
}

_BIASES = {
    f"model.layers.{{i}}.self_attn.{part}_proj.bias": f"blk.{{i}}.attn_{part}.bias"
    for part in "qkv"
}
_QK_NORMS = {
    f"model.layers.{{i}}.self_attn.{part}_norm.weight": f"blk.{{i}}.attn_{part}_norm.weight"
    for part in "qk"
}
_GEMMA_TENSORS = _TENSORS | {
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
}
_GEMMA_FIELDS = _FIELDS | {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def _gemma_query_scale(blocks_of_27b: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Queries are scaled by the size of a head, but by hidden size / heads in the 27B models."""

    def derive(config: Mapping[str, Any]) -> dict[str, Any]:
        large = config["num_hidden_layers"] == blocks_of_27b
        heads = config["num_attention_heads"]
        size = config["hidden_size"] // heads if large else config["head_dim"]
        return {"query_pre_attn_scalar": size}

    return derive


_ALL = (
    Architecture(
        name="llama",
        model_type="llama",
        fields=_FIELDS,
        defaults={"hidden_act": "silu", "rope_theta": 10_000.0},
        tensors=_TENSORS,
        adjustments={
            "q_proj.weight": _restore_query_rows,
            "k_proj.weight": _restore_key_rows,
        },
    ),
    Architecture(
        name="qwen2",
        model_type="qwen2",
        fields=_FIELDS,
        defaults={"hidden_act": "silu", "rope_theta": 10_000.0},
        tensors=_TENSORS | _BIASES,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        fields=_FIELDS,
        defaults={"hidden_act": "silu", "rope_theta": 10_000.0},
        tensors=_TENSORS | _QK_NORMS,
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        fields=_GEMMA_FIELDS,
        defaults={"rope_theta": 10_000.0},
        tensors=_GEMMA_TENSORS,
        adjustments={"norm.weight": _subtract_one},
        derive=_gemma_query_scale(blocks_of_27b=46),
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        fields=_GEMMA_FIELDS | {"rope.freq_base_swa": "rope_local_base_freq"},
        defaults={"rope_theta": 1_000_000.0},
        tensors=_GEMMA_TENSORS | _QK_NORMS,
        adjustments={"norm.weight": _subtract_one},
        derive=_gemma_query_scale(blocks_of_27b=62),
    ),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
