"""The caching sampler and the plain loop around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_tiny import Z

from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import unbind_state_vars, variable_jit
from pz_models.transformer.sampling_mode import KVCachingTransformerLM
from pz_models.transformer.simple_decoding_loop import temperature_sample_pyloop
from pz_models.transformer.variants import llamalike_common as ll
from pz_named import named_axes as nx
from pz_named.shapecheck import StructureMismatchError
from pz_nn.attention import ApplyCausalAttentionMask, Attention, KVCachingAttention
from pz_nn.kv_cache import KVCacheOverflowError
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStackVarBehavior

WINDOW = ll.AttentionTypeSlidingWindowCausal(3)
_call = variable_jit(lambda sampler, tokens: sampler(tokens))


def _sampler(model, cache_len=12, batch_axes=None, pad_id=-1):
    axes = {"batch": 2} if batch_axes is None else batch_axes
    return KVCachingTransformerLM.from_uncached(model, cache_len, axes, pad_id=pad_id)


def _batch(rows):
    return nx.wrap(jnp.array(rows), "batch", "seq")


@pytest.mark.parametrize("changes", [{}, {"use_layer_stack": True}, {"attention_type": WINDOW}])
def test_chunks_equal_one_uncached_call(key, changes):
    model = tiny.build(key, Z, **changes)
    rows = _batch([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 3, 1]])
    whole = tiny.logits(model, rows)
    sampler = _sampler(model)
    chunks = [
        _call(sampler, rows[{"seq": slice(a, b)}]).unwrap("batch", "seq", "vocabulary")
        for a, b in ((0, 4), (4, 5), (5, 6))
    ]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, atol=1e-4)
    assert int(sampler.cache_end_index.value) == 6


@pytest.mark.parametrize("row", [[9, 9, 4, 5, 6], [4, 5, 6, 9, 9], [4, 9, 5, 9, 6]])
def test_padding_anywhere_changes_nothing(key, row):
    model = tiny.build(key, Z, attention_type=WINDOW)
    alone = tiny.logits(model, nx.wrap(jnp.array([4, 5, 6]), "seq"))
    sampler = _sampler(model, batch_axes={}, pad_id=9)
    padded = _call(sampler, nx.wrap(jnp.array(row), "seq")).unwrap("seq", "vocabulary")
    np.testing.assert_allclose(padded[np.array(row) != 9], alone, atol=1e-4)
    assert bool(jnp.isfinite(padded).all())


def test_stacked_cache_has_the_stack_axis(key):
    sampler = _sampler(tiny.build(key, Z, use_layer_stack=True))
    attention = select(sampler).at_instances_of(KVCachingAttention).get()
    assert attention.kv_cache.label == "sampler/cache_0"
    assert attention.kv_cache.metadata == {
        "layerstack_axes": {"blocks": LayerStackVarBehavior.PER_LAYER}
    }
    assert attention.kv_cache.value[0].named_shape == {
        "blocks": 2, "batch": 2, "head_groups": 2, "projection": 4, "seq": 12
    }  # fmt: skip


@pytree_dataclass
class _Compiled(Layer):
    """Runs a layer compiled, as toolshed's `Jitted` does."""

    layer: Layer

    def __call__(self, value, /, **side_inputs):
        return _compiled_call(self.layer, value, side_inputs)


_compiled_call = variable_jit(lambda layer, value, side_inputs: layer(value, **side_inputs))


def _with_compiled_body(sampler):
    return dataclasses.replace(sampler, body=_Compiled(sampler.body))


def test_loop_samples_as_penzai_does(key):
    sampler = _with_compiled_body(_sampler(tiny.build(key, Z), pad_id=0))
    out = temperature_sample_pyloop(
        sampler, _batch([[1, 2, 3], [4, 5, 0]]), jax.random.key(5), 0.8, max_sampling_steps=6
    )
    np.testing.assert_array_equal(
        out.unwrap("batch", "seq"), [[4, 2, 2, 2, 7, 7], [1, 1, 7, 1, 5, 5]]
    )
    assert out.dtype == jnp.int32


def test_loop_is_greedy_at_temperature_zero_and_stops_when_full(key):
    model = tiny.build(key, Z)
    sampler = _with_compiled_body(_sampler(model, cache_len=6, batch_axes={}))
    out = temperature_sample_pyloop(sampler, nx.wrap(jnp.array([1, 2, 3]), "seq"), key, 0.0)
    whole = np.array([1, 2, 3, *out.unwrap("seq")])
    likeliest = tiny.logits(model, nx.wrap(jnp.array(whole), "seq")).argmax(-1)
    np.testing.assert_array_equal(likeliest[2:-1], whole[3:])
    assert len(whole) == 7  # room for six, and the last one is not given back


def test_overflow_is_an_error_and_leaves_the_state(key):
    sampler = _sampler(tiny.build(key, Z), cache_len=4, batch_axes={})
    _call(sampler, nx.wrap(jnp.array([1, 2, 3]), "seq"))
    with pytest.raises(
        KVCacheOverflowError, match=r"4 places, 3 are filled, and 2 new.*cache_len=5"
    ):
        sampler(nx.wrap(jnp.array([1, 2]), "seq"))
    assert int(sampler.cache_end_index.value) == 3


def test_other_axes_are_refused(key):
    sampler = _sampler(tiny.build(key, Z))
    with pytest.raises(StructureMismatchError, match="KVCachingTransformerLM"):
        sampler(nx.wrap(jnp.array([1, 2]), "seq"))


def test_a_mask_with_other_key_positions_cannot_be_converted(key):
    model = tiny.build(key, Z)
    other = ApplyCausalAttentionMask(0.0, kv_positions_input_name="elsewhere")
    model = select(model).at_instances_of(ApplyCausalAttentionMask).set(other)
    with pytest.raises(ValueError, match="reads the positions of keys from 'elsewhere'"):
        _sampler(model)


def test_conversion_shares_parameters_and_can_be_used_functionally(key):
    model = ll.build_llamalike_transformer(Z, key)
    sampler = _sampler(model, batch_axes={})
    assert select(sampler).at_instances_of(Attention).is_empty()
    assert sampler.body.sublayers[0].table.embeddings is model.body.sublayers[0].table.embeddings
    slots, state = unbind_state_vars(sampler, freeze=True)
    _, new = slots.stateless_call(state, nx.wrap(jnp.array([1, 2]), "seq"))
    assert {value.label: value.value for value in new}["sampler/cache_end_index"] == 2
    assert int(sampler.cache_end_index.value) == 0
