import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, assert_jit_equals_eager, axis_order, draw, named, raises, raw

from pz_core.selectors import select
from pz_core.variables import Parameter, ParameterValue, freeze_variables
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import Affine, Linear
from pz_nn.quantized import Int8Linear, quantize_linear, quantize_linears
from pz_nn.standardization import RMSLayerNorm


def linear(key, dtype=jnp.float32):
    return Linear.from_config(
        "L", key, {"f": 16}, {"g": 3, "h": 2}, {"p": 2}, initializer=draw, dtype=dtype
    )


@pytest.mark.smoke
def test_values_and_labels(key):
    layer = linear(key)
    small = quantize_linear(layer)
    assert [small.weights.label, small.scales.label] == ["L.weights_int8", "L.weights_scale"]
    assert small.weights.value.dtype == jnp.int8
    assert small.input_axes == layer.input_axes
    assert small.output_axes == layer.output_axes
    assert small.parallel_axes == layer.parallel_axes
    w = raw(layer.weights.value, "p", "f", "g", "h")
    scale = np.abs(w).max(1, keepdims=True) / 127
    q = raw(small.weights.value, "p", "f", "g", "h")
    assert_close(raw(small.scales.value, "p", "g", "h"), scale[:, 0])
    assert (q == np.round(w / scale)).all()
    assert (np.abs(q * scale - w) <= scale / 2 * 1.0001).all()
    x = named(0, {"n": 4, "f": 16, "p": 2})
    y = assert_jit_equals_eager(freeze_variables(small), x)
    assert axis_order(y) == axis_order(layer(x))
    assert_close(raw(y), np.einsum("nfp,pfgh->npgh", raw(x), q * scale))
    assert_close(raw(y), raw(layer(x)), 0.05)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(key, dtype):
    small = quantize_linear(linear(key, dtype))
    x = named(0, {"n": 4, "f": 16, "p": 2}, dtype)
    y = small(x)
    assert y.dtype == dtype
    w = (
        raw(small.weights.value, "p", "f", "g", "h")
        * raw(small.scales.value, "p", "g", "h")[:, None]
    )
    assert_close(raw(y), np.einsum("nfp,pfgh->npgh", raw(x), w), 5e-2)


def test_zero_columns_stay_zero():
    layer = Linear(Parameter(label="z", value=named(0, {"f": 3, "g": 2}) * 0), ("f",), ("g",))
    assert (raw(quantize_linear(layer)(named(0, {"f": 3}))) == 0).all()


def test_a_model_or_a_selection(key):
    model = Sequential(
        [
            RMSLayerNorm.from_config("n", key, {"f": 4}),
            Affine.from_config("a", key, {"f": 4}, {"f": 4}, linear_initializer=draw),
            Affine.from_config("b", key, {"f": 4}, {"f": 4}, linear_initializer=draw),
        ]
    )
    small = quantize_linears(model)
    assert select(small).at_instances_of(Int8Linear).count() == 2
    assert select(small).at_instances_of(Linear).count() == 1  # the scale of the norm
    x = named(0, {"n": 2, "f": 4})
    assert_close(raw(small(x)), raw(model(x)), 0.1)
    part = quantize_linears(select(model).at(lambda m: m.sublayers[1]))
    assert isinstance(part.sublayers[1].sublayers[0], Int8Linear)
    assert isinstance(part.sublayers[2].sublayers[0], Linear)
    assert select(model).at_instances_of(Int8Linear).count() == 0  # the model is not changed


def test_frozen_and_shared_weights(key):
    layer = freeze_variables(linear(key))
    small = quantize_linear(layer)
    assert isinstance(small.weights, ParameterValue)
    shared = linear(key)
    first, second = quantize_linears([shared, shared])
    assert first.weights is second.weights


def test_errors(key):
    small = quantize_linear(linear(key))
    with raises(ValueError, "Int8Linear", "['g']", "RenameAxes"):
        small(named(0, {"f": 16, "p": 2, "g": 3}))
    with raises(ValueError, "Int8Linear", "'p'"):
        small(named(0, {"f": 16}))
    with raises(ValueError, "f", "16", "5"):
        small(named(0, {"f": 5, "p": 2}))
    integers = Linear(Parameter(label="i", value=named(0, {"f": 3}).astype(jnp.int32)), ("f",), ())
    with raises(TypeError, "quantize_linear", "int32"):
        quantize_linear(integers)

    class Wrapper:
        value = named(0, {"f": 3})

    with raises(TypeError, "Wrapper"):
        quantize_linear(Linear(Wrapper(), ("f",), ()))
