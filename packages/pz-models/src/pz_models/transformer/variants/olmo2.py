"""OLMo 2: norms after attention and feed-forward instead of before; queries and keys normed whole.

Reference: Team OLMo, 2 OLMo 2 Furious (2025).
"""

from __future__ import annotations

from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.families import Family
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

__all__ = ["FAMILY"]


def _read_config(reader: ConfigReader) -> LlamalikeTransformerConfig:
    sizes = common_fields(reader, epsilon=1e-5)
    return LlamalikeTransformerConfig(
        **sizes,
        **rotary_fields(read_rotary(reader), sizes["projection_dim"]),
        mlp_variant=gate_variant(reader),
        attention_bias=reader.get("attention_bias", bool, False),
        use_pre_norm=False,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        qk_norm_across_heads=True,
        norm_scale_before_cast=True,
    )


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    read_config=_read_config,
    build=build_llamalike_transformer,
    parameters=llamalike_parameters,
    write_config=llamalike_fields,
)
