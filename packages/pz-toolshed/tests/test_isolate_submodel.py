import jax
import jax.numpy as jnp
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import (
    AbstractVariable,
    AbstractVariableSlot,
    AbstractVariableValue,
    ParameterValue,
    StateVariableSlot,
)
from pz_nn.basic_ops import Elementwise
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import ConstantRescale, Linear
from pz_toolshed.isolate_submodel import (
    IsolatedSubmodel,
    call_and_extract_submodel,
    extract_submodel_calls,
    replay,
)
from pz_toolshed.jit_wrapper import Jitted


@pytest.mark.parametrize("jit", [False, True])
def test_isolated_linear_replays(jit):
    model = tm.mlp([3, 4, 2])
    wrapped = Jitted(model) if jit else model
    x = tm.random_input(batch=2, features=3)
    isolated = call_and_extract_submodel(
        select(wrapped).at_instances_of(Linear).pick_nth_selected(1), x
    )
    assert isinstance(isolated, IsolatedSubmodel)
    assert isolated.initial_var_values == isolated.final_var_values == ()
    assert isinstance(isolated.submodel.weights, ParameterValue)
    tm.assert_trees_close(isolated.submodel(isolated.saved_arg), isolated.saved_output)
    tm.assert_trees_close(replay(isolated), isolated.saved_output)
    original = select(model).at_instances_of(Linear).get_sequence()[1]
    tm.assert_trees_close(
        replay(isolated, isolated.saved_arg * 2), original(isolated.saved_arg * 2)
    )


@pytest.mark.smoke
def test_shared_state_and_a_random_stream_in_the_side_inputs():
    counter, dropout = tm.counter(), StochasticDropout(0.5)
    model = Sequential([counter, dropout, NamedGroup("target", [counter, dropout])])
    stream = tm.stream()
    target = select(model).at_instances_of(NamedGroup)
    isolated = call_and_extract_submodel(target, tm.random_input(a=8), random_stream=stream)
    assert isolated.saved_side_inputs["random_stream"].offset == StateVariableSlot("rng_offset")
    values = [
        [int(v.value) for v in vs]
        for vs in (isolated.initial_var_values, isolated.final_var_values)
    ]
    assert values == [[1, 1], [2, 2]]
    assert (int(counter.count.value), int(stream.offset.value)) == (2, 2)
    output, finals = isolated.submodel.stateless_call(
        isolated.initial_var_values, isolated.saved_arg, **isolated.saved_side_inputs
    )
    tm.assert_trees_close(output, isolated.saved_output)
    tm.assert_trees_close(finals, isolated.final_var_values)
    tm.assert_trees_close(replay(isolated), isolated.saved_output)
    # A side input of one's own: the saved stream's value is not needed any more.
    replay(isolated, tm.random_input(a=8), random_stream=tm.stream(1))
    assert (int(counter.count.value), int(stream.offset.value)) == (2, 2)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("drop_rate", [None, 0.5])
def test_in_a_layer_stack_every_layer_gives_a_record(jit, drop_rate):
    stacked = tm.stack(3, drop_rate=drop_rate)
    model = Jitted(stacked) if jit else stacked
    x = tm.random_input(batch=2, embedding=4)
    side = {} if drop_rate is None else {"random_stream": tm.stream()}
    target = select(model).at_instances_of(NamedGroup)
    records = call_and_extract_submodel(target, x, **side)
    assert len(records) == 3
    plain_side = {} if drop_rate is None else {"random_stream": tm.stream()}
    value = x
    for block, record in zip(tm.unstacked(stacked), records, strict=True):
        want = call_and_extract_submodel(
            select(block).at_instances_of(NamedGroup), value, **plain_side
        )
        value = block(value, **({} if drop_rate is None else {"random_stream": shifted(want)}))
        tm.assert_trees_close(record.saved_arg, want.saved_arg, atol=1e-5)
        tm.assert_trees_close(record.saved_output, want.saved_output, atol=1e-5)
        tm.assert_trees_close(record.submodel, want.submodel, atol=1e-6)
        tm.assert_trees_close(replay(record), record.saved_output, atol=1e-5)


def shifted(isolated):
    """A stream that starts where the record's did."""
    stream = isolated.saved_side_inputs["random_stream"]
    from pz_core.variables import bind_variables

    return bind_variables(stream, isolated.initial_var_values, unfreeze_as_copy=True)


def test_per_layer_state_in_a_stack():
    stacked = tm.stack(3)
    counting = (
        select(stacked)
        .at(lambda s: s.stacked_sublayers)
        .apply(lambda b: Sequential([b, tm.per_layer_counter(3)]))
    )
    records = extract_submodel_calls(
        select(counting).at_instances_of(tm.CountCalls), tm.random_input(embedding=4)
    )
    assert [int(r.final_var_values[0].value.unwrap()) for r in records] == [1, 1, 1]
    tm.assert_trees_close(replay(records[2]), records[2].saved_output)


def test_hyperparameters_stay_python_numbers():
    isolated = call_and_extract_submodel(
        select(Sequential([ConstantRescale(2.0)])).at_instances_of(ConstantRescale), jnp.ones(2)
    )
    assert type(isolated.submodel.by) is float


def test_a_layer_called_twice_and_one_never_called():
    layer = Elementwise(jnp.sin)

    @pytree_dataclass
    class Calls(Layer):
        inner: Layer
        times: int = 2

        def __call__(self, x, /, **side):
            for _ in range(self.times):
                x = self.inner(x, **side)
            return x

    target = select(Calls(layer)).at_instances_of(Elementwise)
    first, second = call_and_extract_submodel(target, jnp.ones(2))
    tm.assert_trees_close(second.saved_arg, first.saved_output)
    never = select(Calls(layer, 0)).at_instances_of(Elementwise)
    with pytest.warns(UserWarning, match=r"did not call the selected layer"):
        assert call_and_extract_submodel(never, jnp.ones(2)) == []
    assert extract_submodel_calls(never, jnp.ones(2)) == []


def test_errors():
    model = tm.mlp([2, 3, 2])
    x = tm.random_input(features=2)
    with pytest.raises(
        ValueError, match=r"exactly one layer must be selected, but 2 are.*pick_nth"
    ):
        call_and_extract_submodel(select(model).at_instances_of(Linear), x)
    call_and_extract_submodel(select(model).at_instances_of(Linear).pick_nth_selected(0), x)
    with pytest.raises(ValueError, match=r"the selected value must be a layer.*is a Parameter"):
        call_and_extract_submodel(
            select(model)
            .at_instances_of(Linear)
            .pick_nth_selected(0)
            .at(lambda linear: linear.weights),
            x,
        )
    with pytest.raises(ValueError, match=r"the whole tree must be a layer.*is a list"):
        call_and_extract_submodel(select([model]).at_instances_of(Linear).pick_nth_selected(0), x)


def test_unknown_variable_class_is_refused():
    @pytree_dataclass
    class OddSlot(AbstractVariableSlot):
        pass

    @pytree_dataclass
    class OddValue(AbstractVariableValue):
        def unfreeze_as_copy(self):
            return Odd()

        def get_slot(self):
            return OddSlot()

    class Odd(AbstractVariable):
        def freeze(self):
            return OddValue()

        def get_slot(self):
            return OddSlot()

        def update(self, new_frozen_value):
            pass

    @pytree_dataclass
    class Holds(Layer):
        odd: object

        def __call__(self, x, /, **_):
            return x

    model = Sequential([Holds(Odd())])
    with pytest.raises(ValueError, match=r"of type Odd; only Parameter and StateVariable"):
        call_and_extract_submodel(select(model).at_instances_of(Holds), jnp.ones(1))


def test_replay_is_differentiable():
    isolated = call_and_extract_submodel(
        select(Sequential([Elementwise(jnp.sin)])).at_instances_of(Elementwise), jnp.ones(())
    )
    assert jax.grad(lambda x: replay(isolated, x))(0.5) == pytest.approx(float(jnp.cos(0.5)))
