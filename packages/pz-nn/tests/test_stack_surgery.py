import functools

import jax
import jax.numpy as jnp
import pytest
from block_zoo import (
    CAPACITY,
    ZOO,
    CountCalls,
    F,
    P,
    affine,
    attention,
    caching,
    gated_mlp,
    sliding_block,
)
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.random_stream import RandomStream
from pz_core.selectors import select
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariable,
    freeze_variables,
    unbind_variables,
    variable_jit,
)
from pz_named import named_axes as nx
from pz_nn.attention import ApplyCausalAttentionMask, ApplyCausalSlidingWindowAttentionMask
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import Residual
from pz_nn.embeddings import ApplyRoPE
from pz_nn.grouping import Identity, Sequential
from pz_nn.layer_stack import LayerStack, LayerStackVarBehavior
from pz_nn.rope_scaling import DynamicScaling, LongRoPEScaling, YarnScaling
from pz_nn.stack_surgery import SuperBlock, restack, unstack

DEPTH = 3


def stack_of(builder, key, depth=DEPTH):
    return LayerStack.from_sublayer_builder(builder, "blocks", depth, key, {"name": "net/blocks"})


call = variable_jit(lambda layer, x, side: layer(x, **side))


def run(layer, seq=3):
    x = named(0, {"batch": 2, "seq": seq, "f": F})
    filled = jnp.where(jnp.arange(CAPACITY) < seq, jnp.arange(CAPACITY), -1)
    side = {
        "token_positions": nx.arange("seq", seq),
        "kv_positions": nx.wrap(filled, "seq"),
        "end": 0,
        "random_stream": RandomStream.from_base_key(jax.random.key(3)),
    }
    return raw(call(layer, x, side), "batch", "seq", "f")


@functools.cache
def shared_stack(builder):
    """A stack for tests that only read it."""
    return stack_of(builder, jax.random.key(0))


def variables_of(tree):
    return {variable.label: variable for variable in unbind_variables(tree)[1]}


def assert_same_variables(a, b):
    assert set(a) == set(b)
    for label, variable in a.items():
        left = jax.tree.leaves(variable.value, is_leaf=nx.is_namedarray)
        right = jax.tree.leaves(b[label].value, is_leaf=nx.is_namedarray)
        for x, y in zip(left, right, strict=True):
            assert axis_order(x) == axis_order(y)
            assert_close(raw(x), raw(y), 0.0)
        assert variable.metadata == b[label].metadata


@pytest.mark.parametrize("builder", ZOO, ids=lambda b: b.__name__)
def test_round_trip(builder):
    """unstack and restack give back structure, values, labels and metadata."""
    stack = shared_stack(builder)
    blocks = unstack(stack)
    assert isinstance(blocks, Sequential)
    labels = set(variables_of(blocks))
    assert labels == {
        label.replace("/blocks", f"/block_{i}")
        for label in variables_of(stack)
        for i in range(DEPTH)
    }
    assert not any(
        "blocks" in v.value.named_shape
        for v in variables_of(blocks).values()
        if nx.is_namedarray(v.value)
    )
    back = restack(blocks, "blocks")
    if not any(
        isinstance(v, StateVariable) and v.value is None for v in variables_of(stack).values()
    ):
        assert_same_variables(variables_of(back), variables_of(stack))
    assert jax.tree.structure(unbind_variables(back)[0]) == jax.tree.structure(
        unbind_variables(stack)[0]
    )


@pytest.mark.smoke
@pytest.mark.parametrize("builder", [gated_mlp, caching], ids=lambda b: b.__name__)
def test_separate_blocks_compute_the_same(builder, key):
    stack = stack_of(builder, key, 2)
    blocks = unstack(stack)
    assert_close(run(blocks), run(stack))
    again = restack(unstack(stack), "blocks", unroll=2, checkpoint="nothing_saveable")
    assert (again.unroll, again.checkpoint) == (2, "nothing_saveable")
    assert_close(run(again, seq=1) * 0, run(stack, seq=1) * 0)


def test_frozen_values_and_slots_are_relabelled(key):
    for stack in (freeze_variables(stack_of(affine, key)), stack_of(affine, None)):
        blocks = unstack(stack)
        back = restack(blocks, "blocks")
        assert jax.tree.structure(back) == jax.tree.structure(stack)
    slots = jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, ParameterSlot))
    assert slots[0] == ParameterSlot("net/block_0/Linear.weights")
    assert slots[-1] == ParameterSlot(f"net/block_{DEPTH - 1}/AddBias.bias")


def test_what_blocks_share_stays_shared(key):
    shared = Parameter(label="tied", value=nx.ones({"f": F}))
    own = Parameter(label="net/blocks.w", value=nx.ones({"blocks": 2, "f": F}))
    count = StateVariable(
        0.0, label="n", metadata={"layerstack_axes": {"blocks": LayerStackVarBehavior.SHARED}}
    )

    block = Sequential([shared, own, CountCalls(count), Elementwise(jnp.tanh)])
    stack = LayerStack(block, "blocks", 2)
    blocks = unstack(stack).sublayers
    assert blocks[0].sublayers[0] is blocks[1].sublayers[0] is shared
    assert blocks[0].sublayers[2].count is blocks[1].sublayers[2].count is count
    assert [b.sublayers[1].label for b in blocks] == ["net/block_0.w", "net/block_1.w"]
    back = restack(blocks, "blocks").stacked_sublayers
    assert back.sublayers[0] is shared
    assert back.sublayers[2].count is count
    assert back.sublayers[1].value.named_shape == {"blocks": 2, "f": F}


def test_made_up_labels_and_numbers(key):
    def builder(name, init_base_rng):
        return CountCalls(StateVariable(nx.wrap(jnp.array(0.0))))

    stack = stack_of(builder, key)
    (label,) = variables_of(stack)
    blocks = unstack(stack)
    assert len(variables_of(blocks)) == DEPTH
    assert list(variables_of(restack(blocks, "blocks"))) == [label]
    masks = [ApplyCausalSlidingWindowAttentionMask(-1e30, window) for window in (1, 5)]
    joined = restack(masks, "blocks").stacked_sublayers
    assert raw(joined.sliding_window_size).tolist() == [1, 5]
    assert joined.masked_out_value == -1e30


def test_a_part_of_a_sequential_can_be_stacked(key):
    blocks = unstack(stack_of(affine, key, 4)).sublayers
    part = restack(blocks[1:3], "blocks", first_index=1)
    assert list(variables_of(part)) == list(variables_of(stack_of(affine, key)))
    assert_close(run(Sequential([blocks[0], part, blocks[3]])), run(Sequential(blocks)))


# --- blocks of different kinds ----------------------------------------------------------------------


def alternating(key, count, *, no_rope=()):
    """Local and global attention in turn, with different wavelengths, as in Gemma 3."""
    blocks = []
    for i, block_key in enumerate(jax.random.split(key, count)):
        local = i % 2 == 0
        mask = (
            ApplyCausalSlidingWindowAttentionMask(-1e30, 2)
            if local
            else ApplyCausalAttentionMask(-1e30)
        )
        block = attention(f"net/block_{i}", block_key, mask=mask)
        rope = (
            Identity()
            if i in no_rope
            else ApplyRoPE("p", 50.0 if local else 1000.0, "token_positions", 1.0 if local else 4.0)
        )
        block = select(block).at_instances_of(ApplyRoPE).set(rope)
        blocks.append(Residual(block))
    return blocks


@pytest.mark.parametrize("count, no_rope", [(5, ()), (4, (1, 3))])
def test_both_forms_of_heterogeneous_depth_compute_the_same(count, no_rope, key):
    blocks = alternating(key, count, no_rope=no_rope)
    expected = run(Sequential(blocks), seq=5)
    super_block = restack(blocks, "blocks", "super_block")
    scanned = restack(blocks, "blocks", "scanned")
    assert_close(run(super_block, seq=5), expected)
    assert_close(run(scanned, seq=5), expected)
    stack = super_block.sublayers[0] if count % 2 else super_block
    assert isinstance(stack.stacked_sublayers, SuperBlock)
    assert stack.stack_axis_size == count // 2
    assert scanned.stack_axis_size == count
    labels = variables_of(stack)
    assert "net/blocks/0/query.weights" in labels
    assert "net/blocks/1/query.weights" in labels
    separate = unstack(stack)
    assert set(variables_of(separate)) == set(variables_of(blocks[: 2 * (count // 2)]))
    assert_close(
        run(Sequential([*separate.sublayers, *blocks[2 * (count // 2) :]]), seq=5), expected
    )


def test_blocks_of_one_kind_make_a_plain_stack_in_every_form(key):
    blocks = unstack(stack_of(sliding_block, key, 2))
    plain = restack(blocks, "blocks")
    for form in ("super_block", "scanned"):
        stack = restack(blocks, "blocks", form)
        assert jax.tree.structure(freeze_variables(stack)) == jax.tree.structure(
            freeze_variables(plain)
        )


def test_scanned_form_of_given_frequencies_and_equal_settings():
    """Blocks that differ in given frequencies alone, beside masks and identities that do not."""
    frequencies = [nx.wrap(jnp.array(pair), "p") for pair in ([1.0, 0.1], [0.5, 0.2])]
    blocks = [
        Residual(
            Sequential(
                [
                    ApplyRoPE("p", 1.0, "token_positions", 2.0, frequencies=given),
                    Identity(),
                    Elementwise(jnp.tanh),
                ]
            )
        )
        for given in frequencies
    ]
    x, side = named(0, {"seq": 3, "p": P}), {"token_positions": nx.arange("seq", 3)}
    expected = raw(call(Sequential(blocks), x, side))
    for form in ("scanned", "super_block"):
        assert_close(raw(call(restack(blocks, "blocks", form), x, side)), expected)
    masks = [ApplyCausalAttentionMask(-1e30), ApplyCausalAttentionMask(-1e30)]
    assert restack(masks, "blocks", "scanned").stacked_sublayers == masks[0]


def test_blocks_with_plain_arrays_have_a_period(key):
    def block(number):
        return Sequential([jnp.full(2, float(number)), nx.ones({"f": 2 + number})])

    stack = restack([block(i % 2) for i in range(4)], "blocks", "super_block")
    assert [kind.sublayers[1].named_shape for kind in stack.stacked_sublayers.sublayers] == [
        {"blocks": 2, "f": 2},
        {"blocks": 2, "f": 3},
    ]


def test_variables_in_nested_stacks_and_arrays_come_apart(key):
    def inner(name, init_base_rng):
        def counting(name, init_base_rng):
            return CountCalls(StateVariable(nx.wrap(jnp.array(0.0)), label=f"{name}/n"))

        return LayerStack.from_sublayer_builder(counting, "inner", 2, init_base_rng, {"name": name})

    stack = stack_of(inner, key, 2)
    (count,) = unbind_variables(unstack(stack).sublayers[0])[1]
    assert count.value.named_shape == {"inner": 2}
    assert count.metadata["layerstack_axes"] == {"inner": LayerStackVarBehavior.PER_LAYER}
    plain = LayerStack(Sequential([nx.arange("blocks", 2), jnp.ones(3)]), "blocks", 2)
    parts = [block.sublayers for block in unstack(plain).sublayers]
    assert [int(part[0].unwrap()) for part in parts] == [0, 1]
    assert parts[0][1] is plain.stacked_sublayers.sublayers[1]


def test_scanned_form_without_arrays_needs_sizes():
    blocks = [ApplyRoPE("p", wavelength, "token_positions") for wavelength in (10.0, 1000.0)]
    with raises(ValueError, "'p'", "axis_sizes"):
        restack(blocks, "blocks", "scanned")
    stack = restack(blocks, "blocks", "scanned", axis_sizes={"p": P})
    assert stack.stacked_sublayers.frequencies.named_shape == {"blocks": 2, "p": P // 2}


def test_scanned_form_of_scalings_with_factors_and_lengths(key):
    """Attention factors become data; frequencies that depend on the length are fixed for one."""
    long = LongRoPEScaling((1.0, 2.0), (3.0, 4.0), 4, 4.0)
    ropes = [
        ApplyRoPE("p", 100.0, "token_positions", scaling=scaling)
        for scaling in (None, YarnScaling(4.0, 64), long, DynamicScaling(2.0, 4))
    ]
    blocks = [Residual(Sequential([rope, Elementwise(jnp.tanh)])) for rope in ropes]
    with raises(ValueError, "length of the sequence", "rope_length=...", "super_block"):
        restack(blocks, "blocks", "scanned", axis_sizes={"p": P})
    x = named(0, {"seq": 3, "p": P})
    side = {"token_positions": nx.arange("seq", 3)}
    for length in (4, 8):
        stack = restack(blocks, "blocks", "scanned", axis_sizes={"p": P}, rope_length=length)
        expected = call(Sequential(blocks), x, {**side, "rope_length": length})
        assert_close(raw(call(stack, x, side)), raw(expected))
    factors = stack.stacked_sublayers.delta.sublayers[0].attention_scale
    assert raw(factors)[0] == raw(factors)[3] == 1.0
    assert (raw(factors)[1:3] > 1.0).all()
    given = ApplyRoPE("p", 100.0, "token_positions", attention_scale=2.0)
    assert_close(raw(given(x, **side)), 2 * raw(ropes[0](x, **side)))


def test_equal_plain_arrays_are_shared():
    stack = restack([Sequential([jnp.ones(2)]), Sequential([jnp.ones(2)])], "blocks")
    assert stack.stacked_sublayers.sublayers[0].shape == (2,)
