import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_zoo import CAPACITY, F, H, P, attention, attention_block, caching
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.struct import pytree_dataclass
from pz_core.variables import (
    Parameter,
    StateVariable,
    bind_variables,
    freeze_params,
    unbind_variables,
    variable_jit,
)
from pz_named import named_axes as nx
from pz_nn._stacked_state import LayerWithStateInPlace
from pz_nn.attention import ApplyCausalAttentionMask, KVCachingAttention
from pz_nn.grouping import Sequential
from pz_nn.kv_cache import KVCacheOverflowError, kv_cache_overflows
from pz_nn.layer_stack import LayerStack, LayerStackVarBehavior
from pz_nn.linear_and_affine import Linear

AXES = {"batch": 2, "heads": H, "p": P}


def cached_layer(key, **options):
    uncached = attention(
        "a", key, mask=ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
    )
    # One label for all: a made-up one would be another program for each layer.
    defaults = {"cached_axes": AXES, "cache_len": CAPACITY, "cache_label": "a/cache"}
    options = {**defaults, **options}
    return KVCachingAttention.from_uncached(
        uncached, sequence_axis="seq", cache_end_index_key="end", **options
    )


def stack_of(key, builder=caching):
    return LayerStack.from_sublayer_builder(builder, "blocks", 2, key, {"name": "net/blocks"})


def side_inputs(start, stop, end=None):
    slots = jnp.arange(CAPACITY)
    return {
        "token_positions": nx.arange("seq", start, stop),
        "kv_positions": nx.wrap(jnp.where(slots < stop, slots, -1), "seq"),
        "end": start if end is None else end,
    }


def tokens(x, start, stop):
    return x[{"seq": slice(start, stop)}]


call = variable_jit(lambda layer, x, **side: layer(x, **side))


def run_in_pieces(layer, x, pieces, call=call):
    outputs = [
        call(layer, tokens(x, i, j), **side_inputs(i, j)) for i, j in itertools.pairwise(pieces)
    ]
    return nx.concatenate(outputs, "seq")


@pytest.mark.smoke
@pytest.mark.parametrize("pieces", [[0, 3, 4, 5, 6], [0, 2, 6]])
@pytest.mark.parametrize("stacked", [False, True])
def test_cached_equals_uncached(pieces, stacked, key):
    x = named(0, {"batch": 2, "seq": 6, "f": F})
    if stacked:
        cached, uncached = stack_of(key), stack_of(key, attention_block)
    else:
        cached, uncached = cached_layer(key), attention("a", key)
    expected = call(uncached, x, token_positions=nx.arange("seq", 6))
    y = run_in_pieces(cached, x, pieces, call)
    assert_close(raw(y, "batch", "seq", "f"), raw(expected, "batch", "seq", "f"))


def test_values_may_be_of_another_size_than_keys(key):
    mask = ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
    mix = attention("a", key).attn_value_to_output.sublayers[0]
    values = {"heads": H, "p": 3}
    uncached = dataclasses.replace(
        attention("a", key, mask=mask),
        input_to_value=Linear.from_config("a/value", key, {"f": F}, values),
        attn_value_to_output=Sequential([mix, Linear.from_config("a/out", key, values, {"f": F})]),
    )
    cached = KVCachingAttention.from_uncached(
        uncached, "seq", CAPACITY, AXES, "end", value_axes={"batch": 2, **values}
    )
    assert [dict(part.named_shape)["p"] for part in cached.kv_cache.value] == [P, 3]
    x = named(0, {"batch": 2, "seq": 4, "f": F})
    positions = {"token_positions": nx.arange("seq", 4), "kv_positions": nx.arange("seq", 4)}
    y = run_in_pieces(cached, x, [0, 3, 4])
    order = ("batch", "seq", "f")
    assert_close(raw(y, *order), raw(call(uncached, x, **positions), *order))


def test_compiled_steps_equal_eager_ones_and_compile_once(key):
    x = named(0, {"batch": 2, "seq": 6, "f": F})
    traces = []

    @variable_jit
    def call(layer, x, **side):
        traces.append(1)
        return layer(x, **side)

    for make in (cached_layer, stack_of):
        traces.clear()
        y = run_in_pieces(make(key), x, [0, 3, 4, 5, 6], call)
        assert len(traces) == 2  # one for the prompt, one for single tokens
        expected = run_in_pieces(make(key), x, [0, 6])
        assert_close(raw(y, "batch", "seq", "f"), raw(expected, "batch", "seq", "f"))


def test_an_eager_stack_is_not_traced_again_for_each_index(key):
    """An int index is made an array before the stack's loop is looked up in the cache."""
    stack = stack_of(key)
    x = named(0, {"batch": 2, "seq": 6, "f": F})
    for i in range(2):
        stack(tokens(x, i, i + 1), **side_inputs(i, i + 1))
    with jax.no_tracing():
        for i in range(2, 4):
            stack(tokens(x, i, i + 1), **side_inputs(i, i + 1))


def test_caches_keep_their_layout(key):
    """Stack axis first, before the first call as after it, so that a compiled step compiles once."""
    for stack in (stack_of(key),):
        (state,) = [v for v in unbind_variables(stack)[1] if isinstance(v, StateVariable)]
        keys_and_values = [
            ["blocks", "batch", "heads", "p", "seq"],
            ["blocks", "batch", "heads", "seq", "p"],
        ]
        assert [axis_order(c) for c in state.value] == keys_and_values
        assert state.metadata == {"layerstack_axes": {"blocks": LayerStackVarBehavior.PER_LAYER}}
        stack(named(0, {"batch": 2, "seq": 3, "f": F}), **side_inputs(0, 3))
        assert [axis_order(c) for c in state.value] == keys_and_values
        assert (raw(state.value[0])[..., 3:] == 0).all()
        assert (raw(state.value[0])[..., :3] != 0).all()


def test_caches_in_nested_stacks(key):
    """Both stacks write into one buffer."""

    def inner(name, init_base_rng):
        return LayerStack.from_sublayer_builder(caching, "inner", 2, init_base_rng, {"name": name})

    nested = LayerStack.from_sublayer_builder(inner, "outer", 2, key, {"name": "net"})
    flat = LayerStack.from_sublayer_builder(caching, "blocks", 4, None, {"name": "net"})
    _, variables = unbind_variables(nested, lambda v: isinstance(v, Parameter))
    merged = [
        Parameter(label=p.label, value=_flattened(p.value, ("outer", "inner"), "blocks"))
        for p in variables
    ]
    x = named(0, {"batch": 2, "seq": 4, "f": F})
    expected = run_in_pieces(flat.bind_variables(merged), x, [0, 4])
    y = run_in_pieces(nested, x, [0, 2, 3, 4])
    assert_close(raw(y, "batch", "seq", "f"), raw(expected, "batch", "seq", "f"))
    (state,) = [v for v in unbind_variables(nested)[1] if isinstance(v, StateVariable)]
    assert axis_order(state.value[0]) == ["outer", "inner", "batch", "heads", "p", "seq"]


def _flattened(array, axes, name):
    data = array.untag_prefix(*axes).with_positional_prefix()
    rest = list(data.named_axes)
    merged = data.data_array.reshape(-1, *data.data_array.shape[len(axes) :])
    return nx.wrap(merged, name, *rest)


def test_from_uncached():
    layer = cached_layer(
        None, cache_dtype=jnp.bfloat16, cache_label="mine", layerstack_axes={"outer": 3, "inner": 2}
    )
    key, value = layer.kv_cache.value
    assert axis_order(key) == ["outer", "inner", "batch", "heads", "p", "seq"]
    assert key.dtype == value.dtype == jnp.bfloat16
    assert layer.kv_cache.label == "mine"
    behavior = LayerStackVarBehavior.PER_LAYER
    assert layer.kv_cache.metadata == {"layerstack_axes": {"outer": behavior, "inner": behavior}}
    assert cached_layer(None).kv_cache.metadata == {}
    assert layer.input_to_query.sublayers[0].weights.label == "a/query.weights"
    with raises(ValueError, "['p']", "cached_axes"):
        cached_layer(None, layerstack_axes={"p": 2})
    with raises(ValueError, "['seq']", "cached_axes"):
        cached_layer(None, cached_axes={"seq": 2})


def test_rows_may_end_at_different_places(key):
    """A named index: row 0 has 2 tokens, row 1 has 4; each goes on where it ended."""
    cached = cached_layer(key)
    x = named(0, {"batch": 2, "seq": 5, "f": F})
    lengths = np.array([2, 4])
    slots = np.arange(CAPACITY)
    prompt = np.where(np.arange(4) < lengths[:, None], np.arange(4), -1)
    call(
        cached,
        tokens(x, 0, 4),
        token_positions=nx.wrap(prompt, "batch", "seq"),
        kv_positions=nx.wrap(np.where(slots < lengths[:, None], slots, -1), "batch", "seq"),
        end=0,
    )
    y = call(
        cached,
        tokens(x, 4, 5),
        token_positions=nx.wrap(lengths[:, None], "batch", "seq"),
        kv_positions=nx.wrap(np.where(slots <= lengths[:, None], slots, -1), "batch", "seq"),
        end=nx.wrap(lengths, "batch"),
    )
    for row, length in enumerate(lengths):
        alone = nx.concatenate([tokens(x, 0, int(length)), tokens(x, 4, 5)], "seq")
        expected = call(
            attention("a", key), alone, token_positions=nx.arange("seq", int(length) + 1)
        )
        assert_close(
            raw(y, "batch", "seq", "f")[row, 0], raw(expected, "batch", "seq", "f")[row, -1]
        )


def test_keys_without_a_batch_axis_fill_every_row(key):
    """Keys made of something that all rows share are repeated along the cache's axes."""
    cached = cached_layer(key)
    x = named(0, {"batch": 2, "seq": 3, "f": F})
    to_key = cached.input_to_key
    shared = dataclasses.replace(
        cached, input_to_key=lambda x, **side: to_key(x[{"batch": 0}], **side)
    )
    shared(x, **side_inputs(0, 3, end=nx.wrap(0)))
    filled = raw(cached.kv_cache.value[0])
    assert (filled[0] == filled[1]).all()
    assert (filled[..., :3] != 0).all()


def test_state_in_a_stack_keeps_its_structure(key):
    """What is updated in the stack's buffer cannot become something else in a block."""

    @pytree_dataclass
    class Replaces(LayerWithStateInPlace):
        state: StateVariable
        new: Any = dataclasses.field(metadata={"pytree_node": False})

        def __call__(self, x, /, **_side_inputs):
            self.state.value = self.new(self.state.value)
            return x

        def state_updated_in_place(self):
            return (self.state,)

        def prepare_for_stack(self, argument, side_inputs):
            return side_inputs

    def stack(new):
        metadata = {"layerstack_axes": {"blocks": LayerStackVarBehavior.PER_LAYER}}
        state = StateVariable(nx.zeros({"blocks": 2, "f": F}), label="s", metadata=metadata)
        return LayerStack(Replaces(state, new), "blocks", 2)

    with raises(TypeError, "'s'", "structure must stay"):
        stack(lambda value: (value, value))(nx.ones({"f": F}))
    kept = stack(lambda value: value + 1)
    kept(nx.ones({"f": F}))
    assert (raw(kept.stacked_sublayers.state.value) == 1).all()


# --- room -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [cached_layer, stack_of])
@pytest.mark.parametrize("as_index", [int, np.int32, jnp.asarray])
def test_no_room_is_an_error_where_the_index_is_known(make, as_index, key):
    layer = make(key)
    x = named(0, {"batch": 2, "seq": 3, "f": F})
    with raises(KVCacheOverflowError, "8 places", "6 are filled", "3 new", "cache_len=9"):
        layer(x, **side_inputs(5, 8, end=as_index(6)))
    if as_index is int:  # the others would run the same
        layer(x, **side_inputs(5, 8, end=5))


@pytest.mark.parametrize("make", [cached_layer, stack_of])
def test_no_room_gives_nan_and_a_flag_where_the_index_is_traced(make, key):
    x = named(0, {"batch": 2, "seq": 3, "f": F})

    @variable_jit
    def call(layer, x, side):
        return layer(x, **side), kv_cache_overflows(layer, 3, **side)

    y, flag = call(make(key), x, side_inputs(5, 8, end=jnp.asarray(5)))
    assert not flag
    assert np.isfinite(raw(y)).all()
    y, flag = call(make(key), x, side_inputs(5, 8, end=jnp.asarray(6)))
    assert flag
    assert np.isnan(raw(y)).all()


def test_only_rows_without_room_are_nan(key):
    x = named(0, {"batch": 2, "seq": 3, "f": F})
    side = side_inputs(5, 8, end=nx.wrap(jnp.array([5, 6]), "batch"))
    with raises(KVCacheOverflowError, "6 are filled"):
        cached_layer(key)(x, **side)
    call = variable_jit(
        lambda layer, x, side: (layer(x, **side), kv_cache_overflows(layer, 3, **side))
    )
    y, flag = call(cached_layer(key), x, side)
    rows = np.isnan(raw(y, "batch", "seq", "f")).all(axis=(1, 2))
    assert rows.tolist() == [False, True]
    assert flag


def test_kv_cache_overflows_on_known_indices(key):
    assert kv_cache_overflows(cached_layer(key), 3, end=5) is False
    assert kv_cache_overflows([stack_of(key)], 3, end=6) is True
    assert kv_cache_overflows(attention("a", key), 99) is False
    slots, _ = unbind_variables(cached_layer(key))
    assert kv_cache_overflows(slots, 99, end=0) is False
    with pytest.raises(KeyError, match="end"):
        kv_cache_overflows(cached_layer(key), 1)


def test_what_does_not_fit_the_cache(key):
    x = named(0, {"batch": 2, "seq": 3, "f": F})
    layer = cached_layer(key)
    with raises(KeyError, "'end'", "KVCachingAttention"):
        layer(x, **{k: v for k, v in side_inputs(0, 3).items() if k != "end"})
    with raises(TypeError, "9 new tokens", "8 places", "cache_len=9"):
        layer(named(0, {"batch": 2, "seq": 9, "f": F}), **side_inputs(0, 9))
    with raises(TypeError, "bfloat16", "float32", "cache_dtype=float32"):
        cached_layer(key, cache_dtype=jnp.bfloat16)(x, **side_inputs(0, 3))
    with raises(ValueError, "'worlds': 5", "cached_axes"):
        layer(named(0, {"worlds": 5, "batch": 2, "seq": 3, "f": F}), **side_inputs(0, 3))
    with raises(ValueError, "'batch': 3", "{'batch': 2"):
        layer(named(0, {"batch": 3, "seq": 3, "f": F}), **side_inputs(0, 3))
    with raises(ValueError, "the axis 'tokens'", "sequence_axis"):
        dataclasses.replace(layer, sequence_axis="tokens")(x, **side_inputs(0, 3))
    with raises(TypeError, "'end'", "(2,)", "wrap"):
        layer(x, **side_inputs(0, 3, end=jnp.array([0, 1])))
    with raises(TypeError, "'end'", "integer"):
        layer(x, **side_inputs(0, 3, end=0.5))
    call(layer, x, **side_inputs(0, 3))


# --- cost -------------------------------------------------------------------------------------------


def compiled_step(key, capacity):
    """One donated decode step of a stack, compiled."""

    def builder(name, init_base_rng):
        return caching(name, init_base_rng, capacity=capacity)

    stack = freeze_params(stack_of(key, builder))
    slots, states = unbind_variables(stack, freeze=True)

    def step(slots, states, x, end):
        variables = [v.unfreeze_as_copy() for v in states]
        places = jnp.arange(capacity)
        y = bind_variables(slots, variables)(
            x,
            token_positions=nx.wrap(end[None], "seq"),
            kv_positions=nx.wrap(jnp.where(places <= end, places, -1), "seq"),
            end=end,
        )
        return y, [v.freeze() for v in variables]

    x = named(0, {"batch": 2, "seq": 1, "f": F})
    return jax.jit(step, donate_argnums=1).lower(slots, states, x, jnp.int32(0)).compile()


def test_a_step_touches_only_the_new_slice(key, optimized_programs):
    """The compiled step needs no memory for a copy of the caches, whatever their size."""
    capacity = 4096
    cache_bytes = 2 * 2 * 2 * H * P * capacity * 4  # blocks, keys and values, batch
    step = compiled_step(key, capacity)
    memory = step.memory_analysis()
    one_layer = cache_bytes / 2
    assert memory.temp_size_in_bytes < 1.2 * one_layer
    assert memory.alias_size_in_bytes >= cache_bytes
    assert "scatter(" not in step.as_text()
