"""Llama 1 to 3.3, SmolLM 2, and everything else whose `model_type` is "llama".

    model = pz_models.load("Llama-3.2-1B/")
    model = llama_from_huggingface_model(transformers.LlamaForCausalLM.from_pretrained(...))

References: Touvron et al., LLaMA (2023); the Llama 3 report (2024).
"""

from __future__ import annotations

from typing import Any

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.families import Family
from pz_models.huggingface import from_huggingface_of_type
from pz_models.transformer.model_parts import TransformerLM
from pz_models.transformer.variants._llamalike_loading import (
    common_fields,
    gate_variant,
    llamalike_parameters,
    rotary_fields,
)
from pz_models.transformer.variants._llamalike_saving import llamalike_fields
from pz_models.transformer.variants.llamalike_common import (
    LlamalikeTransformerConfig,
    build_llamalike_transformer,
)

__all__ = ["FAMILY", "llama_from_huggingface_model"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader)
    reader.expect("pretraining_tp", 1)
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_bias=reader.get("attention_bias", bool, False),
        mlp_bias=reader.get("mlp_bias", bool, False),
    )


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
    is_ignored=lambda key: key.endswith("rotary_emb.inv_freq"),
)


def llama_from_huggingface_model(
    model: Any, upcast_activations_to_float32: bool = False, use_layer_stack: bool = False
) -> TransformerLM:
    """Converts a live `LlamaForCausalLM`; arguments as in `pz_models.from_huggingface`.

    Raises:
      UnsupportedConfigError: The model is of another family, or its configuration not understood.
    """
    return from_huggingface_of_type(
        model,
        "llama",
        "llama_from_huggingface_model",
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
    )
