"""SmolLM 3: Llama in which every fourth block has no rotary positions.

References: Bakouch et al., SmolLM3 (2025); Yang et al., RoPE to NoPE and Back Again (2025).
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
    sizes = common_fields(reader, tied=True, kv_heads=4)
    count = sizes["num_decoder_blocks"]
    for field in ("max_window_layers", "pretraining_tp"):
        reader.get(field, int)  # stored, and not read by the reference
    period = reader.get("no_rope_layer_interval", int, 4)
    stated = reader.get("no_rope_layers", list, [])
    # In spite of its name, 1 in this list means that the block has rotary positions.
    rotated = [bool(flag) for flag in stated] or [(i + 1) % period != 0 for i in range(count)]
    window = reader.get("sliding_window", int)
    on = reader.get("use_sliding_window", bool, False) and window is not None
    slides = [on and not rotates for rotates in rotated]
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader, 2_000_000.0), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_bias=reader.get("attention_bias", bool, False),
        mlp_bias=reader.get("mlp_bias", bool, False),
        attention_type=layer_pattern(reader, window if on else None, slides),
        rope_layers=None if all(rotated) else tuple(rotated),
    )


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
