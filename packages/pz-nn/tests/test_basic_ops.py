import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import (
    assert_close,
    assert_jit_equals_eager,
    axis_order,
    named,
    raises,
    raw,
)

from pz_named import named_axes as nx
from pz_nn.basic_ops import CastToDType, Elementwise, Softmax, TanhSoftCap


def numpy_softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.smoke
def test_elementwise_fast_path_equals_nmap():
    x = named(0, {"a": 2, "b": 3})
    for fn in (jax.nn.silu, functools.partial(jax.nn.gelu, approximate=False), jnp.tanh):
        fast = assert_jit_equals_eager(Elementwise(fn), x)
        slow = nx.nmap(fn)(x)
        assert axis_order(fast) == axis_order(slow)
        assert_close(raw(fast), raw(slow), 1e-6)


def test_elementwise_maps_unknown_functions_over_names():
    x = named(0, {"a": 2, "b": 3})
    seen = []

    def fn(value):
        seen.append(value.shape)
        return value + 1

    assert_close(raw(Elementwise(fn)(x)), raw(x) + 1)
    assert seen == [()]
    Elementwise(fn)(x.untag("b"))
    assert seen[-1] == (3,)


def test_elementwise_gives_other_inputs_to_the_function_whole():
    assert Elementwise(sum)((1, 2, 3)) == 6
    assert Elementwise(len)([1, 2], value=3) == 2


def test_elementwise_layers_of_equal_partials_are_equal_and_compile_once():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(1)
        return layer(x)

    x = named(0, {"a": 2})
    for _ in range(2):
        layer = Elementwise(functools.partial(jax.nn.gelu, approximate=True))
        run(layer, x)
    assert len(traces) == 1
    assert layer == Elementwise(functools.partial(jax.nn.gelu, approximate=True))
    assert layer != Elementwise(functools.partial(jax.nn.gelu, approximate=False))
    run(Elementwise(functools.partial(jax.nn.gelu, approximate=False)), x)
    assert len(traces) == 2  # the counter can count
    assert layer.fn != functools.partial(jax.nn.gelu, approximate=True)
    assert len({layer.fn, Elementwise(functools.partial(jax.nn.gelu, approximate=True)).fn}) == 1


def test_elementwise_takes_unhashable_callables():
    class Unhashable:
        __hash__ = None

        def __call__(self, value):
            return value + 1

    assert_close(raw(Elementwise(Unhashable())(nx.ones({"a": 2}))), [2, 2])


@pytest.mark.smoke
@pytest.mark.parametrize(
    "axes, order", [("b", "cab"), (("c", "a"), "bca"), (("a",), "bca"[0] + "ca")]
)
def test_softmax(axes, order):
    x = named(0, {"a": 2, "c": 4, "b": 3})
    layer = Softmax(axes)
    y = assert_jit_equals_eager(layer, x)
    names = (axes,) if isinstance(axes, str) else axes
    rest = [n for n in "acb" if n not in names]
    assert axis_order(y) == [*rest, *names]
    expected = numpy_softmax(raw(x, *rest, *names), tuple(range(len(rest), 3)))
    assert_close(raw(y), expected, 1e-6)


def test_softmax_dtypes():
    x = named(0, {"a": 64}) * 4
    for dtype in (jnp.bfloat16, jnp.float16):
        low = x.astype(dtype)
        y = Softmax("a")(low)
        assert y.dtype == dtype
        # Computed in float32, so only the last rounding counts.
        expected = jnp.asarray(numpy_softmax(raw(low), 0), dtype)
        assert_close(
            raw(y), np.asarray(expected, np.float64), 1e-2 if dtype == jnp.bfloat16 else 1e-3
        )
        assert (
            raw(y)
            == np.asarray(
                jax.nn.softmax(low.unwrap("a").astype(jnp.float32)).astype(dtype), np.float64
            )
        ).all()
    assert Softmax("a")(nx.arange("a", 3)).dtype == jnp.float32
    plain = Softmax("a", compute_dtype=None)(x.astype(jnp.bfloat16)).unwrap("a")
    assert (plain == jax.nn.softmax(x.astype(jnp.bfloat16).unwrap("a"))).all()


def test_softmax_over_no_axis_and_over_empty_arrays():
    assert (raw(Softmax(())(named(0, {"a": 2}))) == 1).all()
    assert Softmax("a")(nx.zeros({"b": 0, "a": 3})).named_shape == {"b": 0, "a": 3}


def test_softmax_errors():
    x = named(0, {"features": 3})
    with raises(ValueError, "Softmax", "'feature'", "Did you mean 'features'?"):
        Softmax("feature")(x)
    assert Softmax("features")(x).named_shape == {"features": 3}
    with raises(ValueError, "once"):
        Softmax(("features", "features"))(x)
    with raises(ValueError, "positional", "(3,)"):
        Softmax("a")(nx.wrap(jnp.ones(3)))
    with raises(TypeError, "Softmax", "wrap"):
        Softmax("a")(jnp.ones(3))


def test_cast_to_dtype():
    x = {"n": named(0, {"a": 2}), "p": jnp.ones(2)}
    cast = CastToDType(jnp.bfloat16)(x, value=1)
    assert cast["n"].dtype == cast["p"].dtype == jnp.bfloat16
    with pytest.raises(AttributeError):
        CastToDType(jnp.bfloat16)(1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_tanh_soft_cap(dtype):
    x = named(0, {"a": 2, "b": 3}, dtype) * 10
    y = assert_jit_equals_eager(TanhSoftCap(5.0), x, 2e-2)
    assert y.dtype == dtype
    assert_close(raw(y), 5 * np.tanh(raw(x) / 5), 1e-6 if dtype == jnp.float32 else 5e-2)
    assert TanhSoftCap(jnp.asarray(5.0, jnp.float32))(x).dtype == jnp.float32


def test_tanh_soft_cap_of_other_inputs():
    assert nx.is_namedarray(TanhSoftCap(5.0)(jnp.ones(3)))
    x, caps = named(0, {"a": 2, "b": 3}), nx.wrap(jnp.array([1.0, 2.0]), "a")
    y = TanhSoftCap(caps)(x)
    assert_close(raw(y, "a", "b"), raw(caps)[:, None] * np.tanh(raw(x) / raw(caps)[:, None]))
