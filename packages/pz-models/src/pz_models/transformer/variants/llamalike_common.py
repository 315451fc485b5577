"""Llama and its relatives: configuration and builders.

One configuration describes the family: grouped queries, rotary positions, gated feed-forward,
RMS norms in the places where a relative has them, biases where it has them. What a builder
returns is a tree of `pz_nn` layers whose order and labels are fixed, since programs select by
them:

    TransformerBlock[ Residual(Sequential[norm, Attention, post-norm?]),
                      Residual(Sequential[norm, TransformerFeedForward, post-norm?]) ]

    config = LlamalikeTransformerConfig(num_kv_heads=3, query_head_multiplier=3, embedding_dim=576,
        projection_dim=64, mlp_hidden_dim=1536, num_decoder_blocks=30, vocab_size=49152,
        mlp_variant="swiglu", tie_embedder_and_logits=True, scale_embeddings=False)
    model = build_llamalike_transformer(config, init_base_rng=jax.random.key(0))

The module is longer than most because one class must hold all fields of the configuration, and
Penzai's programs import the builders from here.

References: Touvron et al., LLaMA (2023); Ainslie et al., GQA (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pz_models.huggingface import from_huggingface
from pz_models.transformer.model_parts import (
    TransformerBlock,
    TransformerFeedForward,
    TransformerLM,
    TransformerMetadata,
)
from pz_models.transformer.position_scaling import ScaleByPosition
from pz_models.transformer.variants._llamalike_parts import (
    GATES,
    causal_mask,
    projection,
    rms_norm,
    rotary,
)
from pz_models.transformer.variants._stacked_pattern import super_block_size, with_pattern
from pz_models.transformer.variants.experts import ExpertsConfig, build_experts_feedforward
from pz_nn.attention import Attention
from pz_nn.basic_ops import CastToDType, Elementwise, Softmax, TanhSoftCap
from pz_nn.combinators import BranchAndMultiplyTogether, Residual
from pz_nn.embeddings import EmbeddingDecode, EmbeddingLookup, EmbeddingTable
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import ConstantRescale, NamedEinsum
from pz_nn.parameters import unique_parameter_names
from pz_nn.rope_scaling import RoPEScaling
from pz_nn.stack_surgery import SuperBlock

__all__ = [
    "AttentionType",
    "AttentionTypeGlobalCausal",
    "AttentionTypeSlidingWindowCausal",
    "LlamalikeTransformerConfig",
    "build_llamalike_attention",
    "build_llamalike_block",
    "build_llamalike_feedforward",
    "build_llamalike_transformer",
    "llamalike_from_huggingface_model",
]


@dataclasses.dataclass(frozen=True)
class AttentionTypeGlobalCausal:
    """Each token sees itself and everything before it."""


@dataclasses.dataclass(frozen=True)
class AttentionTypeSlidingWindowCausal:
    """Each token sees itself and the `window_size - 1` tokens before it."""

    window_size: int


AttentionType = AttentionTypeGlobalCausal | AttentionTypeSlidingWindowCausal


@dataclasses.dataclass(kw_only=True)
class LlamalikeTransformerConfig:
    """What distinguishes one relative of Llama from another.

    Attributes:
      num_kv_heads: Key/value heads K.
      query_head_multiplier: Query heads M for each of them.
      embedding_dim: Size D of the residual stream.
      projection_dim: Size P of a head; independent of D.
      mlp_hidden_dim: Width F of the feed-forward part.
      num_decoder_blocks: Blocks L.
      vocab_size: Tokens V.
      mlp_variant: Gate activation: "geglu_exact" (erf), "geglu_approx" (tanh) or "swiglu".
      tie_embedder_and_logits: Whether the output head is the embedding table.
      scale_embeddings: Whether embeddings are multiplied by √D; None means when tied, as Gemma.
      rope_wavelength: Rotary base of global layers, and of local ones that have none of their own.
      rms_norm_eps: ε of every norm.
      attention_type: One for all blocks, or a sequence indexed by `block_index % len`.
      use_post_attn_norm: Whether attention's output is normed before it is added.
      use_post_ffw_norm: The same for the feed-forward part.
      final_logit_softcap: Tanh cap of the logits; None or 0 for none.
      attn_logits_soft_cap: Tanh cap of attention logits; None for none.
      query_scaling_factor: What queries are multiplied by; "default" is P ** -0.5.
      parameter_dtype: Dtype of parameters.
      activation_dtype: Dtype of activations.
      use_layer_stack: Whether blocks are one `LayerStack`, run by a loop.
      use_qk_norm: Whether queries and keys are normed, before rotary positions.
      global_scale_factor: What positions of global layers are divided by; None for 1.
      local_rope_wavelength: Rotary base of sliding-window layers.
      rope_scaling: Rule for the rotary frequencies of global layers; None for none.
      rope_subset_size: How many entries of a head are rotated; None for all.
      attention_bias: Biases of projections: none (False), of query, key and value ("qkv"), or of
        the output as well (True).
      mlp_bias: Whether the feed-forward part has biases.
      norm_offset: Added to norm weights in float32; 1 for Gemma, whose files hold weights - 1.
      norm_scale_before_cast: Whether norms multiply by their weights in float32, before the cast
        to the activation dtype, as Gemma and OLMo do.
      use_pre_norm: Whether attention and feed-forward read a normed residual stream.
      qk_norm_across_heads: Whether `use_qk_norm` norms all heads of a token as one vector.
      rope_layers: For each block, whether it has rotary positions; None if all have.
      query_position_scaling: β and O by which queries grow with their position, as
        `pz_models.transformer.position_scaling` says; None for not.
      experts: How feed-forward parts are mixtures of experts; None for dense ones.
    """

    num_kv_heads: int
    query_head_multiplier: int
    embedding_dim: int
    projection_dim: int
    mlp_hidden_dim: int
    num_decoder_blocks: int
    vocab_size: int
    mlp_variant: Literal["geglu_exact", "geglu_approx", "swiglu"]
    tie_embedder_and_logits: bool
    scale_embeddings: bool | None = None
    rope_wavelength: float = 10_000
    rms_norm_eps: float = 1e-6
    attention_type: AttentionType | Sequence[AttentionType] = AttentionTypeGlobalCausal()
    use_post_attn_norm: bool = False
    use_post_ffw_norm: bool = False
    final_logit_softcap: float | None = None
    attn_logits_soft_cap: float | None = None
    query_scaling_factor: float | Literal["default"] = "default"
    parameter_dtype: Any = jnp.float32
    activation_dtype: Any = jnp.float32
    use_layer_stack: bool = False
    use_qk_norm: bool = False
    global_scale_factor: float | None = None
    local_rope_wavelength: float | None = None
    rope_scaling: RoPEScaling | None = None
    rope_subset_size: int | None = None
    attention_bias: bool | Literal["qkv"] = False
    mlp_bias: bool = False
    norm_offset: float = 0.0
    norm_scale_before_cast: bool = False
    use_pre_norm: bool = True
    qk_norm_across_heads: bool = False
    rope_layers: tuple[bool, ...] | None = None
    query_position_scaling: tuple[float, int] | None = None
    experts: ExpertsConfig | None = None

    @property
    def embeddings_are_scaled(self) -> bool:
        """Whether embeddings are multiplied by √D."""
        tied = self.tie_embedder_and_logits
        return tied if self.scale_embeddings is None else self.scale_embeddings

    @property
    def common_head_axes(self) -> dict[str, int]:
        """Head axes of queries, keys and values."""
        if self.query_head_multiplier == 1:
            return {"heads": self.num_kv_heads}
        return {} if self.num_kv_heads == 1 else {"head_groups": self.num_kv_heads}

    @property
    def query_only_head_axes(self) -> dict[str, int]:
        """Head axes of queries alone."""
        many = self.query_head_multiplier > 1
        return {"query_heads": self.query_head_multiplier} if many else {}

    @property
    def super_block_size(self) -> int:
        """How many blocks one turn of a layer stack runs.

        More than 1 where some blocks are without experts, or without a scaling of rotary positions
        that depends on the length: those repeat as super-blocks (`pz_nn.stack_surgery`).

        Raises:
          ValueError: Such blocks do not repeat, so that they cannot be one stack.
        """
        return super_block_size(_windows(self), self)


def build_llamalike_feedforward(
    name: str, init_base_rng: jax.Array | None, config: LlamalikeTransformerConfig
) -> TransformerFeedForward:
    """The gated feed-forward part: out(activation(gate(x)) · value(x)).

    Args:
      name: Name of the part, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.

    Raises:
      ValueError: `mlp_variant` is not known.
    """
    if config.mlp_variant not in GATES:
        raise ValueError(
            f"build_llamalike_feedforward: mlp_variant must be one of {', '.join(GATES)};"
            f" received {config.mlp_variant!r}."
        )
    wide = ({"embedding": config.embedding_dim}, {"neurons": config.mlp_hidden_dim})
    project = functools.partial(projection, bias=config.mlp_bias, config=config)
    gate = [
        project(f"{name}/gating_linear", init_base_rng, wide),
        Elementwise(GATES[config.mlp_variant]),
    ]
    value = project(f"{name}/value_linear", init_base_rng, wide)
    return TransformerFeedForward(
        [
            BranchAndMultiplyTogether([NamedGroup("gate", gate), value]),
            project(f"{name}/out_linear", init_base_rng, (wide[1], wide[0])),
        ]
    )


def _attention_type(config: LlamalikeTransformerConfig, block_index: int | None) -> AttentionType:
    """The type of one block, checked."""
    chosen: Any = config.attention_type
    if isinstance(chosen, AttentionType):
        return chosen
    if block_index is None:
        raise ValueError(
            "build_llamalike_attention: block_index is needed when attention_type is a sequence"
            f" (it is {chosen!r}); pass block_index=0, 1, …"
        )
    chosen = chosen[block_index % len(chosen)]
    if not isinstance(chosen, AttentionType):
        raise ValueError(
            "build_llamalike_attention: attention_type must hold AttentionTypeGlobalCausal or"
            f" AttentionTypeSlidingWindowCausal; received {chosen!r}."
        )
    return chosen


def build_llamalike_attention(
    name: str,
    init_base_rng: jax.Array | None,
    config: LlamalikeTransformerConfig,
    block_index: int | None = None,
) -> Attention:
    """Causal attention with grouped queries and rotary positions.

    Args:
      name: Name of the part, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.
      block_index: Which block; needed if `config.attention_type` is a sequence.

    Raises:
      ValueError: The attention type is unknown, or the index is missing.
    """
    window = getattr(_attention_type(config, block_index), "window_size", None)
    stream, head = {"embedding": config.embedding_dim}, {"projection": config.projection_dim}
    common, query_only = config.common_head_axes, config.query_only_head_axes
    query_axes, key_axes = {**common, **query_only, **head}, {**common, **head}
    bias = bool(config.attention_bias)

    def project(part: str, axes: tuple[dict[str, int], dict[str, int]], bias: bool) -> Layer:
        return projection(f"{name}/{part}", init_base_rng, axes, bias, config)

    def qk_norm(part: str, axes: dict[str, int]) -> list[Layer]:
        if not config.use_qk_norm:
            return []
        axes = axes if config.qk_norm_across_heads else head
        return [rms_norm(f"{name}/{part}", init_base_rng, axes, config)]

    scale = config.query_scaling_factor
    scale = config.projection_dim**-0.5 if scale == "default" else scale
    cap, growth = config.attn_logits_soft_cap, config.query_position_scaling
    heads = {axis: axis for axis in (*common, *query_only)}
    shared = {axis: axis for axis in common}
    # The order in which XLA makes the products, so that none is transposed: paired axes come first.
    logits = {**shared, "seq": "tq", **{axis: axis for axis in query_only}, "kv_seq": "tkv"}
    dtype = config.activation_dtype
    return Attention(
        input_to_query=Sequential(
            [
                project("query", (stream, query_axes), bias),
                *qk_norm("query_norm", query_axes),
                *rotary(window, config, block_index),
                *([] if growth is None else [ScaleByPosition(*growth)]),
                ConstantRescale(scale),
            ]
        ),
        input_to_key=Sequential(
            [
                project("key", (stream, key_axes), bias),
                *qk_norm("key_norm", key_axes),
                *rotary(window, config, block_index),
            ]
        ),
        input_to_value=Sequential([project("value", (stream, key_axes), bias)]),
        query_key_to_attn=Sequential(
            [
                NamedEinsum(
                    (
                        {"seq": "tq", **heads, "projection": "p"},
                        {"seq": "tkv", **shared, "projection": "p"},
                    ),
                    logits,
                ),
                *([] if cap is None else [TanhSoftCap(cap)]),
                causal_mask(window, dtype),
                Softmax("kv_seq"),
            ]
        ),
        attn_value_to_output=Sequential(
            [
                NamedEinsum(
                    (logits, {"seq": "tkv", **shared, "projection": "p"}),
                    {"seq": "tq", **heads, "projection": "p"},
                ),
                project("output", (query_axes, stream), config.attention_bias is True),
            ]
        ),
    )


def build_llamalike_block(
    name: str,
    init_base_rng: jax.Array | None,
    config: LlamalikeTransformerConfig,
    block_index: int | None = None,
) -> TransformerBlock:
    """One block: residual attention, then residual feed-forward.

    Args:
      name: Name of the block, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.
      block_index: Which block; needed if `config.attention_type` is a sequence, and for blocks
        without experts in a model with experts.

    Raises:
      ValueError: As `build_llamalike_attention` and `build_llamalike_feedforward`.
    """

    def norm(part: str, present: bool) -> list[Layer]:
        if not present:
            return []
        axes = {"embedding": config.embedding_dim}
        return [rms_norm(f"{name}/{part}", init_base_rng, axes, config)]

    attention = build_llamalike_attention(f"{name}/attention", init_base_rng, config, block_index)
    experts = config.experts
    if experts is None or block_index in experts.dense_blocks:
        feedforward = build_llamalike_feedforward(f"{name}/mlp", init_base_rng, config)
    else:
        feedforward = build_experts_feedforward(f"{name}/mlp", init_base_rng, experts, config)
    return TransformerBlock(
        [
            Residual(
                Sequential(
                    [
                        *norm("pre_attention_norm", config.use_pre_norm),
                        attention,
                        *norm("post_attention_norm", config.use_post_attn_norm),
                    ]
                )
            ),
            Residual(
                Sequential(
                    [
                        *norm("pre_ffw_norm", config.use_pre_norm),
                        feedforward,
                        *norm("post_ffw_norm", config.use_post_ffw_norm),
                    ]
                )
            ),
        ]
    )


def _windows(config: LlamalikeTransformerConfig) -> list[int | None]:
    """For each block its window, or None for a global block."""
    kinds = [_attention_type(config, index) for index in range(config.num_decoder_blocks)]
    return [getattr(kind, "window_size", None) for kind in kinds]


def _blocks(
    name: str, init_base_rng: jax.Array | None, config: LlamalikeTransformerConfig
) -> list[Layer]:
    """The blocks one by one, or all as one layer stack."""
    count, pattern = config.num_decoder_blocks, config.attention_type
    if not isinstance(pattern, AttentionType) and count % len(pattern):
        raise ValueError(
            "build_llamalike_transformer: the length of attention_type must divide the number"
            f" of blocks; received {len(pattern)} types and {count} blocks."
        )
    if config.use_layer_stack:
        return [_stack(f"{name}/blocks", init_base_rng, config)]
    return [
        build_llamalike_block(f"{name}/block_{i}", init_base_rng, config, i) for i in range(count)
    ]


def _stack(
    name: str, init_base_rng: jax.Array | None, config: LlamalikeTransformerConfig
) -> LayerStack:
    size, build = config.super_block_size, LayerStack.from_sublayer_builder
    turns = config.num_decoder_blocks // size
    if size > 1:
        kwargs = {"name": name, "config": config}
        return build(_super_block, "blocks", turns, init_base_rng, kwargs)
    # One block stands for all; what differs between them becomes arrays with the stack axis.
    first = _attention_type(config, 0)
    alike = dataclasses.replace(config, attention_type=first, rope_layers=None)
    kwargs = {"name": name, "config": alike}
    stack = build(build_llamalike_block, "blocks", turns, init_base_rng, kwargs)
    return with_pattern(stack, _windows(config), config)


def _super_block(
    name: str, init_base_rng: jax.Array | None, config: LlamalikeTransformerConfig
) -> SuperBlock:
    return SuperBlock(
        [
            build_llamalike_block(f"{name}/{i}", init_base_rng, config, i)
            for i in range(config.super_block_size)
        ]
    )


@unique_parameter_names()
def build_llamalike_transformer(
    config: LlamalikeTransformerConfig,
    init_base_rng: jax.Array | None = None,
    name: str = "transformer",
) -> TransformerLM:
    """Builds the model.

    Args:
      config: Its configuration.
      init_base_rng: Key that all parameters are drawn from, each by its label; None builds the
        structure with parameter slots, to be bound to loaded values.
      name: Prefix of all labels.

    Returns:
      The model: tokens {seq, ...} -> logits {seq, ..., vocabulary}.

    Raises:
      ValueError: The configuration is inconsistent.
    """
    stream, dtype = {"embedding": config.embedding_dim}, config.activation_dtype
    table = EmbeddingTable.from_config(
        f"{name}/embedder", init_base_rng, config.vocab_size, stream, dtype=config.parameter_dtype
    )
    sublayers: list[Layer] = [EmbeddingLookup(table, embedding_axes_last=True)]
    if jnp.dtype(dtype) != jnp.dtype(config.parameter_dtype):
        sublayers.append(CastToDType(dtype))
    if config.embeddings_are_scaled:
        sublayers.append(ConstantRescale(config.embedding_dim**0.5))
    sublayers += _blocks(name, init_base_rng, config)
    sublayers.append(rms_norm(f"{name}/final_norm", init_base_rng, stream, config))
    if config.tie_embedder_and_logits:
        sublayers.append(EmbeddingDecode(table))
    else:
        axes = (stream, {"vocabulary": config.vocab_size})
        sublayers.append(projection(f"{name}/lm_head", init_base_rng, axes, False, config))
    if config.final_logit_softcap:
        sublayers.append(TanhSoftCap(config.final_logit_softcap))
    metadata = TransformerMetadata(
        common_head_axes=config.common_head_axes,
        query_only_head_axes=config.query_only_head_axes,
        embedding_dim=config.embedding_dim,
        projection_dim=config.projection_dim,
        mlp_hidden_dim=config.mlp_hidden_dim,
        vocab_size=config.vocab_size,
        activation_dtype=dtype,
        config=config,
    )
    return TransformerLM(Sequential(sublayers), metadata)


def llamalike_from_huggingface_model(
    model: Any, upcast_activations_to_float32: bool = False, use_layer_stack: bool = False
) -> TransformerLM:
    """Converts a live transformers model of any family built from this module.

    The same as `pz_models.from_huggingface`, under Penzai's name; its arguments and errors.
    """
    return from_huggingface(model, upcast_activations_to_float32, use_layer_stack)
