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
