"""The two representations: tag, untag, order, broadcast, pytree contract."""

import collections
import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
from pz_named import named_axes

pytestmark = pytest.mark.smoke


def array(**sizes):
    count = int(np.prod(list(sizes.values())))
    return nx.wrap(jnp.arange(float(count)).reshape(tuple(sizes.values())), *sizes)


def test_tag_puts_names_in_data_order():
    x = array(a=2, b=3)
    renamed = x.untag("b", "a").tag("q", "p")
    assert isinstance(renamed, nx.NamedArray)
    assert renamed.named_axes == collections.OrderedDict(p=2, q=3)
    assert renamed.data_array is x.data_array


def test_untag_gives_a_view_of_the_same_data():
    x = array(a=2, b=3, c=4)
    view = x.untag("c", "a")
    assert isinstance(view, nx.NamedArrayView)
    assert view.positional_shape == (4, 2)
    assert view.data_axis_for_logical_axis == (2, 0)
    assert view.data_axis_for_name == {"b": 1}
    assert view.data_shape == (2, 3, 4)
    assert view.data_array is x.data_array


def test_untag_without_names_is_a_named_array():
    assert isinstance(array(a=2).untag(), nx.NamedArray)


def test_unwrap_returns_the_leaf_itself_when_nothing_moves():
    x = array(a=2, b=3)
    assert x.unwrap("a", "b") is x.data_array
    np.testing.assert_array_equal(x.unwrap("b", "a"), np.arange(6.0).reshape(2, 3).T)


def test_order_as_and_order_like():
    x = array(a=2, b=3)
    y = x.order_as("b", "a")
    assert list(y.named_axes) == ["b", "a"]
    assert list(y.order_like(x).named_axes) == ["a", "b"]
    view = array(a=2, b=3).untag("b")
    like = array(b=3, a=2).untag("b").order_like(view)
    assert jax.tree_util.tree_structure(like) == jax.tree_util.tree_structure(view)


def test_broadcast_to_adds_names_and_keeps_identity():
    x = array(a=2)
    assert x.broadcast_to((), {"a": 2}) is x
    wide = x.broadcast_to((3,), {"b": 4})
    assert wide.named_shape == {"a": 2, "b": 4}
    assert wide.positional_shape == (3,)
    assert list(wide.data_axis_for_name) == ["a", "b"]


def test_pickle_and_copies_round_trip():
    for x in (array(a=2, b=3), array(a=2, b=3).untag("a")):
        for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
            assert jax.tree_util.tree_structure(other) == jax.tree_util.tree_structure(x)
            np.testing.assert_array_equal(other.data_array, x.data_array)


def test_arrays_are_frozen_and_unhashable():
    x = array(a=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.data_array = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


def test_any_leaf_survives_flattening():
    x = jax.tree_util.tree_map(lambda _: None, array(a=2))
    y = jax.tree_util.tree_map(lambda _: "leaf", array(a=2))
    assert x.named_shape == y.named_shape == {"a": 2}
    assert y.data_array == "leaf"
    with pytest.raises(ValueError, match="data_array must be an array"):
        y.check_valid()


def test_a_tuple_may_be_one_name():
    x = nx.wrap(jnp.ones((2, 3)), ("head", 0), "a")
    for result in (nx.sum(x, ("head", 0)), x.sum(("head", 0)), nx.sum(x, [("head", 0)])):
        assert result.named_shape == {"a": 3}
    assert nx.sum(x, (("head", 0), "a")).named_shape == {}


def test_random_keys_broadcast_and_move():
    keys = nx.random_split(jax.random.key(0), {"a": 2})
    wide = keys.broadcast_to((3,), {"b": 4})
    assert wide.dtype == keys.dtype
    assert wide.positional_shape == (3,)
    assert nx.concatenate([keys, keys], "a").named_shape == {"a": 4}
    assert (keys[{"a": 0}] == keys[{"a": 0}]).unwrap()


def test_methods_of_names():
    x = array(a=2, b=6)
    assert x.rename({"a": "b", "b": "a"}).named_shape == {"b": 2, "a": 6}
    assert (
        x.split_axis("b", {"p": 2, "q": 3}).merge_axes(("p", "q"), "b").named_shape == x.named_shape
    )
    assert x.expand({"c": 2}).named_shape == {"c": 2, "a": 2, "b": 6}


def test_positional_methods_match_numpy():
    x = array(a=2, p=3, q=4).untag("p", "q")
    values = np.asarray(x.data_array)
    checks = {
        "T": (x.T, values.transpose(0, 2, 1)),
        "mT": (x.mT, values.transpose(0, 2, 1)),
        "real": (x.real, values),
        "imag": (x.imag, np.zeros_like(values)),
        "reshape": (x.reshape(2, 6), values.reshape(2, 2, 6)),
        "ravel": (x.ravel(), values.reshape(2, 12)),
        "trace": (x.trace(), np.trace(values, axis1=1, axis2=2)),
        "take": (x.take(jnp.array([1, 0]), axis=0), values[:, [1, 0]]),
        "dot": (x.dot(jnp.ones(4)), values @ np.ones(4)),
        "clip": (
            x.clip(min=nx.wrap(jnp.array([2.0, 20.0]), "a")),
            np.maximum(values, [[[2]], [[20]]]),
        ),
        "searchsorted": (x.ravel().searchsorted(jnp.array([5.0])), [[5], [0]]),
        "argpartition": (x.argpartition(1).max(axis=-1), values.argmax(2)),
        "nonzero": (x.nonzero(size=2)[1], [[1, 2], [0, 1]]),
        "diagonal": (x.diagonal(), np.diagonal(values, axis1=1, axis2=2)),
        "repeat": (x.repeat(2, axis=1), values.repeat(2, 2)),
        "squeeze": (x[None].squeeze(0), values),
        "compress": (x.compress(jnp.array([True, False, True]), axis=0), values[:, [0, 2]]),
        "view": (x.view(jnp.int32), values.view(np.int32)),
        "round": ((x / 10).round(1), (values / 10).round(1)),
        "ptp": (x.ptp(axis=1), np.ptp(values, 2)),
    }
    for name, (result, expected) in checks.items():
        found = result.untag_prefix("a").unwrap()
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_both_modules_offer_the_same_objects():
    assert set(nx.__all__) == set(named_axes.__all__)
    assert all(getattr(nx, name) is getattr(named_axes, name) for name in nx.__all__)


@pytest.mark.parametrize("axis", [None, 1, (0, -1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_quantiles_and_counts_of_positions_match_numpy(axis, keepdims):
    values = np.random.default_rng(0).integers(0, 4, (2, 3, 4)).astype(np.float32)
    x = nx.wrap(values, "a", "p", "q").untag("p", "q")
    axes = {None: (1, 2), 1: 2, (0, -1): (1, 2)}[axis]
    mask = np.array([[True], [False], [True]])  # stretches over q
    checks = {
        "median": (x.median(axis, keepdims), np.median(values, axes, keepdims=keepdims)),
        "quantile": (
            x.quantile(np.float32([0.25, 0.5]), axis, keepdims),
            np.moveaxis(np.quantile(values, [0.25, 0.5], axes, keepdims=keepdims), 0, 1),
        ),
        "count": (
            x.count_nonzero(axis, keepdims, where=mask),
            np.sum((values != 0) & mask, axes, keepdims=keepdims),
        ),
        "logsumexp": (
            x.logsumexp(axis, keepdims),
            np.log(np.exp(values).sum(axes, keepdims=keepdims)),
        ),
        "masked": (
            x.median(where=mask, keepdims=keepdims),
            np.median(values[:, [0, 2]], (1, 2), keepdims=keepdims),
        ),
    }
    for name, (result, expected) in checks.items():
        got = result.untag_prefix("a").unwrap()
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=name)
