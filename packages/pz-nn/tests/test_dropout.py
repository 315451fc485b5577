import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.random_stream import RandomStream
from pz_named import named_axes as nx
from pz_nn.dropout import DisabledDropout, StochasticDropout, maybe_dropout
from pz_nn.grouping import Identity


def stream(key):
    return RandomStream.from_base_key(key)


@pytest.mark.smoke
def test_vector(key):
    y = StochasticDropout(0.5)(nx.ones({"batch": 3, "foo": 4}), random_stream=stream(key))
    expected = np.zeros((3, 4))
    for place in [(0, 0), (1, 1), (1, 2), (2, 0), (2, 3)]:
        expected[place] = 2.0
    assert (raw(y) == expected).all()


def test_takes_exactly_one_key_whatever_the_rate(key):
    for rate in (0.0, 0.5, 1.0):
        source = stream(key)
        y = StochasticDropout(rate)(nx.ones({"a": 4}), random_stream=source)
        assert source.offset.value == 1
        if rate in (0.0, 1.0):
            assert (raw(y) == 1.0 - rate).all()


def test_rate_and_scale(key):
    y = raw(StochasticDropout(0.25)(nx.ones({"a": 100, "b": 100}), random_stream=stream(key)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    # Standard deviation of the share of zeros in 10⁴ draws: 0.0043.
    assert abs((y == 0).mean() - 0.25) < 0.02


@pytest.mark.parametrize("shared", ["b", ("b",), ("b", "absent")])
def test_shared_axes(key, shared):
    layer = StochasticDropout(0.5, shared)
    x = nx.ones({"b": 8, "a": 32})
    y = layer(x, random_stream=stream(key))
    assert axis_order(y) == ["a", "b"]
    values = raw(y, "a", "b")
    assert (values == values[:, :1]).all()
    assert 0 < (values == 0).mean() < 1
    assert layer.share_across_axes == ((shared,) if isinstance(shared, str) else shared)


def test_mask_does_not_depend_on_storage_order(key):
    x = named(0, {"a": 3, "b": 4})
    one = StochasticDropout(0.5)(x, random_stream=stream(key))
    other = StochasticDropout(0.5)(x.order_as("b", "a"), random_stream=stream(key))
    assert axis_order(other) == ["b", "a"]
    assert (raw(one, "a", "b") == raw(other, "a", "b")).all()


def test_positional_axes_have_masks_of_their_own(key):
    x = nx.wrap(jnp.ones((64, 3))).tag("a", "b").untag("a")
    y = StochasticDropout(0.5)(x, random_stream=stream(key))
    assert y.positional_shape == (64,)
    values = raw(y.tag("a"), "a", "b")
    assert (values != values[:, :1]).any()
    assert (values != values[:1]).any()


def test_gradient_at_rate_one_is_zero(key):
    def loss(rate, data):
        y = StochasticDropout(rate)(nx.wrap(data, "a"), random_stream=stream(key))
        return y.unwrap("a").sum()

    for rate in (1.0, jnp.asarray(1.0)):
        assert (jax.grad(loss, argnums=1)(rate, jnp.ones(4)) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes(key, dtype):
    x = nx.ones({"a": 8}, dtype)
    assert StochasticDropout(0.5)(x, random_stream=stream(key)).dtype == dtype
    counts = StochasticDropout(0.5)(nx.arange("a", 8), random_stream=stream(key))
    assert counts.dtype == jnp.float32


def test_disable_and_enable_keep_everything(key):
    layer = StochasticDropout(0.5, ("a",), "noise")
    disabled = layer.disable()
    assert disabled == DisabledDropout(0.5, ("a",), "noise")
    assert isinstance(disabled, Identity)
    assert disabled.enable() == layer
    x = named(0, {"a": 2})
    assert disabled(x) is x
    assert layer(x, noise=stream(key)).named_shape == {"a": 2}


def test_maybe_dropout():
    assert maybe_dropout(None) == DisabledDropout(0.0, ())
    assert maybe_dropout(0.0) == StochasticDropout(0.0)
    assert maybe_dropout(0.1, ["a"], "noise") == StochasticDropout(0.1, ("a",), "noise")
    assert maybe_dropout(None, "a", "noise") == DisabledDropout(0.0, ("a",), "noise")


def test_errors(key):
    with raises(KeyError, "random_stream", "StochasticDropout"):
        StochasticDropout(0.5)(nx.ones({"a": 2}))
    with raises(TypeError, "named array"):
        StochasticDropout(0.5)(jnp.ones(2), random_stream=stream(key))


@pytest.mark.parametrize("rate", [1.5, -1, math.nan, np.float32(2.0)])
def test_rates_that_are_no_probabilities(key, rate):
    for make in (StochasticDropout, maybe_dropout, lambda rate: DisabledDropout(rate, ())):
        with raises(ValueError, "drop_rate", "must be from 0 to 1", f"got {rate!r}"):
            make(rate)
    x = nx.ones({"a": 2})
    assert StochasticDropout(0.1)(x, random_stream=stream(key)).named_shape == {"a": 2}
    assert maybe_dropout(None)(x) is x


def test_a_traced_rate(key):
    def run(rate):
        return StochasticDropout(rate)(nx.ones({"a": 8}), random_stream=stream(key)).unwrap("a")

    assert (jax.jit(run)(0.5) == run(jnp.asarray(0.5))).all()


def test_compiled_equals_eager(key):
    x = named(0, {"a": 4})

    def run(x):
        return StochasticDropout(0.5)(x, random_stream=RandomStream.from_base_key(key))

    assert_close(raw(jax.jit(run)(x)), raw(run(x)), 0)
