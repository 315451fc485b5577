import dataclasses

import jax
import jax.numpy as jnp
import pytest
from nn_helpers import raises

from pz_core.struct import pytree_dataclass
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariable,
    StateVariableSlot,
    UnboundVariableError,
    VariableConflictError,
    unbind_variables,
)
from pz_nn.layer import Layer


@pytree_dataclass
class Counting(Layer):
    """Multiplies by a parameter and counts its calls."""

    weight: object
    counter: object

    def __call__(self, argument, /, **side_inputs):
        self.counter.value = self.counter.value + side_inputs.get("step", 1)
        return argument * self.weight.value


@pytree_dataclass
class Writing(Layer):
    weight: object

    def __call__(self, argument, /, **_side_inputs):
        self.weight.value = self.weight.value + 1
        return argument


def counting():
    return Counting(Parameter(label="w", value=2.0), StateVariable(0, label="n"))


def test_instantiating_an_undecorated_layer_is_an_error():
    class Undecorated(Layer):
        def __call__(self, argument, /, **_side_inputs):
            return argument

    with raises(TypeError, "Undecorated"):
        Undecorated()
    # The repair:
    assert pytree_dataclass(Undecorated)()(3) == 3


def test_abstract_layers_cannot_be_made():
    with pytest.raises(TypeError):
        Layer()

    @pytree_dataclass
    class WithoutCall(Layer):
        pass

    with raises(TypeError, "WithoutCall", "__call__"):
        WithoutCall()


@pytest.mark.smoke
def test_stateful_call_then_stateless_call_with_one_variable_left_bound():
    layer = counting()
    assert layer(3.0) == 6.0
    assert layer.counter.value == 1
    slots, (counter,) = unbind_variables(layer, lambda v: isinstance(v, StateVariable), freeze=True)
    output, (after,) = slots.stateless_call((counter,), 4.0, step=5)
    assert output == 8.0
    assert after.value == 6
    assert layer.counter.value == 1  # the original saw nothing


def test_stateless_call_works_under_jit_and_returns_values_in_the_order_given():
    slots, values = unbind_variables(counting(), freeze=True)
    by_label = {value.label: value for value in values}
    given = (by_label["n"], by_label["w"])
    output, after = jax.jit(lambda s, v, x: s.stateless_call(v, x))(slots, given, 3.0)
    assert output == 6.0
    assert [value.label for value in after] == ["n", "w"]
    assert [float(value.value) for value in after] == [1.0, 2.0]


def test_stateless_call_consumes_a_generator_and_fills_slots_in_side_inputs():
    @pytree_dataclass
    class Reads(Layer):
        def __call__(self, argument, /, **side_inputs):
            return argument["slot"].value + side_inputs["extra"].value

    values = [Parameter(label="a", value=1.0).freeze(), Parameter(label="b", value=2.0).freeze()]
    output, _ = Reads().stateless_call(
        (v for v in values), {"slot": ParameterSlot("a")}, extra=ParameterSlot("b")
    )
    assert output == 3.0


def test_stateless_call_leaks_writes_to_mutable_side_inputs():
    @pytree_dataclass
    class WritesSide(Layer):
        def __call__(self, argument, /, **side_inputs):
            side_inputs["state"].value = jnp.asarray(7)
            return argument

    state = StateVariable(0, label="s")
    WritesSide().stateless_call((), 1.0, state=state)
    assert state.value == 7


@pytest.mark.parametrize("name", ["argument", "variable_values", "layer", "value"])
def test_side_inputs_may_have_any_name(name):
    slots, values = unbind_variables(counting(), freeze=True)
    assert slots.stateless_call(values, 3.0, **{name: 1})[0] == 6.0


def test_stateless_call_errors():
    layer = Writing(Parameter(label="w", value=1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.stateless_call((), 1.0)
    with raises(UnboundVariableError, "w"):
        Writing(ParameterSlot("w")).stateless_call((), 1.0)
    value = Parameter(label="elsewhere", value=1.0).freeze()
    with raises(ValueError, "elsewhere"):
        layer.stateless_call((value,), 1.0)
    own = Parameter(label="w", value=1.0).freeze()
    with raises(ValueError, "w"):
        Writing(ParameterSlot("w")).stateless_call((own, own), 1.0)
    with raises(TypeError, "Parameter", "freeze()"):
        Writing(ParameterSlot("w")).stateless_call((Parameter(label="w", value=1.0),), 1.0)


def test_bind_variables_inserts_the_objects_themselves():
    slots = Counting(ParameterSlot("w"), StateVariableSlot("n"))
    weight, counter = Parameter(label="w", value=2.0), StateVariable(0, label="n").freeze()
    bound = slots.bind_variables([weight, counter])
    assert isinstance(bound, Counting)
    assert bound.weight is weight
    assert bound.counter is counter
    unused = Parameter(label="unused", value=0.0)
    with raises(ValueError, "unused"):
        slots.bind_variables([unused])
    assert slots.bind_variables([unused], allow_unused=True) == slots


def test_duplicate_labels_conflict_when_unbinding():
    layers = [Writing(Parameter(label="same", value=1.0)) for _ in range(2)]
    with raises(VariableConflictError, "same"):
        unbind_variables(layers)
