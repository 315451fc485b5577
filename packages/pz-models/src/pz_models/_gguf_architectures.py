"""Translates the metadata and the tensor names of a GGUF file into HuggingFace's.

What is called what stands in `_gguf_tables`; here it is applied, and whatever is not understood is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pz_models._gguf_header import GGUFHeader
from pz_models._gguf_tables import ARCHITECTURES, ROPE_FACTORS, Architecture
from pz_models._suggestions import near_misses
from pz_models.errors import CheckpointError, UnsupportedConfigError

__all__ = ["architecture_of", "gguf_name", "huggingface_config", "huggingface_names"]

_REQUIRED = (
    "num_hidden_layers hidden_size intermediate_size num_attention_heads rms_norm_eps".split()
)


def architecture_of(header: GGUFHeader) -> Architecture:
    """The architecture that the file names.

    Raises:
      UnsupportedConfigError: It names none, or one that is not known.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedConfigError(
            f"{header.path}: general.architecture is {name!r}; the supported ones are"
            f" {', '.join(sorted(ARCHITECTURES))}.{near_misses(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


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
    scaling = {
        key: stated.pop(_ROPE_SCALING + key) for key in _SCALING if _ROPE_SCALING + key in stated
    }
    if scaling.get("type", "none") != "none":
        config["rope_scaling"] = {_SCALING[key]: value for key, value in scaling.items()}
    _refuse_the_rest(architecture, stated, config, header)
    return config | _special_tokens(header) | architecture.derive(config)


def _special_tokens(header: GGUFHeader) -> dict[str, Any]:
    """What ends a text and the like: nothing that shapes a model, but what others read beside it."""
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {ours: header.metadata.get(f"tokenizer.ggml.{g}_token_id") for g, ours in names.items()}
    return {f"{ours}_token_id": value for ours, value in found.items() if type(value) is int}


_ROPE_SCALING = "rope.scaling."
# What is stretched to is stated beside it; the rest has llama.cpp's defaults, as transformers'.
_SCALING = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
}


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
        "rope.scaling.finetuned": stated.get("rope.scaling.finetuned"),
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
        if name == ROPE_FACTORS:
            continue  # no parameter, but part of the configuration
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
