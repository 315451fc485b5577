"""Where GPT-NeoX checkpoints keep each parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pz_models.parameter_plan import Layout, StoredParameter, with_keys

if TYPE_CHECKING:
    from pz_models.transformer.variants.gpt_neox import GPTNeoXTransformerConfig

__all__ = [
    "affine_parameters",
    "gpt_neox_parameters",
    "gpt_neox_parameters_in_memory",
    "layer_norm_parameters",
]


def gpt_neox_parameters(config: GPTNeoXTransformerConfig) -> Layout:
    """Where files keep each parameter."""
    stream = {"embedding": config.embedding_dim}
    tokens = {"vocabulary": config.vocab_size}
    outer = [
        StoredParameter("embedder.embeddings", "gpt_neox.embed_in.weight", tokens | stream),
        StoredParameter("lm_head.weights", "embed_out.weight", tokens | stream),
        *layer_norm_parameters("final_norm", "gpt_neox.final_layer_norm", stream),
    ]
    layer = "gpt_neox.layers.{i}"
    wide = {"neurons": config.mlp_hidden_dim}
    block = [
        *layer_norm_parameters("pre_attention_norm", f"{layer}.input_layernorm", stream),
        *layer_norm_parameters("pre_ffw_norm", f"{layer}.post_attention_layernorm", stream),
        *_attention(config, f"{layer}.attention"),
        *affine_parameters("mlp/in", f"{layer}.mlp.dense_h_to_4h", wide | stream, wide),
        *affine_parameters("mlp/out", f"{layer}.mlp.dense_4h_to_h", stream | wide, stream),
    ]
    return outer, [block] * config.num_decoder_blocks


def gpt_neox_parameters_in_memory(config: GPTNeoXTransformerConfig) -> Layout:
    """Where models of transformers 5 keep each parameter."""
    heads = {"embed_out.weight": "lm_head.weight"}
    return with_keys(gpt_neox_parameters(config), lambda key: heads.get(key, key))


def _attention(config: GPTNeoXTransformerConfig, key: str) -> list[StoredParameter]:
    """The fused projection holds, for each head, its rows of query, key and value."""
    stream = {"embedding": config.embedding_dim}
    heads = {"heads": config.num_attention_heads, "projection": config.projection_dim}
    count, size, width = config.num_attention_heads, config.projection_dim, config.embedding_dim
    found = []
    for index, part in enumerate(("query", "key", "value")):
        found += [
            StoredParameter(
                f"attention/{part}/Linear.weights",
                f"{key}.query_key_value.weight",
                heads | stream,
                shape=(count * 3 * size, width),
                view=(count, 3, size, width),
                region=(slice(None), index),
            ),
            StoredParameter(
                f"attention/{part}/AddBias.bias",
                f"{key}.query_key_value.bias",
                heads,
                shape=(count * 3 * size,),
                view=(count, 3, size),
                region=(slice(None), index),
            ),
        ]
    return [
        *found,
        StoredParameter(
            "attention/output/Linear.weights",
            f"{key}.dense.weight",
            stream | heads,
            shape=(width, count * size),
        ),
        StoredParameter("attention/output/AddBias.bias", f"{key}.dense.bias", stream),
    ]


def layer_norm_parameters(label: str, key: str, axes: dict[str, int]) -> list[StoredParameter]:
    """Scale and shift of one layer norm."""
    return [
        StoredParameter(f"{label}/scale.weights", f"{key}.weight", axes),
        StoredParameter(f"{label}/shift.bias", f"{key}.bias", axes),
    ]


def affine_parameters(
    label: str, key: str, weights: dict[str, int], bias: dict[str, int]
) -> list[StoredParameter]:
    """Weights and bias of one affine layer, with their axes as they are stored."""
    return [
        StoredParameter(f"{label}/Linear.weights", f"{key}.weight", weights),
        StoredParameter(f"{label}/AddBias.bias", f"{key}.bias", bias),
    ]
