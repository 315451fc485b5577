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
from pz_nn.pooling import AveragePool, MaxPool


def windows(x, size, stride, padding, fill):
    """All windows of axis 0, as a list of arrays."""
    x = np.pad(x, [padding, *[(0, 0)] * (x.ndim - 1)], constant_values=fill)
    return [x[s : s + size] for s in range(0, len(x) - size + 1, stride)]


@pytest.mark.smoke
@pytest.mark.parametrize("size, stride, padding", [(2, 2, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 2))])
def test_one_axis(size, stride, padding):
    x = named(0, {"n": 2, "h": 7, "f": 3})
    options = dict(window={"h": size}, strides=stride, padding={"h": padding})
    y = assert_jit_equals_eager(MaxPool.over(**options), x)
    assert axis_order(y) == ["n", "h", "f"]
    data = raw(x, "h", "n", "f")
    expected = np.stack([w.max(0) for w in windows(data, size, stride, padding, -np.inf)])
    assert_close(raw(y, "h", "n", "f"), expected)
    y = AveragePool.over(**options)(x)
    expected = np.stack([np.nanmean(w, 0) for w in windows(data, size, stride, padding, np.nan)])
    assert_close(raw(y, "h", "n", "f"), expected)
    y = AveragePool.over(**options, count_padding=True)(x)
    expected = np.stack([w.mean(0) for w in windows(data, size, stride, padding, 0)])
    assert_close(raw(y, "h", "n", "f"), expected)


def test_two_axes_and_default_strides():
    x = named(0, {"w": 4, "n": 2, "h": 6})
    y = MaxPool.over({"h": 3, "w": 2})(x)
    assert y.named_shape == {"w": 2, "n": 2, "h": 2}
    blocks = raw(x, "w", "n", "h").reshape(2, 2, 2, 2, 3)
    assert_close(raw(y), blocks.max((1, 4)))
    assert_close(raw(AveragePool.over({"h": 3, "w": 2})(x)), blocks.mean((1, 4)))


def test_dtypes():
    x = nx.arange("h", 4)
    assert MaxPool.over({"h": 2})(x).dtype == jnp.int32
    assert raw(MaxPool.over({"h": 2})(x)).tolist() == [1, 3]
    assert AveragePool.over({"h": 2})(x).dtype == jnp.float32
    for dtype in (jnp.bfloat16, jnp.float16):
        low = named(0, {"h": 512}, dtype)
        y = AveragePool.over({"h": 512})(low)
        assert y.dtype == dtype
        # Summed in float32: one rounding.
        assert (raw(y) == np.asarray(jnp.asarray(raw(low).mean(), dtype), np.float64)).all()
        assert MaxPool.over({"h": 2})(low).dtype == dtype


def test_errors():
    with raises(ValueError, "MaxPool", "'height'", "Did you mean 'hight'?"):
        MaxPool.over({"height": 2})(nx.ones({"hight": 4}))
    with raises(ValueError, "AveragePool.over", "['w']"):
        AveragePool.over({"h": 2}, strides={"w": 2})
