"""Constructors, samplers and masks against NumPy and `jax.random`."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx

KEY = jax.random.key(3)


def test_full_zeros_and_ones_follow_the_mapping():
    assert list(nx.zeros({"b": 2, "a": np.int64(3)}).named_axes.items()) == [("b", 2), ("a", 3)]
    assert type(nx.zeros({"a": np.int64(3)}).named_axes["a"]) is int
    assert nx.full({"a": 2}, 3).data_array.weak_type
    np.testing.assert_array_equal(
        nx.full({"a": 2, "b": 3}, jnp.arange(3)).unwrap("a", "b")[1], [0, 1, 2]
    )
    assert nx.ones({}).positional_shape == ()
    assert nx.ones({"a": 0}).size == 0


def test_arange_and_linspace():
    np.testing.assert_array_equal(nx.arange("a", 4).unwrap("a"), np.arange(4))
    np.testing.assert_allclose(nx.arange("a", 0, 1, 0.25).unwrap("a"), np.arange(0, 1, 0.25))
    assert nx.arange("a", -3).named_shape == {"a": 0}
    np.testing.assert_allclose(
        nx.linspace("a", 0, 1, 5, endpoint=False).unwrap("a"), np.linspace(0, 1, 5, endpoint=False)
    )


@pytest.mark.parametrize("value, function", [(0, nx.zeros_like), (1, nx.ones_like)])
def test_like_keeps_the_structure(value, function):
    x = nx.ones({"a": 2, "b": 3}).untag("b")
    result = function(x, int)
    assert jax.tree_util.tree_structure(result) == jax.tree_util.tree_structure(x)
    np.testing.assert_array_equal(result.data_array, np.full((2, 3), value))


def test_sizes_answer_by_name():
    x = nx.ones({"a": 2, "b": 3}).untag("b")
    assert (x.ndim, x.size, x.axis_size("a")) == (2, 6, 2)


SAMPLERS = {
    "normal": (lambda k, s: nx.random_normal(k, s), lambda k, s: jax.random.normal(k, s)),
    "gumbel": (lambda k, s: nx.random_gumbel(k, s), lambda k, s: jax.random.gumbel(k, s)),
    "uniform": (
        lambda k, s: nx.random_uniform(k, s, minval=2.0, maxval=3.0),
        lambda k, s: jax.random.uniform(k, s, minval=2.0, maxval=3.0),
    ),
    "randint": (
        lambda k, s: nx.random_randint(k, s, 0, 5),
        lambda k, s: jax.random.randint(k, s, 0, 5),
    ),
    "bernoulli": (
        lambda k, s: nx.random_bernoulli(k, nx.wrap([0.1, 0.9], "a"), s),
        lambda k, s: jax.random.bernoulli(k, jnp.array([[0.1], [0.9]]), s),
    ),
    "truncated_normal": (
        lambda k, s: nx.random_truncated_normal(k, -1.0, nx.wrap([0.5, 1.0], "a"), s),
        lambda k, s: jax.random.truncated_normal(k, -1.0, jnp.array([[0.5], [1.0]]), s),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_as_jax_does(name):
    ours, theirs = SAMPLERS[name]
    np.testing.assert_allclose(
        ours(KEY, {"a": 2, "b": 3}).unwrap("a", "b"), theirs(KEY, (2, 3)), rtol=1e-6
    )


def test_a_named_array_of_keys_gives_one_draw_each():
    keys = nx.random_split(KEY, {"layer": 2})
    drawn = nx.random_normal(keys, {"a": 3})
    assert list(drawn.named_shape) == ["layer", "a"]
    expected = [jax.random.normal(k, (3,)) for k in jax.random.split(KEY, 2)]
    np.testing.assert_allclose(drawn.unwrap("layer", "a"), expected, rtol=1e-6)


def test_categorical_and_permutation():
    logits = nx.wrap(jnp.array([[0.0, 50.0], [50.0, 0.0]]), "token", "class")
    assert nx.random_categorical(KEY, logits, "class").unwrap("token").tolist() == [1, 0]
    shuffled = nx.random_permutation(KEY, nx.arange("a", 6), "a")
    np.testing.assert_array_equal(shuffled.unwrap("a"), jax.random.permutation(KEY, jnp.arange(6)))


def test_split_order_decides_which_key_goes_where():
    expected = jax.random.split(KEY, 6).reshape(2, 3)
    plain = nx.random_split(KEY, {"b": 3, "a": 2})  # sorted: a, then b
    assert list(plain.named_shape) == ["a", "b"]
    assert (plain.unwrap("a", "b") == expected).all()
    ordered = nx.random_split(KEY, collections.OrderedDict(b=2, a=3))
    assert (ordered.unwrap("b", "a") == expected).all()
    raw = nx.random_split(jax.random.PRNGKey(0), [("z", 2)])
    assert raw.positional_shape == (2,)
    assert nx.random_split(KEY, {}).named_shape == {}


def test_masks():
    causal = nx.causal_mask({"query": 3, "key": 4}, offset=1).unwrap("query", "key")
    np.testing.assert_array_equal(causal, np.tril(np.ones((3, 4), bool), 1))
    band = nx.band_mask({"query": 4, "key": 4}, before=1, after=0).unwrap("query", "key")
    expected = np.tril(np.ones((4, 4), bool)) & np.triu(np.ones((4, 4), bool), -1)
    np.testing.assert_array_equal(band, expected)
    assert nx.band_mask({"query": 2, "key": 2}).unwrap("query", "key").all()
    ragged = nx.causal_mask({"query": 1, "key": 3}, offset=nx.wrap([0, 2], "batch"))
    np.testing.assert_array_equal(
        ragged.untag_prefix("batch", "query", "key").unwrap()[:, 0],
        [[True, False, False], [True, True, True]],
    )
