"""Mixtral: Mistral whose feed-forward parts are mixtures of experts.

Reference: Jiang et al., Mixtral of Experts (2024).
"""

from __future__ import annotations

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.families import Family
from pz_models.parameter_plan import Layout
from pz_models.transformer.variants._llamalike_loading import (
    common_fields,
    experts_config,
    gate_variant,
    llamalike_parameters,
    one_window,
    rotary_fields,
)
from pz_models.transformer.variants._llamalike_saving import llamalike_fields_of_one_window
from pz_models.transformer.variants.experts import (
    fused_expert_parameters,
    single_expert_parameters,
)
from pz_models.transformer.variants.llamalike_common import (
    LlamalikeTransformerConfig,
    build_llamalike_transformer,
)

__all__ = ["FAMILY"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, epsilon=1e-5, kv_heads=8)
    width = sizes["mlp_hidden_dim"]
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader, 1_000_000.0), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_type=one_window(reader, reader.get("sliding_window", int)),
        experts=experts_config(reader, count=8, per_token=2, hidden_dim=width, normalise=True),
    )


def _parameters(config: LlamalikeTransformerConfig) -> Layout:
    key = "model.layers.{i}.block_sparse_moe"
    return llamalike_parameters(config, single_expert_parameters(config, key, "w1", "w3", "w2"))


def _fused_parameters(config: LlamalikeTransformerConfig) -> Layout:
    return llamalike_parameters(config, fused_expert_parameters(config, "model.layers.{i}.mlp"))


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=_parameters,
    write_config=llamalike_fields_of_one_window,
    other_layouts=(_fused_parameters,),
)
