"""What holds for every layer: one table, checked for compilation, dtypes, order, gradients and edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, check_gradients, draw, named, raw

import pz_nn
from pz_core.variables import ParameterValue, freeze_variables
from pz_named import named_axes as nx

KEY = jax.random.key(0)
AXES = {"n": 2, "s": 4, "f": 6}
POSITIONS = {"p": nx.arange("s", 4)}


class Fixed:
    """A random stream that always gives the same key, so that dropout is a function."""

    def next_key(self):
        return KEY


def build(name, dtype):
    make, _ = LAYERS[name]
    return freeze_variables(make(draw, dtype))


# Entries that every floating dtype represents, so that one float32 result serves all comparisons.
INPUT = named(0, AXES, jnp.bfloat16).astype(jnp.float32)


@functools.cache
def result(name):
    """The layer's float32 result for INPUT."""
    _, sides = LAYERS[name]
    return build(name, jnp.float32)(INPUT, **sides)


# name: (builder from (initializer, dtype), side inputs)
LAYERS = {
    "Affine": (
        lambda i, d: pz_nn.Affine.from_config(
            "x",
            KEY,
            {"f": 6},
            {"f": 3},
            {"s": 4},
            linear_initializer=i,
            bias_initializer=i,
            dtype=d,
        ),
        {},
    ),
    "Linear": (
        lambda i, d: pz_nn.Linear.from_config("x", KEY, {"f": 6}, {"g": 3}, initializer=i, dtype=d),
        {},
    ),
    "AddBias": (lambda i, d: pz_nn.AddBias.from_config("x", KEY, {"f": 6}, {"g": 2}, i, d), {}),
    "ConstantRescale": (lambda i, d: pz_nn.ConstantRescale(0.3), {}),
    "RenameAxes": (lambda i, d: pz_nn.RenameAxes("f", "g"), {}),
    "Elementwise": (lambda i, d: pz_nn.Elementwise(jax.nn.silu), {}),
    "Elementwise of a lambda": (lambda i, d: pz_nn.Elementwise(lambda v: v * jnp.sin(v)), {}),
    "TanhSoftCap": (lambda i, d: pz_nn.TanhSoftCap(2.0), {}),
    "Softmax": (lambda i, d: pz_nn.Softmax(("s", "f")), {}),
    "Standardize": (lambda i, d: pz_nn.Standardize("f"), {}),
    "LayerNorm": (lambda i, d: pz_nn.LayerNorm.from_config("x", KEY, {"f": 6}, dtype=d), {}),
    "LayerNorm, no bias": (
        lambda i, d: pz_nn.LayerNorm.from_config("x", KEY, {"f": 6}, dtype=d, use_bias=False),
        {},
    ),
    "RMSLayerNorm": (lambda i, d: pz_nn.RMSLayerNorm.from_config("x", KEY, {"f": 6}, dtype=d), {}),
    "RMSLayerNorm, Gemma": (
        lambda i, d: pz_nn.RMSLayerNorm.from_config(
            "x", KEY, {"f": 6}, dtype=d, offset=1.0, scale_before_cast=True
        ),
        {},
    ),
    "GroupNorm": (lambda i, d: pz_nn.GroupNorm.from_config("x", KEY, "f", 6, 3, "s", dtype=d), {}),
    "InferenceBatchNorm": (
        lambda i, d: pz_nn.set_training(
            pz_nn.BatchNorm.from_config("x", KEY, {"f": 6}, dtype=d), False
        ),
        {},
    ),
    "StochasticDropout": (
        lambda i, d: pz_nn.StochasticDropout(0.5, "s"),
        {"random_stream": Fixed()},
    ),
    "DisabledDropout": (lambda i, d: pz_nn.DisabledDropout(0.5, ()), {}),
    "ApplyRoPE": (lambda i, d: pz_nn.ApplyRoPE("f", 100.0, "p"), POSITIONS),
    "ApplyRoPEToSubset": (
        lambda i, d: pz_nn.ApplyRoPEToSubset("f", 100.0, 4, "p", pairing="interleaved"),
        POSITIONS,
    ),
    "AddLearnedPositions": (
        lambda i, d: pz_nn.AddLearnedPositions.from_config("x", KEY, 9, {"f": 6}, "p", i, d),
        POSITIONS,
    ),
    "AddSinusoidalPositions": (lambda i, d: pz_nn.AddSinusoidalPositions("f", "p"), POSITIONS),
    "EmbeddingDecode": (
        lambda i, d: pz_nn.EmbeddingDecode(
            pz_nn.EmbeddingTable.from_config("x", KEY, 5, {"f": 6}, initializer=i, dtype=d)
        ),
        {},
    ),
    "Conv": (
        lambda i, d: pz_nn.Conv.from_config(
            "x", KEY, {"f": 6}, {"f": 2}, {"s": 3}, initializer=i, bias_initializer=i, dtype=d
        ),
        {},
    ),
    "ConvTranspose": (
        lambda i, d: pz_nn.ConvTranspose.from_config(
            "x", KEY, {"f": 6}, {"g": 2}, {"s": 3}, strides=2, initializer=i, dtype=d
        ),
        {},
    ),
    "MaxPool": (lambda i, d: pz_nn.MaxPool.over({"s": 2}), {}),
    "AveragePool": (lambda i, d: pz_nn.AveragePool.over({"s": 2, "f": 3}), {}),
    "GatedMLP": (
        lambda i, d: pz_nn.GatedMLP.from_config(
            "x", KEY, {"f": 6}, {"h": 3}, initializer=i, dtype=d
        ),
        {},
    ),
    "GRU": (
        lambda i, d: pz_nn.ScanOver(
            pz_nn.GRUCell.from_config("x", KEY, {"f": 6}, {"h": 2}, i, d), "s"
        ),
        {},
    ),
    "LSTM": (
        lambda i, d: pz_nn.ScanOver(
            pz_nn.LSTMCell.from_config("x", KEY, {"f": 6}, {"h": 2}, i, dtype=d), "s"
        ),
        {},
    ),
    "Residual": (lambda i, d: pz_nn.Residual(pz_nn.Elementwise(jnp.sin)), {}),
    "BranchAndAddTogether": (
        lambda i, d: pz_nn.BranchAndAddTogether([pz_nn.Identity(), pz_nn.Elementwise(jnp.sin)]),
        {},
    ),
    "BranchAndMultiplyTogether": (
        lambda i, d: pz_nn.BranchAndMultiplyTogether([pz_nn.Identity(), pz_nn.Softmax("f")]),
        {},
    ),
    "ConcatBranches": (
        lambda i, d: pz_nn.ConcatBranches([pz_nn.Identity(), pz_nn.Elementwise(jnp.sin)], "f"),
        {},
    ),
}
# Relative to the largest entry of the result. Several layers round more than once.
TOLERANCES = {jnp.bfloat16: 4e-2, jnp.float16: 5e-3}

every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.smoke
@every_layer
def test_compiled_equals_eager_and_order_of_axes_does_not_matter(name):
    _, sides = LAYERS[name]
    layer, eager = build(name, jnp.float32), result(name)

    @jax.jit
    def run(x):
        return layer(x, **sides), layer(x.order_as("f", "n", "s"), **sides)

    compiled, permuted = run(INPUT)
    assert axis_order(compiled) == axis_order(eager)
    assert compiled.dtype == eager.dtype == jnp.float32
    assert_close(raw(compiled), raw(eager), 2e-6)
    assert_close(raw(permuted, *eager.named_shape), raw(eager), 2e-6)


@every_layer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(name, dtype):
    _, sides = LAYERS[name]
    layer = build(name, dtype)
    parameters = jax.tree.leaves(layer, is_leaf=lambda x: isinstance(x, ParameterValue))
    assert all(p.value.dtype == dtype for p in parameters if isinstance(p, ParameterValue))
    y = jax.jit(lambda v: layer(v, **sides))(INPUT.astype(dtype))
    assert y.dtype == dtype
    exact = raw(result(name), *y.named_shape)
    assert_close(raw(y), exact, TOLERANCES[dtype] * max(1.0, np.abs(exact).max()))


@every_layer
def test_gradient(name, float64):
    _, sides = LAYERS[name]
    layer = build(name, jnp.float64)

    def run(data):
        return layer(nx.wrap(data, "n", "s", "f"), **sides).with_positional_prefix().data_array

    check_gradients(run, raw(named(1, {"n": 1, "s": 4, "f": 6})))


def test_the_check_of_gradients_can_fail(float64):
    @jax.custom_vjp
    def wrong(x):
        return jnp.sin(x)

    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (1.001 * g * jnp.cos(x),))
    with pytest.raises(AssertionError):
        check_gradients(wrong, np.arange(3.0))
    check_gradients(jnp.sin, np.arange(3.0))


@every_layer
def test_batch_axes_of_any_name_and_number_and_unknown_side_inputs_of_any_name(name):
    _, sides = LAYERS[name]
    unknown = dict.fromkeys(("self", "value", "argument", "inputs", "x", "layer", "names"), 1)
    layer = build(name, jnp.float32)
    expected = {n: s for n, s in result(name).named_shape.items() if n != "n"}
    for batch in ({}, {"n": 0}, {("odd", 1): 2, "value": 1, "out": 3}):
        x = nx.zeros({**batch, "s": 4, "f": 6})
        y = jax.eval_shape(lambda v: layer(v, **sides, **unknown), x)
        assert y.named_shape == {**batch, **expected}


@every_layer
@pytest.mark.parametrize("length", [0, 1])
def test_zero_length_sequences_and_one_token(name, length):
    _, sides = LAYERS[name]
    if name == "Affine":
        pytest.skip("its weights have the sequence as an axis")
    sides = {key: nx.arange("s", length) if key == "p" else value for key, value in sides.items()}
    layer = build(name, jnp.float32)
    y = jax.eval_shape(lambda v: layer(v, **sides), nx.zeros({"n": 2, "s": length, "f": 6}))
    assert y.named_shape["n"] == 2
    full = result(name).named_shape.get("s")
    if full == INPUT.named_shape["s"]:
        assert y.named_shape["s"] == length
