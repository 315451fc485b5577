import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, check_gradients, named, raises, raw

from pz_core.variables import StateVariable, freeze_variables, unbind_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.batch_norm import BatchNorm, InferenceBatchNorm, TrainingBatchNorm
from pz_nn.training_mode import set_training


@pytest.mark.smoke
def test_training_and_inference(key):
    layer = BatchNorm.from_config("b", key, {"c": 3}, update_rate=0.25, epsilon=1e-3)
    standardize, scale, shift = layer.sublayers
    labels = [standardize.running_mean.label, standardize.running_variance.label]
    assert labels == ["b.running_mean", "b.running_variance"]
    assert [scale.weights.label, shift.bias.label] == ["b/scale.weights", "b/shift.bias"]
    scale.weights.value, shift.bias.value = named(1, {"c": 3}), named(2, {"c": 3})
    x = named(0, {"n": 4, "c": 3, "h": 5}) * 3 + 2
    y = layer(x)
    assert axis_order(y) == ["n", "c", "h"]
    data = raw(x, "n", "h", "c")
    mean, variance = data.mean((0, 1)), data.var((0, 1))
    w, b = raw(scale.weights.value), raw(shift.bias.value)
    expected = (data - mean) / np.sqrt(variance + 1e-3) * w + b
    assert_close(raw(y, "n", "h", "c"), expected)
    running_mean, running_variance = 0.25 * mean, 0.75 + 0.25 * variance * 20 / 19
    assert_close(raw(standardize.running_mean.value), running_mean)
    assert_close(raw(standardize.running_variance.value), running_variance)

    inference = set_training(layer, False)
    assert isinstance(inference.sublayers[0], InferenceBatchNorm)
    assert inference.sublayers[0].running_mean is standardize.running_mean
    y = inference(x)
    expected = (data - running_mean) / np.sqrt(running_variance + 1e-3) * w + b
    assert_close(raw(y, "n", "h", "c"), expected)
    assert_close(raw(standardize.running_mean.value), running_mean)  # unchanged
    assert set_training(inference, True) == layer


def test_several_feature_axes_and_compiled(key):
    layer = BatchNorm.from_config("b", key, {"c": 3, "g": 2})
    eager = BatchNorm.from_config("b", key, {"c": 3, "g": 2})
    x = named(0, {"g": 2, "n": 8, "c": 3})
    y = variable_jit(lambda la, v: la(v))(layer, x)
    assert_close(raw(y), raw(eager(x)), 1e-6)
    state, same = layer.sublayers[0].running_variance, eager.sublayers[0].running_variance
    assert_close(raw(state.value), raw(same.value), 1e-6)
    assert (raw(state.value) != 1).any()


def test_statistics_travel_through_a_stateless_call(key):
    slots, values = unbind_variables(BatchNorm.from_config("b", key, {"c": 3}), freeze=True)
    _, after = slots.stateless_call(values, named(0, {"n": 4, "c": 3}))
    changed = {
        value.label
        for value, old in zip(after, values, strict=True)
        if (raw(value.value) != raw(old.value)).any()
    }
    assert changed == {"b.running_mean", "b.running_variance"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_statistics_are_float32(key, dtype):
    layer = BatchNorm.from_config("b", key, {"c": 3}).sublayers[0]
    x = named(0, {"n": 64, "c": 3}, dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert layer.running_mean.value.dtype == jnp.float32
    data = raw(x)
    assert_close(raw(y), (data - data.mean(0)) / np.sqrt(data.var(0) + 1e-5), 2e-2)
    assert layer.for_inference()(x).dtype == dtype


def test_one_entry_does_not_divide_by_zero(key):
    layer = BatchNorm.from_config("b", key, {"c": 3})
    layer(named(0, {"c": 3}))
    assert np.isfinite(raw(layer.sublayers[0].running_variance.value)).all()


def test_an_empty_batch_changes_no_running_statistics(key):
    layer = BatchNorm.from_config("b", key, {"c": 3})
    assert layer(nx.zeros({"n": 0, "c": 3})).named_shape == {"n": 0, "c": 3}
    assert (raw(layer.sublayers[0].running_mean.value) == 0).all()
    assert (raw(layer.sublayers[0].running_variance.value) == 1).all()


def test_errors(key):
    layer = BatchNorm.from_config("b", key, {"channels": 3}).sublayers[0]
    with raises(ValueError, "TrainingBatchNorm", "'channels'", "Did you mean 'channel'?"):
        layer(named(0, {"channel": 3}))
    with raises(ValueError, "InferenceBatchNorm", "'channels'"):
        layer.for_inference()(named(0, {"c": 3}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        freeze_variables(layer)(named(0, {"n": 2, "channels": 3}))


def test_gradient(float64, key):
    def run(d):
        layer = TrainingBatchNorm(
            StateVariable(nx.zeros({"c": 2})), StateVariable(nx.ones({"c": 2})), ("c",)
        )
        return jnp.sin(layer(nx.wrap(d, "n", "c")).unwrap("n", "c"))

    check_gradients(run, np.random.default_rng(0).normal(size=(4, 2)))
