"""GPT-NeoX and Pythia: layer norms, biases, rotary positions in part of a head, parallel residuals.

A block computes y = x + attention(norm_1(x)) + mlp(norm_2(x)), both norms reading the same x; with
`use_parallel_residual=False` the second one reads what the first has added to. With learned
positions and a tied head instead of rotary ones it is GPT-2, which is built here as well.

    model = build_gpt_neox_transformer(config, init_base_rng=jax.random.key(0))
    model = gpt_neox_from_huggingface_model(transformers.GPTNeoXForCausalLM.from_pretrained(...))

References: Black et al., GPT-NeoX-20B (2022); Biderman et al., Pythia (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pz_core.selectors import select
from pz_models._rope_config import read_rotary
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.families import Family
from pz_models.huggingface import from_huggingface_of_type
from pz_models.transformer.model_parts import (
    TransformerBlock,
    TransformerFeedForward,
    TransformerLM,
    TransformerMetadata,
)
from pz_models.transformer.variants._activations import ACTIVATIONS, read_activation
from pz_models.transformer.variants._gpt_neox_parameters import (
    gpt_neox_parameters,
    gpt_neox_parameters_in_memory,
)
from pz_models.transformer.variants._gpt_neox_saving import gpt_neox_fields
from pz_models.transformer.variants._llamalike_parts import causal_mask
from pz_named import named_axes as nx
from pz_nn.attention import Attention
from pz_nn.basic_ops import CastToDType, Elementwise, Softmax
from pz_nn.combinators import BranchAndAddTogether, Residual
from pz_nn.embeddings import (
    ApplyRoPEToSubset,
    EmbeddingDecode,
    EmbeddingLookup,
    EmbeddingTable,
)
from pz_nn.grouping import Identity, Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import Affine, ConstantRescale, Linear, NamedEinsum
from pz_nn.parameters import unique_parameter_names
from pz_nn.position_embeddings import AddLearnedPositions
from pz_nn.rope_scaling import RoPEScaling
from pz_nn.standardization import LayerNorm

__all__ = [
    "FAMILY",
    "GPTNeoXTransformerConfig",
    "build_gpt_neox_attention",
    "build_gpt_neox_block",
    "build_gpt_neox_feedforward",
    "build_gpt_neox_transformer",
    "gpt_neox_from_huggingface_model",
]


@dataclasses.dataclass
class GPTNeoXTransformerConfig:
    """What distinguishes one GPT-NeoX from another.

    Attributes:
      num_attention_heads: Heads H.
      embedding_dim: Size D of the residual stream.
      projection_dim: Size P of a head.
      mlp_hidden_dim: Width F of the feed-forward part.
      num_decoder_blocks: Blocks.
      vocab_size: Tokens.
      activation_fn: "gelu_exact" (erf), "gelu_approx" (tanh), "silu" or "relu".
      rope_subset_size: How many leading entries of a head are rotated; 0 for no rotary positions.
      rope_wavelength: Rotary base.
      layernorm_epsilon: ε of every norm.
      parameter_dtype: Dtype of parameters.
      activation_dtype: Dtype of activations.
      use_layer_stack: Whether blocks are one `LayerStack`, run by a loop.
      use_parallel_residual: Whether both parts of a block read the same input.
      rope_scaling: Rule for the rotary frequencies; None for none.
      max_positions: How many positions have a learned embedding; None for no such embeddings.
      tie_embedder_and_logits: Whether the output head is the embedding table.
      query_scaling_factor: What queries are multiplied by; "default" is P ** -0.5.
      scale_queries_by_depth: Whether queries of block i are divided by i + 1 besides.
    """

    num_attention_heads: int
    embedding_dim: int
    projection_dim: int
    mlp_hidden_dim: int
    num_decoder_blocks: int
    vocab_size: int
    activation_fn: Literal["gelu_exact", "gelu_approx", "silu", "relu"]
    rope_subset_size: int
    rope_wavelength: float
    layernorm_epsilon: float
    parameter_dtype: Any
    activation_dtype: Any
    use_layer_stack: bool = False
    use_parallel_residual: bool = True
    rope_scaling: RoPEScaling | None = None
    max_positions: int | None = None
    tie_embedder_and_logits: bool = False
    query_scaling_factor: float | Literal["default"] = "default"
    scale_queries_by_depth: bool = False


def build_gpt_neox_feedforward(
    name: str, init_base_rng: jax.Array | None, config: GPTNeoXTransformerConfig
) -> TransformerFeedForward:
    """The feed-forward part: affine, activation, affine.

    Args:
      name: Name of the part, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.

    Raises:
      KeyError: `activation_fn` is not known.
    """
    if config.activation_fn not in ACTIVATIONS:
        raise KeyError(
            f"build_gpt_neox_feedforward: activation_fn must be one of {', '.join(ACTIVATIONS)};"
            f" received {config.activation_fn!r}."
        )
    stream, wide = {"embedding": config.embedding_dim}, {"neurons": config.mlp_hidden_dim}
    affine = functools.partial(Affine.from_config, dtype=config.parameter_dtype)
    return TransformerFeedForward(
        [
            affine(f"{name}/in", init_base_rng, input_axes=stream, output_axes=wide),
            Elementwise(ACTIVATIONS[config.activation_fn]),
            affine(f"{name}/out", init_base_rng, input_axes=wide, output_axes=stream),
        ]
    )


def build_gpt_neox_attention(
    name: str,
    init_base_rng: jax.Array | None,
    config: GPTNeoXTransformerConfig,
    block_index: int = 0,
) -> Attention:
    """Causal attention with biases; rotary positions in the first entries of each head.

    Args:
      name: Name of the part, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.
      block_index: Which block; matters if `config.scale_queries_by_depth`.
    """
    stream = {"embedding": config.embedding_dim}
    heads = {"heads": config.num_attention_heads, "projection": config.projection_dim}
    dtype = config.activation_dtype

    def affine(part: str, into: dict[str, int], out: dict[str, int]) -> Affine:
        return Affine.from_config(
            f"{name}/{part}",
            init_base_rng,
            input_axes=into,
            output_axes=out,
            dtype=config.parameter_dtype,
        )

    rotary = ApplyRoPEToSubset(
        embedding_axis="projection",
        max_wavelength=config.rope_wavelength,
        rope_subset_size=config.rope_subset_size,
        positions_input_name="token_positions",
        scaling=config.rope_scaling,
        angles_in_input_dtype=True,  # as HuggingFace
    )
    rope = [rotary] if config.rope_subset_size else []
    query = {"seq": "tq", "heads": "h", "projection": "p"}
    key = {"seq": "tkv", "heads": "h", "projection": "p"}
    logits = {"heads": "h", "seq": "tq", "kv_seq": "tkv"}  # the order of XLA's products
    scale = ConstantRescale(_query_scale(config, block_index))
    return Attention(
        input_to_query=Sequential([affine("query", stream, heads), *rope, scale]),
        input_to_key=Sequential([affine("key", stream, heads), *rope]),
        input_to_value=Sequential([affine("value", stream, heads)]),
        query_key_to_attn=Sequential(
            [NamedEinsum((query, key), logits), causal_mask(None, dtype), Softmax("kv_seq")]
        ),
        attn_value_to_output=Sequential(
            [NamedEinsum((logits, key), query), affine("output", heads, stream)]
        ),
    )


def _query_scale(config: GPTNeoXTransformerConfig, block_index: int) -> float:
    given = config.query_scaling_factor
    scale: float = config.projection_dim**-0.5 if given == "default" else given
    return scale / (block_index + 1) if config.scale_queries_by_depth else scale


def build_gpt_neox_block(
    name: str,
    init_base_rng: jax.Array | None,
    config: GPTNeoXTransformerConfig,
    block_index: int = 0,
) -> TransformerBlock:
    """One block, its two parts in parallel or one after the other.

    Args:
      name: Name of the block, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      config: The model's configuration.
      block_index: Which block; matters if `config.scale_queries_by_depth`.
    """
    parts = [
        Sequential(
            [
                _norm(f"{name}/pre_attention_norm", init_base_rng, config),
                build_gpt_neox_attention(f"{name}/attention", init_base_rng, config, block_index),
            ]
        ),
        Sequential(
            [
                _norm(f"{name}/pre_ffw_norm", init_base_rng, config),
                build_gpt_neox_feedforward(f"{name}/mlp", init_base_rng, config),
            ]
        ),
    ]
    if config.use_parallel_residual:
        return TransformerBlock([BranchAndAddTogether([Identity(), *parts])])
    return TransformerBlock([Residual(part) for part in parts])


def _norm(name: str, rng: jax.Array | None, config: GPTNeoXTransformerConfig) -> LayerNorm:
    return LayerNorm.from_config(
        name,
        rng,
        {"embedding": config.embedding_dim},
        epsilon=config.layernorm_epsilon,
        dtype=config.parameter_dtype,
    )


def _blocks(
    name: str, init_base_rng: jax.Array | None, config: GPTNeoXTransformerConfig
) -> list[Layer]:
    """The blocks one by one, or all as one layer stack."""
    count = config.num_decoder_blocks
    if not config.use_layer_stack:
        return [
            build_gpt_neox_block(f"{name}/block_{i}", init_base_rng, config, i)
            for i in range(count)
        ]
    stack = LayerStack.from_sublayer_builder(
        build_gpt_neox_block,
        "blocks",
        count,
        init_base_rng,
        {"name": f"{name}/blocks", "config": config},
    )
    if not config.scale_queries_by_depth:
        return [stack]
    scales = [_query_scale(config, i) for i in range(count)]
    by = nx.wrap(jnp.asarray(scales, config.activation_dtype), "blocks")
    return [select(stack).at_instances_of(ConstantRescale).apply(lambda _: ConstantRescale(by))]


@unique_parameter_names()
def build_gpt_neox_transformer(
    config: GPTNeoXTransformerConfig,
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
    """
    stream, dtype = {"embedding": config.embedding_dim}, config.parameter_dtype
    table = EmbeddingTable.from_config(
        f"{name}/embedder", init_base_rng, config.vocab_size, stream, dtype=dtype
    )
    sublayers: list[Layer] = [EmbeddingLookup(table, embedding_axes_last=True)]
    if jnp.dtype(config.activation_dtype) != jnp.dtype(dtype):
        sublayers.append(CastToDType(config.activation_dtype))
    if config.max_positions is not None:
        sublayers.append(
            AddLearnedPositions.from_config(
                f"{name}/positions", init_base_rng, config.max_positions, stream, dtype=dtype
            )
        )
    sublayers += _blocks(name, init_base_rng, config)
    sublayers.append(_norm(f"{name}/final_norm", init_base_rng, config))
    if config.tie_embedder_and_logits:
        sublayers.append(EmbeddingDecode(table))
    else:
        head = {"vocabulary": config.vocab_size}
        sublayers.append(
            Linear.from_config(
                f"{name}/lm_head", init_base_rng, input_axes=stream, output_axes=head, dtype=dtype
            )
        )
    metadata = TransformerMetadata(
        common_head_axes={"heads": config.num_attention_heads},
        query_only_head_axes={},
        embedding_dim=config.embedding_dim,
        projection_dim=config.projection_dim,
        mlp_hidden_dim=config.mlp_hidden_dim,
        vocab_size=config.vocab_size,
        activation_dtype=config.activation_dtype,
        config=config,
    )
    return TransformerLM(Sequential(sublayers), metadata)


def _read_config(reader: ConfigReader) -> GPTNeoXTransformerConfig:
    heads, width = reader.positive("num_attention_heads"), reader.positive("hidden_size")
    if width % heads:
        raise UnsupportedConfigError(
            f"{reader.source}: 'hidden_size' should be a multiple of 'num_attention_heads'; they"
            f" are {width} and {heads}."
        )
    reader.expect("attention_bias", True)
    reader.expect("tie_word_embeddings", False)
    rotary = read_rotary(
        reader,
        default_base=reader.get("rotary_emb_base", float, 10_000.0),
        default_fraction=reader.get("rotary_pct", float, 0.25),
    )
    return GPTNeoXTransformerConfig(
        num_attention_heads=heads,
        embedding_dim=width,
        projection_dim=width // heads,
        mlp_hidden_dim=reader.positive("intermediate_size"),
        num_decoder_blocks=reader.positive("num_hidden_layers"),
        vocab_size=reader.positive("vocab_size"),
        activation_fn=read_activation(reader, "hidden_act", "gelu"),
        rope_subset_size=rotary.rotated(width // heads),
        rope_wavelength=rotary.base,
        layernorm_epsilon=reader.get("layer_norm_eps", float, 1e-5),
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
        use_parallel_residual=reader.get("use_parallel_residual", bool, True),
        rope_scaling=rotary.scaling,
    )


FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read_config=_read_config,
    build=build_gpt_neox_transformer,
    parameters=gpt_neox_parameters,
    is_ignored=lambda key: key.endswith((".attention.bias", ".masked_bias", ".inv_freq")),
    other_layouts=(gpt_neox_parameters_in_memory,),
    write_config=gpt_neox_fields,
)


def gpt_neox_from_huggingface_model(
    model: Any, upcast_activations_to_float32: bool = False, use_layer_stack: bool = False
) -> TransformerLM:
    """Converts a live `GPTNeoXForCausalLM`; arguments as in `pz_models.from_huggingface`.

    Raises:
      UnsupportedConfigError: The model is of another family, or its configuration not understood.
    """
    return from_huggingface_of_type(
        model,
        "gpt_neox",
        "gpt_neox_from_huggingface_model",
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
    )
