"""What GGUF's architectures call things, and what its converter did to the weights.

llama.cpp's converter renames tensors, renames configuration fields, and for some architectures
changes values: it reorders the rows of Llama's query and key projections for interleaved rotary
positions, and adds the one to Gemma's norm weights. All of it is undone here, as data.

Source: `conversion/` and `gguf-py/gguf/tensor_mapping.py` in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pz_models._gguf_header import GGUFHeader
from pz_models._suggestions import near_misses
from pz_models.errors import CheckpointError, UnsupportedConfigError

__all__ = [
    "Architecture",
    "architecture_of",
    "gguf_name",
    "huggingface_config",
    "huggingface_names",
]

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
    """

    name: str
    model_type: str
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    tensors: Mapping[str, str]
    adjustments: Mapping[str, Adjustment] = dataclasses.field(default_factory=dict)

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
_REQUIRED = (
    "num_hidden_layers hidden_size intermediate_size num_attention_heads rms_norm_eps".split()
)
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

_LLAMA = Architecture(
    name="llama",
    model_type="llama",
    fields=_FIELDS,
    defaults={"hidden_act": "silu", "rope_theta": 10_000.0},
    tensors=_TENSORS,
    adjustments={
        "q_proj.weight": _restore_query_rows,
        "k_proj.weight": _restore_key_rows,
    },
)

_ARCHITECTURES = {architecture.name: architecture for architecture in (_LLAMA,)}


def architecture_of(header: GGUFHeader) -> Architecture:
    """The architecture that the file names.

    Raises:
      UnsupportedConfigError: It names none, or one that is not known.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UnsupportedConfigError(
            f"{header.path}: general.architecture is {name!r}; the supported ones are"
            f" {', '.join(sorted(_ARCHITECTURES))}.{near_misses(name, _ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name]


def huggingface_config(architecture: Architecture, header: GGUFHeader) -> dict[str, Any]:
    """The file's metadata as a HuggingFace configuration.

    Raises:
      CheckpointError: A field that every model needs is missing or not a positive number.
      UnsupportedConfigError: The metadata says something about the model that is not understood.
    """
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.defaults}
    prefix = architecture.name + "."
    stated = {k[len(prefix) :]: v for k, v in header.metadata.items() if k.startswith(prefix)}
    for key, value in stated.items():
        if key in architecture.fields:
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise CheckpointError(
                    f"{header.path}: metadata {prefix + key!r} is {value!r}, which should be one"
                    " positive number."
                )
            config[architecture.fields[key]] = value
    for field in _REQUIRED:
        if field not in config:
            key = next(k for k, v in architecture.fields.items() if v == field)
            raise CheckpointError(
                f"{header.path}: metadata {prefix + key!r} ({field}) is missing; without it a"
                f" {architecture.name} model cannot be built."
            )
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config:
        embeddings = header.tensors.get("token_embd.weight")
        config["vocab_size"] = (
            len(tokens) if tokens else embeddings.shape[0] if embeddings else None
        )
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    _refuse_the_rest(architecture, stated, config, header)
    return config


def _refuse_the_rest(
    architecture: Architecture,
    stated: Mapping[str, Any],
    config: Mapping[str, Any],
    header: GGUFHeader,
) -> None:
    """Checks the metadata that repeats something, and refuses what is not understood."""
    implied = {
        "rope.dimension_count": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.scaling.type": "none",
        "expert_count": 0,
        "expert_used_count": 0,
    }
    for key, value in stated.items():
        if key in architecture.fields or (key in implied and implied[key] == value):
            continue
        raise UnsupportedConfigError(
            f"{header.path}: metadata '{architecture.name}.{key}' is {value!r}, which the"
            f" {architecture.name} reader does not understand"
            + (f" (it expects {implied[key]!r})." if key in implied else ".")
        )


_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def huggingface_names(architecture: Architecture, header: GGUFHeader) -> dict[str, str]:
    """HuggingFace's name -> GGUF's, of every tensor in the file.

    Raises:
      CheckpointError: The file has a tensor that the architecture does not.
    """
    from_gguf = {theirs: ours for ours, theirs in architecture.tensors.items()}
    names = {}
    for name in header.tensors:
        block = _BLOCK.search(name)
        template = name if block is None else _BLOCK.sub("{i}", name, count=1)
        if template not in from_gguf:
            raise CheckpointError(
                f"{header.path}: tensor {name!r} is not part of a {architecture.name} model as it"
                f" is understood here.{near_misses(template, from_gguf)}"
            )
        key = from_gguf[template]
        names[key if block is None else key.replace("{i}", block.group())] = name
    return names


def gguf_name(architecture: Architecture, key: str) -> str:
    """GGUF's name of HuggingFace's tensor `key`; `key` itself where GGUF has none."""
    block = _BLOCK.search(key)
    template = key if block is None else _BLOCK.sub("{i}", key, count=1)
    name = architecture.tensors.get(template, key)
    return name if block is None else name.replace("{i}", block.group())
