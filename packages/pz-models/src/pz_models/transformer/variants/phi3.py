"""Phi-3 and Phi-4: Llama whose projections are stored fused.

Reference: Abdin et al., Phi-3 (2024).
"""

from __future__ import annotations

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.families import Family
from pz_models.parameter_plan import Layout, StoredParameter
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

__all__ = ["FAMILY"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, epsilon=1e-5)
    window = reader.get("sliding_window", int)
    reader.expect("full_attn_mod", 1)  # Phi-4 mini's files; the reference does not read them
    reader.expect("interpolate_factor", 1)
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_type=one_window(reader, window),
    )


def _parameters(config: LlamalikeTransformerConfig) -> Layout:
    """As Llama's, with query, key and value, and gate and value, as rows of one tensor."""
    outer, blocks = llamalike_parameters(config)
    groups = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
    rows: dict[str, int] = {}
    starts: dict[str, int] = {}
    for entry in blocks[0]:
        name = _projection_name(entry)
        if name in groups:
            starts[name] = rows.get(groups[name], 0)
            rows[groups[name]] = starts[name] + entry.stored_shape[0]

    def fuse(entry: StoredParameter) -> StoredParameter:
        name = _projection_name(entry)
        if name not in groups:
            return entry
        count, width = entry.stored_shape
        return StoredParameter(
            entry.label,
            entry.key.replace(f"{name}_proj", f"{groups[name]}_proj"),
            entry.axes,
            view=(rows[groups[name]], width),
            region=(slice(starts[name], starts[name] + count),),
        )

    return outer, [[fuse(entry) for entry in block] for block in blocks]


def _projection_name(entry: StoredParameter) -> str:
    """ "q" of "…q_proj.weight"; something else for what is no projection."""
    return entry.key.split(".")[-2].removesuffix("_proj")


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=_parameters,
    write_config=llamalike_fields_of_one_window,
)
