"""Qwen 3 with mixtures of experts in all blocks, or all but some.

Reference: Yang et al., Qwen3 (2025).
"""

from __future__ import annotations

from typing import Any

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
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

_KEY = "model.layers.{i}.mlp"


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, kv_heads=4)
    count = sizes["num_decoder_blocks"]
    on = reader.get("use_sliding_window", bool, False)
    window = reader.get("sliding_window", int)  # kept by older files while it is switched off
    reader.get("max_window_layers", int)  # stored, but here a window is for all blocks
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        use_qk_norm=True,
        attention_bias=reader.get("attention_bias", bool, False),
        attention_type=one_window(reader, window if on else None),
        experts=experts_config(
            reader,
            count=128,
            per_token=8,
            hidden_dim=reader.positive("moe_intermediate_size", 768),
            normalise=reader.get("norm_topk_prob", bool, False),
            dense_blocks=_dense_blocks(reader, count),
        ),
    )


def _dense_blocks(reader: ConfigReader, count: int) -> tuple[int, ...]:
    """Blocks that are listed, and those between every `decoder_sparse_step`-th."""
    step = reader.positive("decoder_sparse_step", 1)
    listed = reader.get("mlp_only_layers", list, [])
    dense = tuple(index for index in range(count) if index in listed or (index + 1) % step)
    if len(dense) == count:
        raise UnsupportedConfigError(
            f"{reader.source}: with 'mlp_only_layers' {listed} and 'decoder_sparse_step' {step} no"
            " block has experts; such a model is of the family 'qwen3'."
        )
    return dense


def _parameters(config: LlamalikeTransformerConfig) -> Layout:
    names = ("gate_proj", "up_proj", "down_proj")
    return llamalike_parameters(config, single_expert_parameters(config, _KEY, *names))


def _fused_parameters(config: LlamalikeTransformerConfig) -> Layout:
    return llamalike_parameters(config, fused_expert_parameters(config, _KEY))


def _write_config(config: Any) -> dict[str, Any] | None:
    """The number of experts by the one of its two names that all versions of transformers read."""
    fields = llamalike_fields_of_one_window(config)
    return fields and {key: value for key, value in fields.items() if key != "num_local_experts"}


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=_parameters,
    write_config=_write_config,
    other_layouts=(_fused_parameters,),
)
