import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from block_zoo import F, H, P, attention
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.variables import unbind_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.attention import (
    ApplyCausalSlidingWindowAttentionMask,
    KVCachingAttention,
)
from pz_nn.combinators import Residual
from pz_nn.kv_cache import KVCacheOverflowError, kv_cache_overflows
from pz_nn.layer_stack import LayerStack
from pz_nn.ring_cache import RingKVCachingAttention

LENGTH, WINDOW, RING = 10, 3, 4
AXES = {"batch": 2, "heads": H, "p": P}


def ring_layer(name="a", init_base_rng=None, ring=RING, **options):
    mask = ApplyCausalSlidingWindowAttentionMask(-1e30, WINDOW)
    options = {"cache_label": f"{name}/cache", **options}  # a made-up label recompiles
    return RingKVCachingAttention.from_uncached(
        attention(name, init_base_rng, mask=mask), "seq", ring, AXES, "end", **options
    )


def full_layer(key):
    mask = ApplyCausalSlidingWindowAttentionMask(
        -1e30, WINDOW, kv_positions_input_name="kv_token_positions"
    )
    return KVCachingAttention.from_uncached(
        attention("a", key, mask=mask), "seq", LENGTH, AXES, "end", cache_label="a/cache"
    )


def stack_of_rings(key):
    def block(name, init_base_rng):
        return Residual(ring_layer(name, init_base_rng))

    return LayerStack.from_sublayer_builder(block, "blocks", 2, key, {"name": "net/blocks"})


def side_inputs(start, stop, padding=0):
    places = np.arange(LENGTH)
    positions = np.where(places < padding, -1, places - padding)
    return {
        "token_positions": nx.wrap(positions[start:stop], "seq"),
        "kv_token_positions": nx.wrap(np.where(places < stop, positions, -1), "seq"),
        "end": jnp.asarray(start),
    }


call = variable_jit(lambda layer, x, side: layer(x, **side))


def run(layer, pieces, padding=0):
    x = named(0, {"batch": 2, "seq": LENGTH, "f": F})
    outputs = [
        call(layer, x[{"seq": slice(i, j)}], side_inputs(i, j, padding))
        for i, j in itertools.pairwise(pieces)
    ]
    return raw(nx.concatenate(outputs, "seq"), "batch", "seq", "f")


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("pieces", [[0, 6, 7, 8, 9, 10], [0, 2, 4, 5, 6, 7, 8, 9, 10]])
def test_a_ring_equals_a_full_cache(pieces, padding, key):
    expected = run(full_layer(key), [0, LENGTH], padding)
    # A padding query sees no key: its row is uniform over however many keys there are.
    actual = run(ring_layer(init_base_rng=key), pieces, padding)
    assert_close(actual[:, padding:], expected[:, padding:])


def test_rings_in_a_stack(key):
    expected = run(stack_of_rings(key), [0, LENGTH])
    stack = stack_of_rings(key)
    assert_close(run(stack, [0, 7, 8, 9, 10]), expected)
    (state,) = [v for v in unbind_variables(stack)[1] if not hasattr(v.value, "dtype")]
    assert axis_order(state.value[0]) == ["blocks", "batch", "heads", "p", "seq"]
    assert state.value[0].named_shape["seq"] == RING


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_may_end_at_different_places(stacked, key):
    """Padding at the end of a row is not kept, so each row goes on where its text ended."""
    lengths, prompt, steps = np.array([3, 6]), 6, 3
    x = named(0, {"batch": 2, "seq": LENGTH, "f": F})
    places = np.arange(LENGTH)

    def rows(layer):
        def run(start, tokens, filled):
            index = start[:, None] + np.arange(tokens)
            known = np.where(index < filled[:, None], index, -1)
            seen = np.where(places < filled[:, None], places, -1)
            side = {
                "token_positions": nx.wrap(known, "batch", "seq"),
                "kv_token_positions": nx.wrap(seen, "batch", "seq"),
                "end": nx.wrap(jnp.asarray(start), "batch"),
            }
            return call(layer, x[{"seq": nx.wrap(index, "batch", "seq")}], side)

        run(np.zeros(2, int), prompt, lengths)
        outputs = [run(lengths + i, 1, lengths + i + 1) for i in range(steps)]
        return raw(nx.concatenate(outputs, "seq"), "batch", "seq", "f")

    ring = stack_of_rings(key) if stacked else ring_layer(init_base_rng=key)
    whole = run(stack_of_rings(key) if stacked else full_layer(key), [0, LENGTH])
    expected = np.stack([row[n : n + steps] for row, n in zip(whole, lengths, strict=True)])
    assert_close(rows(ring), expected)
    side = {**side_inputs(8, 10), "end": nx.wrap(jnp.array([8, 9]), "batch")}
    y = call(ring, x[{"seq": slice(8, 10)}], side)
    assert np.isnan(raw(y, "batch", "seq", "f")).any((1, 2)).tolist() == [False, True]


def test_room_is_what_the_positions_have(key):
    x = named(0, {"batch": 2, "seq": 2, "f": F})
    for layer in (ring_layer(init_base_rng=key), stack_of_rings(key)):
        with raises(KVCacheOverflowError, "10 places", "9 are filled"):
            layer(x, **{**side_inputs(8, 10), "end": 9})
    layer = ring_layer(init_base_rng=key)
    y = call(layer, x, {**side_inputs(8, 10), "end": jnp.asarray(9)})
    assert np.isnan(raw(y)).all()
    assert kv_cache_overflows(layer, 2, **{**side_inputs(8, 10), "end": 9}) is True
    assert kv_cache_overflows(layer, 2, **side_inputs(8, 10)) is False


def test_errors(key):
    with raises(ValueError, "SlidingWindow", "KVCachingAttention"):
        RingKVCachingAttention.from_uncached(attention("a", None), "seq", 4, AXES, "end")
    with raises(ValueError, "cache_len is 2", "window 3"):
        ring_layer(ring=2)
    ring_layer(ring=3)
    x = named(0, {"batch": 2, "seq": 1, "f": F})
    layer = ring_layer(init_base_rng=key)
    with raises(TypeError, "'end'", "integer scalar", "wrap(index, 'batch')"):
        layer(x, **{**side_inputs(0, 1), "end": jnp.zeros(2, int)})
    call(layer, x, {**side_inputs(0, 1), "end": nx.wrap(jnp.zeros(2, int), "batch")})
    with raises(KeyError, "'kv_token_positions'"):
        layer(x, token_positions=nx.arange("seq", 1), end=0)
