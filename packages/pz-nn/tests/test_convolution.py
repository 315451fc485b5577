import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import (
    assert_close,
    assert_jit_equals_eager,
    axis_order,
    check_gradients,
    draw,
    named,
    raises,
    raw,
)

from pz_core.variables import Parameter, freeze_variables
from pz_named import named_axes as nx
from pz_nn.convolution import Conv, ConvOperator, ConvTranspose, ConvTransposeOperator
from pz_nn.linear_and_affine import RenameAxes


def direct(x, w, strides, padding, dilation):
    """Loops over output and window places; x (batch, spatial…, in), w (window…, in, out)."""
    window = w.shape[:-2]
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
    spans = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    sizes = [
        max((n - span - 1) // s + 1, 0)
        for n, span, s in zip(x.shape[1:-1], spans, strides, strict=True)
    ]
    y = np.zeros((x.shape[0], *sizes, w.shape[-1]))
    for place in itertools.product(*map(range, sizes)):
        for k in itertools.product(*map(range, window)):
            source = tuple(
                p * s + j * d for p, s, j, d in zip(place, strides, k, dilation, strict=True)
            )
            y[(slice(None), *place)] += x[(slice(None), *source)] @ w[k]
    return y


def direct_transpose(x, w, strides, cuts, dilation):
    window = w.shape[:-2]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[1:-1], strides, window, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], *sizes, w.shape[-1]))
    for place in itertools.product(*map(range, x.shape[1:-1])):
        for k in itertools.product(*map(range, window)):
            target = tuple(
                p * s + j * d for p, s, j, d in zip(place, strides, k, dilation, strict=True)
            )
            y[(slice(None), *target)] += x[(slice(None), *place)] @ w[k]
    cut = [slice(low, n - high) for n, (low, high) in zip(sizes, cuts, strict=True)]
    return y[(slice(None), *cut)]


SIZES = {"h": 5, "w": 4, "d": 3}
CASES = [
    # window, strides, padding, dilation
    ({"h": 3}, 1, "VALID", 1),
    ({"h": 3}, 2, {"h": (2, 1)}, 1),
    ({"h": 2}, 1, {"h": (0, 3)}, 2),
    ({"h": 2, "w": 3}, {"h": 2}, {"w": (1, 1)}, 1),
    ({"h": 2, "w": 2, "d": 2}, {"d": 2}, "VALID", {"h": 2}),
]


@pytest.mark.smoke
@pytest.mark.parametrize("window, strides, padding, dilation", CASES)
@pytest.mark.parametrize("cls, oracle", [(Conv, direct), (ConvTranspose, direct_transpose)])
def test_against_loops(key, cls, oracle, window, strides, padding, dilation):
    layer = cls.from_config(
        "c",
        key,
        {"f": 3},
        {"f": 2},
        window,
        strides=strides,
        padding=padding,
        dilation=dilation,
        initializer=draw,
        bias_initializer=draw,
    )
    operator, rename, bias = layer.sublayers
    assert rename == RenameAxes(("f_out",), ("f",))
    assert [operator.weights.label, bias.bias.label] == ["c/Conv.weights", "c/AddBias.bias"]
    sizes = {axis: SIZES[axis] for axis in window}
    x = named(0, {"f": 3, **sizes, "batch": 2})
    y = layer(x)
    assert axis_order(y) == ["batch", *window, "f"]
    pairs = [padding.get(a, (0, 0)) if isinstance(padding, dict) else (0, 0) for a in window]
    expected = oracle(
        raw(x, "batch", *window, "f"),
        raw(operator.weights.value, *window, "f", "f_out"),
        operator.strides,
        pairs,
        operator.dilation,
    )
    assert_close(raw(y), expected + raw(bias.bias.value), 1e-5)


@pytest.mark.parametrize(
    "size, stride, dilation", [(1, 1, 1), (4, 2, 1), (5, 2, 1), (5, 3, 2), (4, 1, 2), (1, 3, 1)]
)
def test_padding_words(size, stride, dilation):
    x, w = named(0, {"h": size, "f": 1}), named(1, {"h": 3, "f": 1, "o": 1})

    def run(cls, padding):
        parameter = Parameter(label="c.weights", value=w).freeze()
        return raw(cls(parameter, ("f",), ("o",), ("h",), (stride,), padding, (dilation,))(x))

    same = run(ConvOperator, "SAME")
    assert same.shape == (-(-size // stride), 1)
    library = jax.lax.conv_general_dilated(
        jnp.asarray(raw(x))[None],
        jnp.asarray(raw(w)),
        (stride,),
        "SAME",
        rhs_dilation=(dilation,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    assert_close(same, library[0])
    causal = run(ConvOperator, "CAUSAL")
    pairs = [((3 - 1) * dilation, 0)]
    assert_close(causal[None], direct(raw(x)[None], raw(w), [stride], pairs, [dilation]))
    assert run(ConvTransposeOperator, "SAME").shape == (size * stride, 1)
    full = run(ConvTransposeOperator, "VALID")
    causal = run(ConvTransposeOperator, "CAUSAL")
    kept = min(size * stride, len(full))
    assert_close(causal[:kept], full[:kept])
    assert causal.shape == (size * stride, 1)


def test_transpose_is_the_adjoint():
    w = Parameter(label="c.weights", value=named(1, {"h": 3, "f": 2, "o": 4})).freeze()
    swapped = Parameter(label="c.weights", value=w.value).freeze()
    forward = ConvOperator(w, ("f",), ("o",), ("h",), (2,), ((1, 1),), (1,))
    backward = ConvTransposeOperator(swapped, ("o",), ("f",), ("h",), (2,), ((1, 1),), (1,))
    x, y = named(2, {"h": 7, "f": 2}), named(3, {"h": 4, "o": 4})
    left = np.vdot(raw(forward(x)), raw(y))
    right = np.vdot(raw(x), raw(backward(y)))
    assert_close(left, right)


def test_depthwise_and_grouped(key):
    layer = Conv.from_config(
        "c", key, {}, {}, {"h": 3}, parallel_axes={"f": 4}, use_bias=False, initializer=draw
    )
    x = named(0, {"n": 2, "h": 6, "f": 4})
    (operator,) = layer.sublayers
    w = raw(operator.weights.value, "h", "f")
    expected = np.stack(
        [direct(raw(x)[..., [c]], w[:, [c], None], [1], [(1, 1)], [1])[..., 0] for c in range(4)],
        -1,
    )
    assert_close(raw(layer(x), "n", "h", "f"), expected)
    grouped = Conv.from_config(
        "g", key, {"i": 2}, {"o": 3}, {"h": 2}, {"g": 2}, padding="VALID", initializer=draw
    )
    x = named(1, {"n": 2, "g": 2, "i": 2, "h": 5})
    y = assert_jit_equals_eager(freeze_variables(grouped), x)
    assert axis_order(y) == ["n", "h", "g", "o"]
    w = raw(grouped.sublayers[0].weights.value, "g", "h", "i", "o")
    for g in range(2):
        one = direct(raw(x, "n", "h", "g", "i")[:, :, g], w[g], [1], [(0, 0)], [1])
        assert_close(raw(y)[:, :, g], one)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 5e-2), (jnp.float16, 1e-2)])
def test_low_precision(key, dtype, tolerance):
    layer = Conv.from_config(
        "c", key, {"i": 3}, {"o": 2}, {"h": 3}, use_bias=False, initializer=draw, dtype=dtype
    )
    x = named(0, {"h": 5, "i": 3}, dtype)
    y = layer(x)
    assert y.dtype == dtype
    w = raw(layer.sublayers[0].weights.value, "h", "i", "o")
    assert_close(raw(y), direct(raw(x)[None], w, [1], [(1, 1)], [1])[0], tolerance)


@pytest.mark.parametrize("cls", [Conv, ConvTranspose])
def test_gradient(float64, key, cls):
    def run(d, w):
        layer = cls.from_config("c", None, {"i": 2}, {"o": 2}, {"h": 3}, strides=2, use_bias=False)
        value = nx.wrap(w, "h", "i", "o")
        layer = layer.bind_variables([Parameter(label="c/Conv.weights", value=value).freeze()])
        return jnp.sin(layer(nx.wrap(d, "h", "i")).unwrap("h", "o"))

    rng = np.random.default_rng(0)
    check_gradients(run, rng.normal(size=(5, 2)), rng.normal(size=(3, 2, 2)))


def test_no_batch_axes_and_empty_ones(key):
    layer = Conv.from_config("c", key, {"i": 2}, {"o": 3}, {"h": 3}, initializer=draw)
    assert layer(nx.ones({"i": 2, "h": 4})).named_shape == {"h": 4, "o": 3}
    assert layer(nx.ones({"n": 0, "i": 2, "h": 4})).named_shape == {"n": 0, "h": 4, "o": 3}


def test_errors(key):
    def build(**options):
        settings = dict(input_axes={"i": 2}, output_axes={"o": 3}, window={"height": 3})
        return Conv.from_config("c", None, **{**settings, **options})

    layer = build(use_bias=False).bind_variables(
        [Parameter(label="c/Conv.weights", value=nx.ones({"height": 3, "i": 2, "o": 3}))]
    )
    for bad in ({"i": 2}, {"i": 5, "height": 4}, {"i": 2, "height": 4, "o": 3}):
        with raises(ValueError, "(c/Conv) ConvOperator", str(bad)):
            layer(nx.ones(bad))
    with raises(ValueError, "strides", "['hight']", "Did you mean 'height'?"):
        build(strides={"hight": 2})
    with raises(ValueError, "padding", "['width']"):
        build(padding={"width": (1, 1)})
    with raises(ValueError, "'same'", "SAME"):
        build(padding="same")
    with raises(ValueError, "dilation", "at least 1", "0"):
        build(dilation=0)
    with raises(ValueError, "Conv.from_config('c')", "height"):
        build(output_axes={"height": 2})
