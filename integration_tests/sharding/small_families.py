"""Small models of each kind of family; as a script, compares them on 8 devices with one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.variables import bind_variables, unbind_params
from pz_models.transformer.variants import experts, gpt_neox, llamalike_common
from pz_named.named_axes import wrap
from pz_toolshed.losses import next_token_loss
from pz_toolshed.sharding_util import (
    name_to_name_device_put,
    shard_model,
    sharding_rows,
    transformer_rules,
)

LLAMA = llamalike_common.LlamalikeTransformerConfig(
    num_kv_heads=4,
    query_head_multiplier=2,
    embedding_dim=16,
    projection_dim=4,
    mlp_hidden_dim=24,
    num_decoder_blocks=2,
    vocab_size=32,
    mlp_variant="swiglu",
    tie_embedder_and_logits=False,
    use_layer_stack=True,
)
NEOX = gpt_neox.GPTNeoXTransformerConfig(
    num_attention_heads=4,
    embedding_dim=16,
    projection_dim=4,
    mlp_hidden_dim=24,
    num_decoder_blocks=2,
    vocab_size=32,
    activation_fn="gelu_exact",
    rope_subset_size=2,
    rope_wavelength=10_000,
    layernorm_epsilon=1e-5,
    parameter_dtype=jnp.float32,
    activation_dtype=jnp.float32,
    use_layer_stack=True,
)
GPT_2 = dataclasses.replace(NEOX, max_positions=8, rope_subset_size=0, tie_embedder_and_logits=True)


def llamalike(**changes):
    config = dataclasses.replace(LLAMA, **changes)
    return functools.partial(llamalike_common.build_llamalike_transformer, config)


# By name: the builder, and whether its heads come in groups (or all have keys of their own).
FAMILIES = {
    "llama": (llamalike(), True),
    "llama-unstacked-biases": (
        llamalike(use_layer_stack=False, attention_bias=True, mlp_bias=True),
        True,
    ),
    "olmo-2": (
        llamalike(
            query_head_multiplier=1,
            use_qk_norm=True,
            qk_norm_across_heads=True,
            use_pre_norm=False,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
        ),
        True,
    ),
    "gemma": (
        llamalike(
            num_kv_heads=1,
            query_head_multiplier=4,
            mlp_variant="geglu_approx",
            tie_embedder_and_logits=True,
            norm_offset=1.0,
        ),
        False,
    ),
    "mixtral": (llamalike(experts=experts.ExpertsConfig(4, per_token=2, hidden_dim=24)), True),
    "gpt-2": (functools.partial(gpt_neox.build_gpt_neox_transformer, GPT_2), True),
    "gpt-neox": (functools.partial(gpt_neox.build_gpt_neox_transformer, NEOX), True),
}
COMPARED = ("llama", "gemma", "mixtral", "gpt-neox")


@jax.jit
def loss_and_gradient(slots, values, tokens):
    def loss(values):
        return next_token_loss(bind_variables(slots, values)(tokens), tokens).mean

    return jax.value_and_grad(loss)(values)


def compare(family, tokens, mesh):
    build, grouped = FAMILIES[family]
    model = build(jax.random.key(0))
    want = loss_and_gradient(*unbind_params(model, freeze=True), tokens)
    batch = name_to_name_device_put(tokens, mesh, {"batch": "data"})
    rules = transformer_rules(
        data="data", tensor="model", fully_sharded=True, grouped_heads=grouped
    )
    placed = shard_model(model, mesh, rules)
    before, after = (sum(r.bytes_per_device for r in sharding_rows(m)) for m in (model, placed))
    assert after < before / 4, (before, after)
    got = loss_and_gradient(*unbind_params(placed, freeze=True), batch)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5)
    print(family, flush=True)


def main():
    assert len(jax.devices()) == 8
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=auto)
    tokens = wrap(jnp.arange(24).reshape(4, 6) % 31).tag("batch", "seq")
    for family in COMPARED:
        compare(family, tokens, mesh)


if __name__ == "__main__":
    main()
