"""Masks, biases, sinks, cross-attention and the standard builder, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.selectors import select
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariable,
    freeze_params,
    unbind_params,
    variable_jit,
)
from pz_named import named_axes as nx
from pz_nn.attention import Attention, KVCachingAttention
from pz_nn.attention_bias import ApplyALiBi, SoftmaxWithSink, alibi_slopes
from pz_nn.attention_masks import (
    ApplyBidirectionalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    ApplyPackedDocumentAttentionMask,
    ApplyPrefixAttentionMask,
    ApplySlidingWindowWithSinksAttentionMask,
)
from pz_nn.basic_ops import Softmax, TanhSoftCap
from pz_nn.embeddings import ApplyRoPE
from pz_nn.fused_attention import use_fused_attention
from pz_nn.grouping import Identity, Sequential
from pz_nn.linear_and_affine import Affine
from pz_nn.ring_cache import RingKVCachingAttention
from pz_nn.standardization import RMSLayerNorm

LOGITS = {"heads": 2, "seq": 5, "kv_seq": 5}
POSITIONS = np.array([0, 1, 2, 3, -1])


def masked(layer, **side_inputs):
    y = layer(named(0, LOGITS), token_positions=nx.wrap(POSITIONS, "seq"), **side_inputs)
    assert axis_order(y) == list(LOGITS)
    keep = raw(y) != -9.0
    assert_close(raw(y)[keep], raw(named(0, LOGITS))[keep])
    assert (keep == keep[:1]).all()
    return keep[0]


Q, K = POSITIONS[:, None], POSITIONS[None, :]


@pytest.mark.smoke
def test_masks():
    assert (masked(ApplyBidirectionalAttentionMask(-9.0)) == np.broadcast_to(K >= 0, (5, 5))).all()
    prefix = masked(ApplyPrefixAttentionMask(-9.0), prefix_length=2)
    assert (prefix == (((Q >= K) | (K < 2)) & (K >= 0))).all()
    ids = np.array([0, 0, 1, 1, 1])
    same = ids[:, None] == ids[None, :]
    documents = nx.wrap(ids, "seq")
    packed = masked(ApplyPackedDocumentAttentionMask(-9.0), document_ids=documents)
    assert (packed == (same & (Q >= K) & (K >= 0))).all()
    whole = masked(ApplyPackedDocumentAttentionMask(-9.0, causal=False), document_ids=documents)
    assert (whole == (same & (K >= 0))).all()
    streaming = masked(ApplySlidingWindowWithSinksAttentionMask(-9.0, 2, 1))
    assert (streaming == ((Q >= K) & (K >= 0) & ((Q - K < 2) | (K < 1)))).all()


def test_the_fill_may_differ_by_head():
    fill = nx.wrap(jnp.array([-1.0, -2.0]), "heads")
    y = ApplyBidirectionalAttentionMask(fill)(
        nx.zeros(LOGITS), token_positions=nx.wrap(POSITIONS, "seq")
    )
    assert axis_order(y) == list(LOGITS)
    assert raw(y)[:, :, -1].tolist() == [[-1.0] * 5, [-2.0] * 5]
    assert (raw(y)[:, :, :-1] == 0).all()


def test_prefix_lengths_may_differ_by_row():
    layer = ApplyPrefixAttentionMask(-9.0)
    y = layer(
        nx.ones({"batch": 2, "seq": 3, "kv_seq": 3}),
        token_positions=nx.arange("seq", 3),
        prefix_length=nx.wrap(jnp.array([0, 2]), "batch"),
    )
    assert (raw(y)[0] > 0).sum() == 6
    assert (raw(y)[1] > 0).sum() == 7
    with raises(KeyError, "'prefix_length'"):
        layer(nx.ones({"seq": 3, "kv_seq": 3}), token_positions=nx.arange("seq", 3))
    with raises(ValueError, "'document_ids'", "'seq'"):
        ApplyPackedDocumentAttentionMask(0.0)(
            nx.ones({"seq": 3, "kv_seq": 3}),
            token_positions=nx.arange("seq", 3),
            document_ids=nx.arange("s", 3),
        )


def test_alibi():
    """Slopes of the paper for 8 heads, and its interpolation for others."""
    assert_close(raw(alibi_slopes({"heads": 8})), [2.0 ** -(i + 1) for i in range(8)])
    expected = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    assert_close(raw(alibi_slopes({"groups": 3, "queries": 2})).reshape(-1), expected)
    logits = named(0, LOGITS)
    y = ApplyALiBi(alibi_slopes({"heads": 2}))(logits, token_positions=nx.arange("seq", 5))
    distance = np.arange(5)[:, None] - np.arange(5)
    slopes = raw(alibi_slopes({"heads": 2}))
    assert_close(raw(y), raw(logits) - slopes[:, None, None] * distance)
    low = ApplyALiBi(alibi_slopes({"heads": 2}))(
        logits.astype(jnp.bfloat16), token_positions=nx.arange("seq", 5)
    )
    assert low.dtype == jnp.bfloat16
    with raises(ValueError, "{'heads': 0}", "at least one"):
        alibi_slopes({"heads": 0})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_softmax_with_sink(dtype, key):
    layer = SoftmaxWithSink.from_config("sinks", key, {"heads": 2})
    assert (raw(layer.sink_logits.value) == 0).all()
    assert SoftmaxWithSink.from_config("s", None, {"heads": 2}).sink_logits == ParameterSlot(
        "s.sink_logits"
    )
    layer.sink_logits.value = nx.wrap(jnp.array([0.5, -jnp.inf]), "heads")
    logits = named(0, {"kv_seq": 4, "heads": 2, "seq": 3}, dtype)
    y = layer(logits)
    assert axis_order(y) == ["heads", "seq", "kv_seq"]
    assert y.dtype == dtype
    e = np.exp(raw(logits, "heads", "seq", "kv_seq"))
    expected = e / (e.sum(-1, keepdims=True) + np.exp([0.5, -np.inf])[:, None, None])
    assert_close(raw(y), expected, 1e-5 if dtype == jnp.float32 else 1e-2)
    with raises(ValueError, "heads"):
        layer(nx.ones({"seq": 2, "kv_seq": 2}))


# --- the builder ------------------------------------------------------------------------------------


def reference(layer, x, kv_heads, per_group, context=None):
    """Causal attention in NumPy from the parameters of a layer without rotary embedding."""
    weights = {p.label.split("/")[1].split(".")[0]: raw(p.value) for p in unbind_params(layer)[1]}
    x = raw(x, "batch", "seq", "embedding")
    size = x.shape[-1]
    context = x if context is None else context
    head = weights["key"].size // size // kv_heads
    query = weights["query"].reshape(size, kv_heads, per_group, head)
    key = weights["key"].reshape(size, kv_heads, head)
    value = weights["value"].reshape(size, kv_heads, head)
    q = np.einsum("bsd,dkmp->bkmsp", x, query) * head**-0.5
    k = np.einsum("btd,dkp->bktp", context, key)
    v = np.einsum("btd,dkp->bktp", context, value)
    logits = np.einsum("bkmsp,bktp->bkmst", q, k)
    if context is x:
        logits = np.where(np.tri(x.shape[1], dtype=bool), logits, -np.inf)
    attn = np.exp(logits - logits.max(-1, keepdims=True))
    attn /= attn.sum(-1, keepdims=True)
    mixed = np.einsum("bkmst,bktp->bskmp", attn, v).reshape(*x.shape[:2], -1)
    return mixed @ weights["output"].reshape(-1, size)


@pytest.mark.parametrize(
    "heads, kv_heads, axes",
    [
        (4, None, {"heads": 4}),
        (4, 1, {"query_heads": 4}),
        (4, 2, {"head_groups": 2, "query_heads": 2}),
        (1, 1, {"heads": 1}),
    ],
)
def test_from_config_equals_numpy(heads, kv_heads, axes, key):
    layer = Attention.from_config("attn", key, 8, heads, kv_heads)
    x = named(0, {"batch": 2, "seq": 3, "embedding": 8})
    y = variable_jit(lambda la, x: la(x, token_positions=nx.arange("seq", 3)))(layer, x)
    kv = kv_heads or heads
    assert_close(raw(y, "batch", "seq", "embedding"), reference(layer, x, kv, heads // kv))
    query = layer.input_to_query.sublayers[0].weights.value.named_shape
    assert query == {"embedding": 8, **axes, "projection": 8 // heads}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_stays_within_bounds(dtype, key):
    """Softmax and norms compute in float32; the rest rounds to about 3 digits (bfloat16: 2)."""
    exact = Attention.from_config("attn", key, 8, 4, 2, query_key_norm=True)
    x = named(0, {"rows": 2, "seq": 5, "embedding": 8})
    call = variable_jit(lambda la, x: la(x, token_positions=nx.arange("seq", 5)))
    low = Attention.from_config("attn", None, 8, 4, 2, query_key_norm=True, dtype=dtype)
    low = low.bind_variables(
        [Parameter(label=p.label, value=p.value.astype(dtype)) for p in unbind_params(exact)[1]]
    )
    y = call(low, x.astype(dtype))
    assert y.dtype == dtype
    bound = 0.05 if dtype == jnp.bfloat16 else 0.01
    assert_close(raw(y, *x.named_shape), raw(call(exact, x), *x.named_shape), bound)


def test_cross_attention(key):
    layer = Attention.from_config("attn", key, 8, 2, context_input_name="encoded")
    x = named(0, {"batch": 2, "seq": 3, "embedding": 8})
    encoded = named(1, {"batch": 2, "seq": 5, "embedding": 8})
    y = variable_jit(lambda la, x, e: la(x, encoded=e))(layer, x, encoded)
    expected = reference(layer, x, 2, 1, raw(encoded))
    assert_close(raw(y, "batch", "seq", "embedding"), expected)
    with raises(KeyError, "'encoded'"):
        layer(x)
    masked = Attention.from_config(
        "attn", key, 8, 2, context_input_name="encoded",
        mask=ApplyBidirectionalAttentionMask(-1e30, "encoded_positions"),
    )  # fmt: skip
    positions = nx.wrap(jnp.array([0, 1, 2, -1, -1]), "seq")
    y = masked(x, encoded=encoded, encoded_positions=positions)
    short = named(1, {"batch": 2, "seq": 5, "embedding": 8})[{"seq": slice(0, 3)}]
    expected = reference(layer, x, 2, 1, raw(short, "batch", "seq", "embedding"))
    assert_close(raw(y, "batch", "seq", "embedding"), expected)


def test_from_config_options():
    rope = ApplyRoPE("projection", 1e4, "token_positions")
    layer = Attention.from_config(
        "attn", None, 8, 4, 2, 6, rope=rope, query_key_norm=True, use_bias=True,
        use_output_bias=True, logit_soft_cap=50.0, logit_bias=Identity(), mask=Identity(),
        dtype=jnp.bfloat16,
    )  # fmt: skip
    kinds = [type(part) for part in layer.input_to_query.sublayers]
    assert kinds[:3] == [Affine, RMSLayerNorm, ApplyRoPE]
    assert [type(p) for p in layer.input_to_key.sublayers] == [Affine, RMSLayerNorm, ApplyRoPE]
    assert isinstance(layer.input_to_value, Affine)
    kinds = [type(part) for part in layer.query_key_to_attn.sublayers]
    assert kinds[1:] == [TanhSoftCap, Identity, Identity, Softmax]
    slots = jax.tree.leaves(layer, is_leaf=lambda x: isinstance(x, ParameterSlot))
    labels = [s.label for s in slots if isinstance(s, ParameterSlot)]
    assert labels[0] == "attn/query/Linear.weights"
    assert "attn/key_norm/scale.weights" in labels
    assert isinstance(layer.attn_value_to_output, Sequential)
    assert not any(isinstance(x, StateVariable) for x in jax.tree.leaves(layer))


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("heads", [1, 2])
def test_zero_length_sequences_one_token_and_one_head(length, heads, key):
    """Every form of attention: plain, fused, cached, in a ring."""
    window = ApplyCausalSlidingWindowAttentionMask(-1e30, 2)
    plain = freeze_params(Attention.from_config("a", key, 4, heads, mask=window))
    axes = {"batch": 2, "heads": heads, "projection": 4 // heads}
    ring = RingKVCachingAttention.from_uncached(plain, "seq", 3, axes, "end")
    cached = KVCachingAttention.from_uncached(plain, "seq", 3, axes, "end")
    cached = dataclasses.replace(cached, query_key_to_attn=ring.query_key_to_attn)
    x = named(0, {"batch": 2, "seq": length, "embedding": 4})
    side = {
        "token_positions": nx.arange("seq", length),
        "kv_token_positions": nx.wrap(jnp.array([0, -1, -1]), "seq"),
        "end": 0,
    }
    results = [
        variable_jit(lambda la, x, side: la(x, **side))(layer, x, side)
        for layer in (plain, use_fused_attention(select(plain)), cached, ring)
    ]
    for y in results:
        assert y.named_shape == x.named_shape
        assert_close(raw(y, *x.named_shape), raw(results[0], *x.named_shape))
    if length == 0:  # nothing was written
        assert all((raw(c) == 0).all() for la in (cached, ring) for c in la.kv_cache.value)
