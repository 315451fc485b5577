"""The Llama-like builders: pinned values, trees, labels, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_tiny import Z

from pz_core.selectors import select
from pz_core.variables import ParameterSlot, ParameterValue, freeze_params, unbind_params
from pz_models.transformer.model_parts import TransformerBlock, TransformerLM
from pz_models.transformer.variants import llamalike_common as ll
from pz_named import named_axes as nx
from pz_nn.attention import Attention
from pz_nn.basic_ops import CastToDType, TanhSoftCap
from pz_nn.embeddings import EmbeddingDecode, EmbeddingLookup
from pz_nn.linear_and_affine import ConstantRescale, Linear
from pz_nn.standardization import RMSLayerNorm

LOCAL, GLOBAL = ll.AttentionTypeSlidingWindowCausal(2), ll.AttentionTypeGlobalCausal()
EVERYTHING = {
    "num_kv_heads": 1,
    "query_head_multiplier": 4,
    "mlp_variant": "geglu_approx",
    "attention_type": [LOCAL, GLOBAL],
    "use_qk_norm": True,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
    "final_logit_softcap": 30.0,
    "attn_logits_soft_cap": 5.0,
    "query_scaling_factor": 0.7,
    "global_scale_factor": 8.0,
    "rope_wavelength": 1e6,
    "local_rope_wavelength": 1e4,
}
# What Penzai 0.2.5 gives for the same key: the last position's first logits, and their sum.
PINNED = {
    "grouped": ({}, [-1.629726, -0.286510, 1.359167, 1.917647, 1.095890], 3.31675),
    "stacked": (
        {"use_layer_stack": True},
        [-1.178504, -0.748731, 0.971506, 2.282605, 0.928183],
        -4.08731,
    ),
    "full heads, untied": (
        {"query_head_multiplier": 1, "tie_embedder_and_logits": False},
        [0.018413, 0.728255, -1.370641, -2.007874, 1.993567],
        10.13773,
    ),
    "everything": (EVERYTHING, [-0.951317, -0.297102, 1.669971, 1.134254, 0.498833], 0.72936),
}


def _build(key, **changes):
    return tiny.build(key, Z, **changes)


@pytest.mark.smoke
@pytest.mark.parametrize("case", PINNED)
def test_pinned_values(key, tokens, case):
    changes, logits, total = PINNED[case]
    result = tiny.logits(_build(key, **changes), tokens)
    np.testing.assert_allclose(result[-1, :5], logits, atol=2e-5)
    np.testing.assert_allclose(result.sum(), total, atol=2e-4)


def test_tree_and_order_of_parameters(key):
    model = _build(key, **(EVERYTHING | {"tie_embedder_and_logits": False}))
    kinds = [type(layer) for layer in model.body.sublayers]
    assert kinds == [
        EmbeddingLookup,
        TransformerBlock,
        TransformerBlock,
        RMSLayerNorm,
        Linear,
        TanhSoftCap,
    ]
    block = model.body.sublayers[1]
    assert isinstance(block.sublayers[0].delta.sublayers[1], Attention)
    values = select(model).at_instances_of(ParameterValue).get_sequence()
    labels = [value.label for value in values]
    of_block = """pre_attention_norm/scale attention/query attention/query_norm/scale
        attention/key attention/key_norm/scale attention/value attention/output
        post_attention_norm/scale pre_ffw_norm/scale mlp/gating_linear mlp/value_linear
        mlp/out_linear post_ffw_norm/scale""".split()
    expected = [f"block_{i}/{name}.weights" for i in range(2) for name in of_block]
    expected = ["embedder.embeddings", *expected, "final_norm/scale.weights", "lm_head.weights"]
    assert labels == [f"transformer/{label}" for label in expected]


AXES = {
    "head groups": ((2, 2), {"head_groups": 2, "query_heads": 2}, {"head_groups": 2}),
    "full": ((2, 1), {"heads": 2}, {"heads": 2}),
    "one key head": ((1, 4), {"query_heads": 4}, {}),
    "one head": ((1, 1), {"heads": 1}, {"heads": 1}),
}


@pytest.mark.parametrize("case", AXES)
def test_head_axes(case):
    (groups, multiplier), query, key_value = AXES[case]
    model = _build(None, num_kv_heads=groups, query_head_multiplier=multiplier)
    assert model.metadata.common_head_axes == key_value
    attention = select(model).at_instances_of(Attention).pick_nth_selected(0).get()
    built = jax.eval_shape(
        lambda key: freeze_params(
            _build(key, num_kv_heads=groups, query_head_multiplier=multiplier)
        ),
        jax.random.key(0),
    )
    attention = select(built).at_instances_of(Attention).pick_nth_selected(0).get()
    shape = attention.input_to_query.sublayers[0].weights.value.named_shape
    assert shape == {"embedding": 16, **query, "projection": 4}
    shape = attention.input_to_value.sublayers[-1].weights.value.named_shape
    assert shape == {"embedding": 16, **key_value, "projection": 4}


def test_tied_head_is_one_parameter_and_scaling_is_separate(key, tokens):
    scaled, plain = _build(key), _build(key, scale_embeddings=False)
    assert select(scaled.body.sublayers).at_instances_of(ConstantRescale).count() == 3
    assert select(plain.body.sublayers).at_instances_of(ConstantRescale).count() == 2
    for model in (scaled, plain):
        lookup, decode = model.body.sublayers[0], model.body.sublayers[-1]
        assert isinstance(decode, EmbeddingDecode)
        assert lookup.table.embeddings.label == decode.table.embeddings.label
    by_hand = select(plain).at(lambda m: m.body.sublayers[0]).insert_after(ConstantRescale(4.0))
    np.testing.assert_allclose(tiny.logits(by_hand, tokens), tiny.logits(scaled, tokens), atol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_abstract_shapes_and_dtypes(dtypes, stacked):
    parameter, activation = map(jnp.dtype, dtypes)

    def call(key, tokens):
        model = _build(
            key, parameter_dtype=parameter, activation_dtype=activation, use_layer_stack=stacked,
            tie_embedder_and_logits=False,
        )  # fmt: skip
        return freeze_params(model)(tokens), freeze_params(model)

    tokens = nx.zeros({"batch": 3, "seq": 13}, jnp.int32)
    logits, model = jax.eval_shape(call, jax.random.key(0), tokens)
    assert logits.named_shape == {"batch": 3, "seq": 13, "vocabulary": 11}
    assert logits.dtype == activation
    assert select(model).at_instances_of(CastToDType).count() == (parameter != activation)
    values = select(model).at_instances_of(nx.NamedArray).get_sequence()
    assert {value.dtype for value in values} == {parameter}


def test_without_a_key_there_are_slots(key):
    config = dataclasses.replace(Z, use_layer_stack=True)
    slots, parameters = unbind_params(ll.build_llamalike_transformer(config, key))
    empty = ll.build_llamalike_transformer(config)
    assert jax.tree.structure(slots) == jax.tree.structure(empty)
    assert select(empty).at_instances_of(ParameterSlot).count() == len(parameters) + 1  # tied


def test_padding_takes_no_position(key):
    model = _build(key)
    alone = tiny.logits(model, nx.wrap(jnp.array([4, 5]), "seq"))
    padded = tiny.logits(
        model,
        nx.wrap(jnp.array([0, 4, 0, 5]), "seq"),
        token_positions=nx.wrap(jnp.array([-1, 0, -1, 1]), "seq"),
    )
    np.testing.assert_allclose(padded[[1, 3]], alone, atol=1e-5)


BAD_CONFIGS = [
    ({"mlp_variant": "reglu"}, "mlp_variant must be one of geglu_exact.*received 'reglu'"),
    ({"attention_type": [LOCAL] * 3}, "must divide.*3 types and 2 blocks"),
    ({"attention_type": [LOCAL, "global"]}, "must hold AttentionTypeGlobalCausal.*'global'"),
    ({"global_scale_factor": 0.5}, "0.5"),
]


@pytest.mark.parametrize("changes, message", BAD_CONFIGS)
def test_bad_configurations(key, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        _build(key, **changes)(tokens)


def test_block_index_is_needed_for_a_sequence(key):
    config = dataclasses.replace(Z, attention_type=[LOCAL, GLOBAL])
    with pytest.raises(ValueError, match="block_index is needed"):
        ll.build_llamalike_attention("a", key, config)
    assert ll.build_llamalike_attention("a", key, config, block_index=0) is not None


BAD_TOKENS = [
    (jnp.array([1, 2]), TypeError, "must be a named array"),
    (nx.wrap(jnp.array([1, 2]), "time"), ValueError, r"must have the axis 'seq'.*time"),
]


@pytest.mark.parametrize("value, error, message", BAD_TOKENS)
def test_bad_tokens(key, value, error, message):
    model: TransformerLM = _build(key)
    with pytest.raises(error, match=message):
        model(value)


MIXED = {
    "everything": EVERYTHING | {"num_decoder_blocks": 4},
    "no rotary positions in some": {"num_decoder_blocks": 4, "rope_layers": (True, False) * 2},
    "no rotary positions at all": {"rope_layers": (False, False)},
}


@pytest.mark.parametrize("case", MIXED)
def test_blocks_that_differ_can_be_stacked(key, case):
    tokens = nx.wrap(jnp.array([1, 2, 3, 4, 5]), "seq")
    stacked = _build(key, **MIXED[case], use_layer_stack=True)
    unstacked = tiny.rename_blocks(stacked)
    np.testing.assert_allclose(
        tiny.logits(stacked, tokens), tiny.logits(unstacked, tokens), atol=1e-4
    )


def test_stacked_agrees_with_unstacked_and_so_do_gradients(key, tokens):
    stacked = _build(key, use_layer_stack=True)
    unstacked = tiny.rename_blocks(stacked)
    np.testing.assert_allclose(
        tiny.logits(stacked, tokens), tiny.logits(unstacked, tokens), atol=1e-4
    )

    @jax.jit
    def gradients(model):
        return jax.grad(lambda m: jnp.sum(jnp.sin(m(tokens).unwrap("seq", "vocabulary"))))(model)

    def by_label(model):
        values = select(gradients(model)).at_instances_of(ParameterValue).get_sequence()
        return {value.label: value.value for value in values}

    ours, theirs = by_label(stacked), by_label(unstacked)
    for label, gradient in theirs.items():
        if "/block_1/" in label:
            expected = ours[label.replace("/block_1/", "/blocks/")][{"blocks": 1}]
            axes = tuple(gradient.named_shape)
            np.testing.assert_allclose(gradient.unwrap(*axes), expected.unwrap(*axes), atol=1e-4)
