import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, named, raises, raw

from pz_core.selectors import select
from pz_core.variables import unbind_params, variable_jit
from pz_named import named_axes as nx
from pz_nn.attention import (
    ApplyCausalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    ApplyExplicitAttentionMask,
    Attention,
    KVCachingAttention,
)
from pz_nn.attention_bias import ApplyALiBi, SoftmaxWithSink, alibi_slopes
from pz_nn.basic_ops import Elementwise, Softmax
from pz_nn.combinators import Residual
from pz_nn.contraction import NamedEinsum
from pz_nn.fused_attention import FusedAttentionError, FusedMixValues, use_fused_attention
from pz_nn.grouping import Identity, NamedGroup, Sequential
from pz_nn.layer_stack import LayerStack

SEQ = 4
call = variable_jit(lambda layer, x, side: layer(x, **side))


def run(layer, x=None, **side_inputs):
    x = named(0, {"batch": 2, "rows": 3, "seq": SEQ, "embedding": 8}) if x is None else x
    side = {"token_positions": nx.arange("seq", SEQ), **side_inputs}
    return raw(call(layer, x, side), *x.named_shape)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 1), (4, 2)])
def test_fused_equals_explicit(heads, kv_heads, key):
    layer = Attention.from_config("a", key, 8, heads, kv_heads)
    fused = use_fused_attention(select(layer))
    assert select(fused).at_instances_of(FusedMixValues).count() == 1
    assert select(fused).at_instances_of(Softmax).count() == 0
    assert_close(run(fused), run(layer))

    def gradients(layer):
        slots, params = unbind_params(layer, freeze=True)
        x = named(0, {"seq": SEQ, "embedding": 8})

        def loss(params):
            bound = slots.bind_variables(params)
            return jnp.sin(bound(x, token_positions=nx.arange("seq", SEQ)).data_array).sum()

        return jax.jit(jax.grad(loss))(params)

    if kv_heads == 2:
        for a, b in zip(gradients(fused), gradients(layer), strict=True):
            assert_close(raw(a.value, *b.value.named_shape), raw(b.value))


@pytest.mark.parametrize(
    "mask",
    [
        Identity(),
        ApplyCausalSlidingWindowAttentionMask(-1e30, 2),
        Sequential(
            [ApplyCausalAttentionMask(-1e30), ApplyExplicitAttentionMask("attn_mask", -1e30)]
        ),
    ],
    ids=lambda m: type(m).__name__,
)
def test_masks_are_kept(mask, key):
    layer = Attention.from_config("a", key, 8, 4, 2, mask=mask)
    if isinstance(mask, Identity):
        to_attn = layer.query_key_to_attn.sublayers
        layer = (
            select(layer)
            .at(lambda a: a.query_key_to_attn)
            .set(NamedGroup("attn", [to_attn[0], to_attn[-1]]))
        )
    attn_mask = named(5, {"batch": 2, "query_heads": 2, "seq": SEQ, "kv_seq": SEQ}) > -0.5
    attn_mask = attn_mask | (nx.arange("seq", SEQ) == nx.arange("kv_seq", SEQ))
    fused = use_fused_attention(select(layer))
    assert_close(run(fused, attn_mask=attn_mask), run(layer, attn_mask=attn_mask))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_biases_are_kept(dtype, tolerance, key):
    """ALiBi is the bias of the kernel: grouped heads, and positions that differ by row."""
    slopes = alibi_slopes({"head_groups": 2, "query_heads": 2})
    layer = Attention.from_config("a", key, 8, 4, 2, logit_bias=ApplyALiBi(slopes), dtype=dtype)
    fused = use_fused_attention(select(layer))
    assert len(fused.query_key_to_attn.biases) == 1
    x = named(0, {"batch": 2, "seq": SEQ, "embedding": 8}, dtype)
    positions = nx.wrap(jnp.array([[0, 1, 2, 3], [4, 6, 8, 10]]), "batch", "seq")
    expected = run(layer, x, token_positions=positions)
    assert_close(run(fused, x, token_positions=positions), expected, tolerance)
    plain = Attention.from_config("a", key, 8, 4, 2, dtype=dtype)
    assert np.abs(run(plain, x, token_positions=positions) - expected).max() > 5 * tolerance


def test_cached_and_stacked_layers(key):
    def block(name, init_base_rng):
        mask = ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
        layer = Attention.from_config(name, init_base_rng, 8, 4, 2, mask=mask)
        axes = {"batch": 2, "head_groups": 2, "projection": 2}
        return Residual(
            KVCachingAttention.from_uncached(layer, "seq", 6, axes, "end", cache_label=name)
        )

    def make():
        return LayerStack.from_sublayer_builder(block, "blocks", 2, key, {"name": "net/blocks"})

    x = named(0, {"batch": 2, "seq": SEQ, "embedding": 8})
    positions = nx.wrap(jnp.array([0, 1, 2, 3, -1, -1]), "seq")
    expected = run(make(), x, kv_positions=positions, end=jnp.asarray(0))
    fused = use_fused_attention(select(make()))
    assert_close(run(fused, x, kv_positions=positions, end=jnp.asarray(0)), expected)


def with_part(part, key=None):
    layer = Attention.from_config("a", key, 8, 2)
    return select(layer).at_instances_of(ApplyCausalAttentionMask).insert_after(part)


def test_sites_that_need_the_weights_are_refused():
    for part in (Elementwise(jnp.tanh), ApplyALiBi(alibi_slopes({"heads": 2})), Identity()):
        with raises(FusedAttentionError, "the root", type(part).__name__, "explicit weights"):
            use_fused_attention(select(with_part(part)))
        without = select(with_part(part)).at_instances_of(type(part)).remove_from_parent()
        use_fused_attention(select(without))
    sink = Attention.from_config("a", None, 8, 2, softmax=SoftmaxWithSink("kv_seq", None))
    with raises(FusedAttentionError, "SoftmaxWithSink"):
        use_fused_attention(select(sink))
    saver = select(Attention.from_config("a", None, 8, 2)).at_instances_of(Softmax)
    with raises(FusedAttentionError, "Identity follows its softmax"):
        use_fused_attention(select(saver.insert_after(Identity())))
    with raises(FusedAttentionError, "NamedEinsum"):
        use_fused_attention(select(Attention(*[Identity()] * 5)))
    with raises(ValueError, "no attention layer"):
        use_fused_attention(select(Identity()))
    both = [with_part(Identity()), Attention.from_config("a", None, 8, 2)]
    with raises(FusedAttentionError, "[0]"):
        use_fused_attention(select(both))
    fused = use_fused_attention(select(both).at(lambda layers: layers[1]))
    assert select(fused).at_instances_of(FusedMixValues).count() == 1


QUERY = {"heads": "h", "seq": "q", "p": "p"}
KEY = {"heads": "h", "seq": "k", "p": "p"}
LOGITS = {"heads": "h", "seq": "q", "kv_seq": "k"}


@pytest.mark.parametrize(
    "to_logits, mix",
    [
        (((QUERY, KEY, KEY), LOGITS), ((LOGITS, KEY), QUERY)),
        (((QUERY, {**KEY, "seq": "q"}), {"heads": "h", "seq": "q"}), ((LOGITS, KEY), QUERY)),
        (((QUERY, KEY), {**LOGITS, "p": "p"}), ((LOGITS, KEY), QUERY)),
        (((QUERY, KEY), {"seq": "q", "kv_seq": "k"}), ((LOGITS, KEY), QUERY)),
        (((QUERY, KEY), LOGITS), ((LOGITS, QUERY), KEY)),
        (((QUERY, KEY), LOGITS), ((LOGITS, KEY), {**QUERY, "seq": "k"})),
        (
            ((QUERY, KEY), LOGITS),
            ((LOGITS, {"heads": "h", "seq": "k"}), {"heads": "h", "seq": "q"}),
        ),
    ],
)
def test_other_einsums_are_refused(to_logits, mix):
    def layer(to_logits, mix):
        attn = Sequential([NamedEinsum(*to_logits), Softmax(("kv_seq",))])
        return Attention(Identity(), Identity(), Identity(), attn, NamedEinsum(*mix))

    with raises(FusedAttentionError, "the root", "not those of attention"):
        use_fused_attention(select(layer(to_logits, mix)))
    fused = use_fused_attention(select(layer(((QUERY, KEY), LOGITS), ((LOGITS, KEY), QUERY))))
    assert fused.attn_value_to_output.sublayers[0].kv_token_axis == "kv_seq"
