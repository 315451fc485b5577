"""What the members of the Llama family share when they are read: sizes, and where weights lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pz_models._rope_config import RotarySettings
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.parameter_plan import Layout, StoredParameter
from pz_models.transformer.variants._activations import read_activation
from pz_models.transformer.variants.experts import ExpertsConfig
from pz_models.transformer.variants.llamalike_common import (
    AttentionTypeGlobalCausal,
    AttentionTypeSlidingWindowCausal,
    LlamalikeTransformerConfig,
)

__all__ = [
    "GATES",
    "common_fields",
    "experts_config",
    "gate_variant",
    "layer_pattern",
    "llamalike_parameters",
    "one_window",
    "rotary_fields",
]

GATES = {"silu": "swiglu", "gelu_exact": "geglu_exact", "gelu_approx": "geglu_approx"}


def gate_variant(reader: ConfigReader, field: str = "hidden_act", default: str = "silu") -> Any:
    """The feed-forward variant of the activation that a field names.

    Raises:
      UnsupportedConfigError: No gate with this activation is known.
    """
    return GATES[read_activation(reader, field, default, GATES)]


def common_fields(
    reader: ConfigReader,
    *,
    epsilon: float = 1e-6,
    tied: bool = False,
    head: int | None = None,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """The sizes that every member states, as arguments of `LlamalikeTransformerConfig`.

    Args:
      reader: The configuration.
      epsilon: The family's default of `rms_norm_eps`.
      tied: The family's default of `tie_word_embeddings`.
      head: The family's default of `head_dim`; by default hidden size / heads.
      kv_heads: The family's default of `num_key_value_heads`; by default all heads, which is also
        what null means.

    Raises:
      UnsupportedConfigError: One is missing, not positive, or the heads do not divide.
    """
    heads = reader.positive("num_attention_heads")
    stated = reader.nullable("num_key_value_heads", int, kv_heads)
    kv_heads = reader.positive("num_key_value_heads", heads if stated is None else stated)
    width = reader.positive("hidden_size")
    if heads % kv_heads:
        raise UnsupportedConfigError(
            f"{reader.source}: 'num_attention_heads' should be a multiple of"
            f" 'num_key_value_heads'; they are {heads} and {kv_heads}."
        )
    if not reader.has("head_dim") and head is None and width % heads:
        raise UnsupportedConfigError(
            f"{reader.source}: without 'head_dim', 'hidden_size' should be a multiple of"
            f" 'num_attention_heads'; they are {width} and {heads}."
        )
    return {
        "num_kv_heads": kv_heads,
        "query_head_multiplier": heads // kv_heads,
        "embedding_dim": width,
        "projection_dim": reader.positive("head_dim", head or width // heads or 1),
        "mlp_hidden_dim": reader.positive("intermediate_size"),
        "num_decoder_blocks": reader.positive("num_hidden_layers"),
        "vocab_size": reader.positive("vocab_size"),
        "rms_norm_eps": reader.get("rms_norm_eps", float, epsilon),
        "tie_embedder_and_logits": reader.get("tie_word_embeddings", bool, tied),
        "scale_embeddings": False,
    }


def experts_config(
    reader: ConfigReader,
    *,
    count: int,
    per_token: int,
    hidden_dim: int,
    normalise: bool,
    dense_blocks: tuple[int, ...] = (),
) -> ExpertsConfig:
    """Number and use of experts.

    Args:
      reader: The configuration.
      count: The family's default of the number of experts.
      per_token: The family's default of how many of them a token uses.
      hidden_dim: Width of an expert.
      normalise: Whether the weights of the chosen are made to sum to 1.
      dense_blocks: Blocks without experts.

    Raises:
      UnsupportedConfigError: A token is to use more experts than there are.
    """
    for field in ("router_aux_loss_coef", "router_jitter_noise"):
        reader.get(field, float)  # for training
    reader.get("output_router_logits", bool)
    field = "num_local_experts" if reader.has("num_local_experts") else "num_experts"
    count = reader.positive(field, count)
    per_token = reader.positive("num_experts_per_tok", per_token)
    if per_token > count:
        raise UnsupportedConfigError(
            f"{reader.source}: 'num_experts_per_tok' should be at most {field!r}; they are"
            f" {per_token} and {count}."
        )
    return ExpertsConfig(count, per_token, hidden_dim, normalise, dense_blocks)


def layer_pattern(reader: ConfigReader, window: int | None, default: list[bool]) -> Any:
    """Attention types of all blocks, from `layer_types` or a family's default.

    Args:
      reader: The configuration.
      window: Window of the blocks that slide; None where none do.
      default: For each block, whether it slides where `layer_types` is absent.

    Returns:
      One type if all blocks have the same, else a tuple of them.

    Raises:
      UnsupportedConfigError: A layer is of another type, or there are too few.
    """
    stated = reader.get("layer_types", list, None)
    names = {"full_attention": False, "sliding_attention": True}
    if stated is not None:
        unknown = [name for name in stated if not isinstance(name, str) or name not in names]
        if unknown or len(stated) != len(default):
            raise UnsupportedConfigError(
                f"{reader.source}: 'layer_types' should name {len(default)} layers, each one of"
                f" {', '.join(names)}; it is {stated}."
            )
    slides = default if stated is None else [names[name] for name in stated]
    kinds = tuple(
        AttentionTypeSlidingWindowCausal(window)
        if slide and window is not None
        else AttentionTypeGlobalCausal()
        for slide in slides
    )
    return kinds[0] if len(set(kinds)) == 1 else kinds


def one_window(reader: ConfigReader, window: int | None) -> Any:
    """Attention type of all blocks in families whose reference passes over `layer_types`.

    Args:
      reader: The configuration.
      window: Window of all blocks; None where they see everything before them.
    """
    reader.get("layer_types", list)
    return (
        AttentionTypeGlobalCausal() if window is None else AttentionTypeSlidingWindowCausal(window)
    )


def rotary_fields(rotary: RotarySettings, head: int) -> dict[str, Any]:
    """Rotary settings as arguments of `LlamalikeTransformerConfig`."""
    rotated = rotary.rotated(head)
    return {
        "rope_wavelength": rotary.base,
        "rope_scaling": rotary.scaling,
        "rope_subset_size": None if rotated == head else rotated,
    }


def llamalike_parameters(
    config: LlamalikeTransformerConfig, experts: Sequence[StoredParameter] = ()
) -> Layout:
    """Where HuggingFace's Llama-like models keep each parameter.

    Args:
      config: The model's configuration.
      experts: The feed-forward parameters of a block with experts, if there are such blocks.
    """
    stream = {"embedding": config.embedding_dim}
    tokens = {"vocabulary": config.vocab_size}
    outer = [
        StoredParameter("embedder.embeddings", "model.embed_tokens.weight", tokens | stream),
        StoredParameter("final_norm/scale.weights", "model.norm.weight", stream),
    ]
    if not config.tie_embedder_and_logits:
        outer.append(StoredParameter("lm_head.weights", "lm_head.weight", tokens | stream))
    common = [*_norms(config), *_attention(config)]
    dense = [*common, *_feedforward(config)]
    if config.experts is None:
        return outer, [dense] * config.num_decoder_blocks
    routed = [*common, *experts]
    return outer, [
        dense if index in config.experts.dense_blocks else routed
        for index in range(config.num_decoder_blocks)
    ]


def _layer(label: str, key: str, axes: dict[str, int]) -> StoredParameter:
    return StoredParameter(label, f"model.layers.{{i}}.{key}", axes)


def _norms(config: LlamalikeTransformerConfig) -> list[StoredParameter]:
    stream = {"embedding": config.embedding_dim}
    post = {
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    if not config.use_pre_norm:  # OLMo 2
        names = post
    elif config.use_post_attn_norm:  # Gemma 2 and 3
        pre = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "pre_feedforward_layernorm"}
        names = pre | post
    else:
        names = {
            "pre_attention_norm": "input_layernorm",
            "pre_ffw_norm": "post_attention_layernorm",
        }
    return [
        _layer(f"{label}/scale.weights", f"{key}.weight", stream) for label, key in names.items()
    ]


def _attention(config: LlamalikeTransformerConfig) -> list[StoredParameter]:
    stream, head = {"embedding": config.embedding_dim}, {"projection": config.projection_dim}
    shared = {**config.common_head_axes, **head}
    query = {**config.common_head_axes, **config.query_only_head_axes, **head}
    entries = []
    for part, key, axes in (("query", "q", query), ("key", "k", shared), ("value", "v", shared)):
        entries += _affine(
            f"attention/{part}", f"self_attn.{key}_proj", axes, stream, bool(config.attention_bias)
        )
    entries += _affine(
        "attention/output", "self_attn.o_proj", stream, query, config.attention_bias is True
    )
    if config.use_qk_norm:
        for part, key, axes in (("query", "q", query), ("key", "k", shared)):
            axes = axes if config.qk_norm_across_heads else head
            label = f"attention/{part}_norm/scale.weights"
            entries.append(_layer(label, f"self_attn.{key}_norm.weight", axes))
    return [_flattened(entry, config) for entry in entries]


def _flattened(entry: StoredParameter, config: LlamalikeTransformerConfig) -> StoredParameter:
    """The entry with its stored shape: HuggingFace keeps head axes and projection as one."""
    heads = {*config.common_head_axes, *config.query_only_head_axes, "projection"}
    shape: list[int] = []
    joined = False
    for axis, size in entry.axes.items():
        if axis in heads and joined:
            shape[-1] *= size
        else:
            shape.append(size)
        joined = axis in heads
    return StoredParameter(entry.label, entry.key, entry.axes, shape=tuple(shape))


def _feedforward(config: LlamalikeTransformerConfig) -> list[StoredParameter]:
    stream, wide = {"embedding": config.embedding_dim}, {"neurons": config.mlp_hidden_dim}
    return [
        *_affine("mlp/gating_linear", "mlp.gate_proj", wide, stream, config.mlp_bias),
        *_affine("mlp/value_linear", "mlp.up_proj", wide, stream, config.mlp_bias),
        *_affine("mlp/out_linear", "mlp.down_proj", stream, wide, config.mlp_bias),
    ]


def _affine(
    label: str, key: str, out: dict[str, int], into: dict[str, int], bias: bool
) -> list[StoredParameter]:
    """Weight {out, in} and perhaps bias {out} of one projection."""
    if not bias:
        return [_layer(f"{label}.weights", f"{key}.weight", out | into)]
    return [
        _layer(f"{label}/Linear.weights", f"{key}.weight", out | into),
        _layer(f"{label}/AddBias.bias", f"{key}.bias", out),
    ]
