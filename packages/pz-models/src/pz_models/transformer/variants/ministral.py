"""Ministral: Mistral with windows in some blocks only; Ministral 3: with queries that grow, and YaRN.

References: Mistral AI's model cards of Ministral (2024) and Ministral 3 (2025).
"""

from __future__ import annotations

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.families import Family
from pz_models.transformer.variants._llamalike_loading import (
    common_fields,
    gate_variant,
    layer_pattern,
    llamalike_parameters,
    one_window,
    rotary_fields,
)
from pz_models.transformer.variants._llamalike_saving import (
    llamalike_fields,
    llamalike_fields_of_one_window,
)
from pz_models.transformer.variants.llamalike_common import (
    LlamalikeTransformerConfig,
    build_llamalike_transformer,
)

__all__ = ["MINISTRAL", "MINISTRAL_3"]


def _read_ministral(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, kv_heads=8)
    window = reader.nullable("sliding_window", int, 4096)
    slides = [window is not None] * sizes["num_decoder_blocks"]
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_type=layer_pattern(reader, window, slides),
    )


def _read_ministral_3(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, epsilon=1e-5, head=128, kv_heads=8)
    reader.require("rope_parameters", dict)  # whose default is no plain rotary embedding
    rotary = read_rotary(reader, 1_000_000.0)
    beta = rotary.extra.get("llama_4_scaling_beta")
    stretch = rotary.extra.get("original_max_position_embeddings")
    if beta is None or stretch is None:
        raise UnsupportedConfigError(
            f"{reader.source}: 'rope_parameters' should have 'llama_4_scaling_beta' and"
            f" 'original_max_position_embeddings'; they are {beta} and {stretch}."
        )
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(rotary, sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_type=one_window(reader, reader.get("sliding_window", int)),
        query_position_scaling=(float(beta), int(stretch)),
    )


MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    read_config=_read_ministral,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
MINISTRAL_3 = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    read_config=_read_ministral_3,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields_of_one_window,
)
