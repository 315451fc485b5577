"""Gemma 1, 2 and 3 (text): scaled embeddings, norms that hold weights - 1, soft caps, local layers.

    model = pz_models.load("gemma-3-270m/")                            # HuggingFace's folder
    model = gemma_from_pretrained_checkpoint("gemma3-4b/gemma3_4b_pt")  # Kaggle's, from orbax

Norm parameters hold the file's values, and the layers add the one in float32 (`norm_offset`), so
that files round-trip.

References: the Gemma (2024), Gemma 2 (2024) and Gemma 3 (2025) reports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pz_models._rope_config import RotarySettings, read_rotary, rotary_from_mapping
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.families import Family
from pz_models.loading import read_config, with_parameters
from pz_models.transformer.model_parts import TransformerLM
from pz_models.transformer.variants._gemma_checkpoint import GemmaArrays, restore_with_orbax
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

__all__ = ["GEMMA", "GEMMA_2", "GEMMA_3", "gemma_from_pretrained_checkpoint"]

_SHARED: dict[str, Any] = {
    "norm_offset": 1.0,
    "norm_scale_before_cast": True,
}


def _sizes(reader: ConfigReader, kv_heads: int | None = None) -> dict[str, Any]:
    reader.expect("use_bidirectional_attention", False)
    sizes = common_fields(reader, tied=True, head=256, kv_heads=kv_heads)
    return sizes | _SHARED | {
        "scale_embeddings": True,
        "attention_bias": reader.get("attention_bias", bool, False),
    }  # fmt: skip


def _gate(reader: ConfigReader) -> Any:
    """The first files say "gelu" in `hidden_act` where they mean its tanh form."""
    stated = reader.get("hidden_act", str, "gelu")
    tanh = "gelu_pytorch_tanh"
    return gate_variant(reader, "hidden_activation", tanh if stated == "gelu" else stated)


def _read_gemma(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = _sizes(reader)
    rotary = rotary_fields(read_rotary(reader), sizes["projection_dim"])
    return LlamalikeTransformerConfig(**sizes, **rotary, mlp_variant=_gate(reader))


def _read_later(reader: ConfigReader, slides: list[bool], window: int) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return {
        "mlp_variant": _gate(reader),
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
        "query_scaling_factor": reader.positive_float("query_pre_attn_scalar", 256.0) ** -0.5,
        "attention_type": layer_pattern(reader, reader.get("sliding_window", int, window), slides),
    }


def _read_gemma_2(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = _sizes(reader, kv_heads=4)
    slides = [index % 2 == 0 for index in range(sizes["num_decoder_blocks"])]
    return LlamalikeTransformerConfig(
        **sizes,
        **_read_later(reader, slides, 4096),
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        final_logit_softcap=reader.nullable("final_logit_softcapping", float, 30.0),
        attn_logits_soft_cap=reader.nullable("attn_logit_softcapping", float, 50.0),
    )


def _read_gemma_3(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = _sizes(reader, kv_heads=4)
    period = reader.get(
        "sliding_window_pattern", int, reader.get("_sliding_window_pattern", int, 6)
    )
    slides = [(index + 1) % period != 0 for index in range(sizes["num_decoder_blocks"])]
    reader.get("attn_logit_softcapping", float)  # stored, and not applied by the reference
    everywhere, local = _rotary_of_gemma_3(reader)
    return LlamalikeTransformerConfig(
        **sizes,
        **_read_later(reader, slides, 4096),
        **rotary_fields(everywhere, sizes["projection_dim"]),
        local_rope_wavelength=local,
        use_qk_norm=True,
        final_logit_softcap=reader.nullable("final_logit_softcapping", float, None),
    )


def _rotary_of_gemma_3(reader: ConfigReader) -> tuple[RotarySettings, float]:
    """Settings of global layers, and the base of local ones, in the old and new spelling."""
    longest = reader.get("max_position_embeddings", int, 131_072)
    local = reader.get("rope_local_base_freq", float, 10_000.0)
    nested = reader.get("rope_parameters", dict, {})
    if "full_attention" not in nested:
        return read_rotary(reader, 1_000_000.0), local
    if not all(isinstance(entry, dict) for entry in nested.values()):
        raise UnsupportedConfigError(
            f"{reader.source}: 'rope_parameters' should hold an object for each kind of layer, it"
            f" is {nested}."
        )
    reader.get("rope_theta", float)
    reader.get("rope_scaling", dict)
    own = rotary_from_mapping(
        {"rope_theta": local, **nested.get("sliding_attention", {})}, longest, reader.source
    )
    full = {"rope_theta": 1_000_000.0, **nested["full_attention"]}
    if own.scaling is not None:
        reader.expect("rope_parameters", None)  # no released model scales its local layers
    return rotary_from_mapping(full, longest, reader.source), own.base


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    read_config=_read_gemma,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
GEMMA_2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read_config=_read_gemma_2,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
GEMMA_3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read_config=_read_gemma_3,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)


def gemma_from_pretrained_checkpoint(
    ckpt_params: Mapping[str, Any] | str | os.PathLike[str],
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
    preset_name: str = "auto",
) -> TransformerLM:
    """Converts the Flax checkpoint of a Gemma 1, 2 or 3, as it is published on Kaggle.

        folder = kagglehub.model_download("google/gemma-3/flax/gemma3-4b")
        params = orbax.checkpoint.PyTreeCheckpointer().restore(f"{folder}/gemma3_4b_pt")
        model = gemma_from_pretrained_checkpoint(params)

    Arrays stay on the devices they were restored to, sharded as they are there. Parts of the
    checkpoint that see images are left out.

    Args:
      ckpt_params: What orbax restores: nested dictionaries of arrays, or with paths joined by "/"
        as keys. Or the folder, which is then restored here (extra `gemma`).
      upcast_activations_to_float32: Whether activations are float32 whatever the parameters are.
      use_layer_stack: Whether the blocks become one `LayerStack`.
      preset_name: Whose windows and scalings the model has: "gemma_2b", "gemma_7b", "gemma2_2b",
        "gemma2_9b", "gemma2_27b", "gemma3_270m", "gemma3_1b", "gemma3_4b", "gemma3_12b",
        "gemma3_27b". By default the published model with as many blocks, of the generation that
        the arrays show. Sizes and layout are always those of the arrays.

    Raises:
      ImportError: A folder was given, and orbax is not installed.
      CheckpointError: An array is missing, surplus, or of an unexpected shape.
      KeyError: There is no such preset.
      ValueError: No published model has this many blocks, and no preset was named.
    """
    tree = ckpt_params if isinstance(ckpt_params, Mapping) else restore_with_orbax(ckpt_params)
    arrays = GemmaArrays(tree)
    preset = arrays.preset(preset_name)
    huggingface = arrays.huggingface_config(preset)
    family, config = read_config(
        huggingface,
        "gemma_from_pretrained_checkpoint",
        parameter_dtype=arrays.dtype,
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
    )
    parameters = arrays.parameters(stacked=use_layer_stack, preset=preset)
    return with_parameters(family.build(config), parameters, huggingface)
