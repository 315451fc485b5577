"""GPT-2: learned positions, layer norms, biases, one projection for query, key and value, a tied head.

Built from the parts of GPT-NeoX, with one residual after the other. Its files hold weights as
{in, out}, unlike all other families'.

    model = pz_models.load("gpt2/")

Reference: Radford et al., Language Models are Unsupervised Multitask Learners (2019).
"""

from __future__ import annotations

import jax.numpy as jnp

from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.families import Family
from pz_models.parameter_plan import Layout, StoredParameter, with_keys
from pz_models.transformer.variants._activations import read_activation
from pz_models.transformer.variants._gpt_neox_parameters import (
    affine_parameters,
    layer_norm_parameters,
)
from pz_models.transformer.variants._gpt_neox_saving import gpt2_fields
from pz_models.transformer.variants.gpt_neox import (
    GPTNeoXTransformerConfig,
    build_gpt_neox_transformer,
)

__all__ = ["FAMILY"]

_PREFIX = "transformer."


def _read_config(reader: ConfigReader) -> GPTNeoXTransformerConfig:
    heads, width = reader.positive("n_head"), reader.positive("n_embd")
    if width % heads:
        raise UnsupportedConfigError(
            f"{reader.source}: 'n_embd' should be a multiple of 'n_head'; they are {width} and"
            f" {heads}."
        )
    for field in ("n_ctx", "reorder_and_upcast_attn"):  # an old name; numerics of float16
        reader.get(field, int if field == "n_ctx" else bool)
    reader.expect("add_cross_attention", False)
    for field in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"):
        reader.get(f"summary_{field}", object)  # of heads for classification
    scaled = reader.get("scale_attn_weights", bool, True)
    return GPTNeoXTransformerConfig(
        num_attention_heads=heads,
        embedding_dim=width,
        projection_dim=width // heads,
        mlp_hidden_dim=reader.positive("n_inner", 4 * width),
        num_decoder_blocks=reader.positive("n_layer"),
        vocab_size=reader.positive("vocab_size"),
        activation_fn=read_activation(reader, "activation_function", "gelu_new"),
        rope_subset_size=0,
        rope_wavelength=1.0,
        layernorm_epsilon=reader.get("layer_norm_epsilon", float, 1e-5),
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
        use_parallel_residual=False,
        max_positions=reader.positive("n_positions", 1024),
        tie_embedder_and_logits=reader.get("tie_word_embeddings", bool, True),
        query_scaling_factor="default" if scaled else 1.0,
        scale_queries_by_depth=reader.get("scale_attn_by_inverse_layer_idx", bool, False),
    )


def _parameters(config: GPTNeoXTransformerConfig) -> Layout:
    """Where files keep each parameter; `config.max_positions` is known."""
    stream, wide = {"embedding": config.embedding_dim}, {"neurons": config.mlp_hidden_dim}
    tokens = {"vocabulary": config.vocab_size}
    assert config.max_positions is not None
    positions = {"position": config.max_positions}
    outer = [
        StoredParameter("embedder.embeddings", f"{_PREFIX}wte.weight", tokens | stream),
        StoredParameter("positions.embeddings", f"{_PREFIX}wpe.weight", positions | stream),
        *layer_norm_parameters("final_norm", f"{_PREFIX}ln_f", stream),
    ]
    if not config.tie_embedder_and_logits:
        outer.append(StoredParameter("lm_head.weights", "lm_head.weight", tokens | stream))
    layer = f"{_PREFIX}h.{{i}}"
    block = [
        *layer_norm_parameters("pre_attention_norm", f"{layer}.ln_1", stream),
        *layer_norm_parameters("pre_ffw_norm", f"{layer}.ln_2", stream),
        *_attention(config, f"{layer}.attn"),
        *affine_parameters("mlp/in", f"{layer}.mlp.c_fc", stream | wide, wide),
        *affine_parameters("mlp/out", f"{layer}.mlp.c_proj", wide | stream, stream),
    ]
    return outer, [block] * config.num_decoder_blocks


def _attention(config: GPTNeoXTransformerConfig, key: str) -> list[StoredParameter]:
    """The fused projection has the columns of query, key and value one after the other."""
    count, size, width = config.num_attention_heads, config.projection_dim, config.embedding_dim
    stream, heads = {"embedding": width}, {"heads": count, "projection": size}
    found = []
    for index, part in enumerate(("query", "key", "value")):
        found += [
            StoredParameter(
                f"attention/{part}/Linear.weights",
                f"{key}.c_attn.weight",
                stream | heads,
                shape=(width, 3 * width),
                view=(width, 3, count, size),
                region=(slice(None), index),
            ),
            StoredParameter(
                f"attention/{part}/AddBias.bias",
                f"{key}.c_attn.bias",
                heads,
                shape=(3 * width,),
                view=(3, count, size),
                region=(index,),
            ),
        ]
    return [
        *found,
        StoredParameter(
            "attention/output/Linear.weights",
            f"{key}.c_proj.weight",
            heads | stream,
            shape=(width, width),
        ),
        StoredParameter("attention/output/AddBias.bias", f"{key}.c_proj.bias", stream),
    ]


def _parameters_without_prefix(config: GPTNeoXTransformerConfig) -> Layout:
    """As the first files had them, which were saved from the model without its head."""
    return with_keys(_parameters(config), lambda key: key.removeprefix(_PREFIX))


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    read_config=_read_config,
    build=build_gpt_neox_transformer,
    parameters=_parameters,
    is_ignored=lambda key: key.endswith((".attn.bias", ".attn.masked_bias")),
    other_layouts=(_parameters_without_prefix,),
    write_config=gpt2_fields,
)
