import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_zoo import CountCalls, F, affine
from nn_helpers import assert_close, named, raises, raw

from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, StateVariable, unbind_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.basic_ops import Elementwise
from pz_nn.block_edits import ForSomeBlocks, edit_blocks
from pz_nn.grouping import Identity, Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import ConstantRescale
from pz_nn.stack_surgery import unstack

DEPTH = 3


@pytree_dataclass
class Holds(Layer):
    """Holds something."""

    content: Any

    def __call__(self, x, /, **_side_inputs):
        """Returns the input."""
        return x


call = variable_jit(lambda layer, x: layer(x, token_positions=nx.arange("seq", 3)))


def stack_of(builder, key):
    return LayerStack.from_sublayer_builder(builder, "blocks", DEPTH, key, {"name": "net/blocks"})


def run(layer):
    return raw(call(layer, named(0, {"batch": 2, "seq": 3, "f": F})), "batch", "seq", "f")


def edited_separately(stack, numbers, edit):
    """The same edit on unstacked blocks."""
    blocks = unstack(stack).sublayers
    return Sequential([edit(b) if i in numbers else b for i, b in enumerate(blocks)])


def halve_weights(block):
    def halve(parameter):
        value = dataclasses.replace(parameter.value, data_array=parameter.value.data_array * 0.5)
        return Parameter(label=parameter.label, value=value)

    return jax.tree.map(lambda x: halve(x) if isinstance(x, Parameter) else x, block)


def swap_activation(block):
    return select(block).at_instances_of(Elementwise).set(Elementwise(jnp.tanh))


def activated(name, init_base_rng):
    return Sequential([affine(name, init_base_rng), Elementwise(jax.nn.relu)])


def insert_before_activation(block):
    return (
        select(block)
        .at_instances_of(Elementwise)
        .apply(lambda layer: Sequential([ConstantRescale(3.0), layer]))
    )


def remove_block(_block):
    return Identity()


@pytest.mark.parametrize(
    "builder, edit, switches",
    [
        (affine, halve_weights, 0),
        (activated, swap_activation, 1),
        (activated, insert_before_activation, 1),
        (affine, remove_block, 1),
        (affine, lambda block: block, 0),
    ],
    ids=["values", "static field", "structure", "whole block", "nothing"],
)
def test_edited_blocks_equal_blocks_edited_separately(builder, edit, switches, key):
    stack = stack_of(builder, key)
    before = run(stack)
    edited = edit_blocks(stack, [0, -1], edit)
    assert isinstance(edited, LayerStack)
    assert select(edited).at_instances_of(ForSomeBlocks).count() == switches
    assert_close(run(edited), run(edited_separately(stack, {0, DEPTH - 1}, edit)))
    assert_close(run(stack), before)


def test_only_the_smallest_layer_is_chosen_between(key):
    edited = edit_blocks(stack_of(activated, key), 1, swap_activation)
    (switch,) = select(edited).at_instances_of(ForSomeBlocks).get_sequence()
    assert isinstance(switch.original, Elementwise)
    assert raw(switch.chosen).tolist() == [False, True, False]


@pytest.mark.parametrize("blocks", [1, [1], np.array([1]), np.array([False, True, False])], ids=str)
def test_ways_to_name_blocks(blocks, key):
    stack = stack_of(affine, key)
    mask = raw(
        select(edit_blocks(stack, blocks, remove_block)).at_instances_of(ForSomeBlocks).get().chosen
    )
    assert mask.tolist() == [False, True, False]
    assert not raw(
        select(edit_blocks(stack, [], remove_block)).at_instances_of(ForSomeBlocks).get().chosen
    ).any()


def test_numbers_become_arrays_and_variables_keep_labels(key):
    stack = LayerStack(Sequential([ConstantRescale(2.0)]), "blocks", 2)
    edited = edit_blocks(stack, 0, lambda block: Sequential([ConstantRescale(5.0)]))
    assert_close(raw(edited(nx.ones({"f": 1}))), [10.0])
    affine_stack = stack_of(affine, key)
    labels = [v.label for v in unbind_variables(affine_stack)[1]]
    assert [
        v.label for v in unbind_variables(edit_blocks(affine_stack, 0, halve_weights))[1]
    ] == labels


@pytest.mark.parametrize(
    "first, second",
    [
        (nx.ones({"f": 2}), nx.ones({"g": 2})),
        (StateVariable(nx.ones({"f": 2}), label="a"), StateVariable(nx.ones({"f": 2}), label="b")),
        (StateVariable(nx.ones({"f": 2}), label="a"), StateVariable(nx.ones({"f": 3}), label="a")),
        (StateVariable(nx.ones({"f": 2}), label="a"), 1.0),
        ("text", 1.0),
    ],
    ids=["names", "labels", "sizes", "variable or number", "text or number"],
)
def test_what_cannot_be_merged_is_chosen_between(first, second):
    """The smallest layer around it is run in both forms."""
    stack = LayerStack(Sequential([Holds(first)]), "blocks", 2)
    edited = edit_blocks(stack, 0, lambda block: Sequential([Holds(second)]))
    assert isinstance(edited.stacked_sublayers.sublayers[0], ForSomeBlocks)


def test_state_in_both_branches():
    """Block 0 counts in either branch; the other blocks count in the original."""
    count = StateVariable(nx.zeros({"blocks": 3}), label="n")
    stack = LayerStack(CountCalls(count), "blocks", 3)
    edited = edit_blocks(stack, 0, lambda block: Sequential([block, ConstantRescale(10.0)]))
    assert_close(raw(edited(nx.ones({"f": 1}))), [10.0])
    assert raw(count.value).tolist() == [1.0, 1.0, 1.0]


def test_outside_of_a_stack_the_choice_is_known():
    for chosen, expected in ((True, 3.0), (False, 2.0)):
        layer = ForSomeBlocks(
            nx.wrap(jnp.array(chosen)), ConstantRescale(3.0), ConstantRescale(2.0)
        )
        assert_close(raw(layer(nx.ones({"f": 1}))), [expected])


def test_gradients_reach_only_the_chosen_blocks(key):
    stack = stack_of(affine, key)
    edited = edit_blocks(stack, 1, remove_block)
    slots, params = unbind_variables(edited, freeze=True)

    def loss(params):
        bound = slots.bind_variables(params)
        return bound(named(0, {"f": F})).data_array.sum()

    weights, _ = jax.grad(loss)(params)
    per_block = np.abs(raw(weights.value, "blocks", "f", "f_out")).sum((1, 2))
    assert (per_block > 0).tolist() == [True, False, True]


def test_errors(key):
    stack = stack_of(affine, key)
    for bad in (3, [-4], [0.5], np.array([True])):
        with raises(IndexError, "[-3, 2]", "'blocks'"):
            edit_blocks(stack, bad, remove_block)
    with raises(ValueError, "no layer"):
        edit_blocks(stack, 0, lambda block: None)
    edit_blocks(stack, 2, remove_block)
