"""Qwen 2 and 2.5: Llama with biases on query, key and value.

Reference: Yang et al., Qwen2 (2024).
"""

from __future__ import annotations

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.families import Family
from pz_models.transformer.variants._llamalike_loading import (
    common_fields,
    gate_variant,
    layer_pattern,
    llamalike_parameters,
    rotary_fields,
)
from pz_models.transformer.variants._llamalike_saving import llamalike_fields
from pz_models.transformer.variants.llamalike_common import (
    LlamalikeTransformerConfig,
    build_llamalike_transformer,
)

__all__ = ["FAMILY"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader)
    on = reader.get("use_sliding_window", bool, False)
    window = reader.get("sliding_window", int)  # kept by older files while it is switched off
    first = reader.get("max_window_layers", int, 28)
    slides = [on and index >= first for index in range(sizes["num_decoder_blocks"])]
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_bias="qkv",
        attention_type=layer_pattern(reader, window if on else None, slides),
    )


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
