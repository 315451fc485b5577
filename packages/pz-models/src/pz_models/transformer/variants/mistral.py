"""Mistral 7B and its successors: Llama with a sliding window where the configuration has one.

Reference: Jiang et al., Mistral 7B (2023).
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
    one_window,
    rotary_fields,
)
from pz_models.transformer.variants._llamalike_saving import llamalike_fields_of_one_window
from pz_models.transformer.variants.llamalike_common import (
    LlamalikeTransformerConfig,
    build_llamalike_transformer,
)

__all__ = ["FAMILY", "mistral_from_huggingface_model"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, kv_heads=8)
    window = reader.nullable("sliding_window", int, 4096)  # files since v0.2 say null
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_type=one_window(reader, window),
    )


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields_of_one_window,
)


def mistral_from_huggingface_model(
    model: Any, upcast_activations_to_float32: bool = False, use_layer_stack: bool = False
) -> TransformerLM:
    """Converts a live `MistralForCausalLM`; arguments as in `pz_models.from_huggingface`.

    Raises:
      UnsupportedConfigError: The model is of another family, or its configuration not understood.
    """
    return from_huggingface_of_type(
        model,
        "mistral",
        "mistral_from_huggingface_model",
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
    )
