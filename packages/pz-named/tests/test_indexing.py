"""Indexing: layout of results, joint index arrays, modes, updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
from pz_named.syntactic_sugar import SliceLike
from pz_named.syntactic_sugar import slice as nx_slice

pytestmark = pytest.mark.smoke


def array(**sizes):
    data = jnp.arange(float(np.prod(list(sizes.values())))).reshape(tuple(sizes.values()))
    return nx.wrap(data, *sizes)


def test_sliced_and_new_names_come_behind_untouched_ones():
    x = array(x=2, y=3, z=4, w=5)
    assert list(x[{"n": None, "z": nx_slice[1:]}].named_shape) == ["x", "y", "w", "n", "z"]
    assert list(x[{}].named_shape) == ["x", "y", "z", "w"]


def test_updates_put_sliced_and_removed_names_last():
    assert list(array(a=2, b=3).at[{"a": 0}].set(7).named_shape) == ["b", "a"]


@pytest.mark.parametrize("spell", [3, np.int64(3), np.int32(3), jnp.array(3), nx.wrap(3), -1])
def test_integers_of_every_kind(spell):
    x = array(a=2, b=4)
    np.testing.assert_array_equal(x[{"b": spell}].unwrap("a"), [3, 7])
    np.testing.assert_array_equal(x.untag("b")[spell].unwrap("a"), [3, 7])


def test_integers_do_not_depend_on_history():
    x = array(a=4).untag("a")
    for index in ([1], np.int64(1), 1, np.array([1])):
        assert float(np.ravel(x[index].data_array)[0]) == 1.0


def test_lookup_by_named_indices_is_joint():
    table = array(batch=2, token=4)
    index = nx.wrap(jnp.array([[0, 3], [1, 1]]), "batch", "pick")
    result = table[{"token": index}]
    assert list(result.named_shape) == ["batch", "pick"]
    np.testing.assert_array_equal(result.unwrap("batch", "pick"), [[0, 3], [5, 5]])


def test_an_axis_can_be_permuted_by_itself():
    x = array(a=3, b=2)
    order = nx.wrap(jnp.array([2, 0, 1]), "a")
    np.testing.assert_array_equal(
        x[{"a": order}].unwrap("a", "b"), x.data_array[jnp.array([2, 0, 1])]
    )


def test_positional_index_arrays_come_first():
    x = array(a=3, b=2)
    result = x[{"a": jnp.array([[0, 1]])}]
    assert result.positional_shape == (1, 2)
    assert result.named_shape == {"b": 2}


def test_an_embedding_lookup_is_one_gather():
    table, tokens = array(vocabulary=5, embed=3), nx.wrap(jnp.array([[1, 4]]), "batch", "token")
    jaxpr = jax.make_jaxpr(lambda t, i: t[{"vocabulary": i}])(table, tokens)
    names = [str(e.primitive) for e in jaxpr.eqns]
    assert names.count("gather") == 1
    result = table[{"vocabulary": tokens}]
    assert list(result.named_shape) == ["embed", "batch", "token"]
    np.testing.assert_array_equal(
        result.unwrap("batch", "token", "embed"), table.data_array[tokens.data_array]
    )


def test_modes_are_explicit():
    x = array(a=3)
    assert float(x.at[{"a": 7}].get(mode="clip")) == 2.0
    assert np.isnan(float(x.at[{"a": 7}].get(mode="fill")))
    assert float(x.at[{"a": 7}].get(mode="fill", fill_value=-1.0)) == -1.0
    np.testing.assert_array_equal(x.at[{"a": 7}].set(9.0, mode="drop").unwrap("a"), [0, 1, 2])
    np.testing.assert_array_equal(x.at[{"a": 7}].set(9.0, mode="clip").unwrap("a"), [0, 1, 9])
    both = nx.zeros({"a": 3, "b": 2}).at[{"a": 7, "b": jnp.array([0, 9])}].get(mode="clip")
    assert both.positional_shape == (2,)
    assert float(jax.jit(lambda v, i: v[{"a": i}])(x, 7)) == 2.0  # traced: JAX clamps


def test_masks_that_are_known_index():
    x = array(a=3, b=2)
    mask = np.array([True, False, True])
    positional = x.untag("a")[jnp.array(mask)]
    np.testing.assert_array_equal(positional.untag_prefix("b").unwrap(), x.data_array[mask].T)
    np.testing.assert_array_equal(x[{"a": mask}].untag_prefix("b").unwrap().T, x.data_array[mask])
    both = x.untag("a", "b")[np.array([[True, False], [True, True], [False, False]])]
    np.testing.assert_array_equal(both.data_array, [0, 2, 3])


def test_slices_and_reversals():
    x = array(a=5)
    for cut in (
        slice(1, 4),
        slice(None, None, -1),
        slice(None, None, 2),
        slice(4, 0, -2),
        slice(3, 1),
    ):
        np.testing.assert_array_equal(x[{"a": cut}].unwrap("a"), np.arange(5.0)[cut])
        np.testing.assert_array_equal(x.untag("a")[cut].unwrap(), np.arange(5.0)[cut])
    start = jnp.array(1)  # a captured concrete array may be a bound, again and again
    bounded = jax.jit(lambda v: v[{"a": slice(start, np.int64(3))}])
    for _ in range(2):
        assert bounded(x).named_shape == {"a": 2}


@pytest.mark.parametrize(
    "method, oracle",
    [
        ("set", lambda old, new: new),
        ("add", lambda old, new: old + new),
        ("subtract", lambda old, new: old - new),
        ("sub", lambda old, new: old - new),
        ("multiply", lambda old, new: old * new),
        ("mul", lambda old, new: old * new),
        ("divide", lambda old, new: old / new),
        ("div", lambda old, new: old / new),
        ("power", lambda old, new: old**new),
        ("min", np.minimum),
        ("max", np.maximum),
    ],
)
def test_updates(method, oracle):
    x = array(a=3, b=2)
    expected = np.array(x.data_array)
    expected[1] = oracle(expected[1], 2.0)
    by_name = getattr(x.at[{"a": 1}], method)(2.0)
    np.testing.assert_allclose(by_name.unwrap("a", "b"), expected)
    by_position = getattr(x.untag("a").at[1], method)(2.0)
    np.testing.assert_allclose(by_position.tag("a").unwrap("a", "b"), expected)


def test_apply_takes_a_function():
    x = array(a=3)
    np.testing.assert_allclose(x.at[{"a": 2}].apply(lambda v: -v).unwrap("a"), [0, 1, -2])


def test_repeated_positions_accumulate_and_named_indices_enlarge():
    x = nx.zeros({"f": 3})
    places = jnp.array([0, 0, 2])
    np.testing.assert_array_equal(x.at[{"f": places}].add(1.0).unwrap("f"), [2, 0, 1])
    copies = x.at[{"f": nx.wrap(places, "n")}].set(1.0)
    assert copies.named_shape == {"n": 3, "f": 3}
    assert float(copies.sum(("n", "f"))) == 3


def test_values_match_by_name():
    x = nx.zeros({"a": 2, "b": 3})
    value = nx.wrap(jnp.array([1.0, 2.0]), "b")
    result = x.at[{"b": nx_slice[1:]}].set(value)
    np.testing.assert_array_equal(result.unwrap("a", "b"), [[0, 1, 2], [0, 1, 2]])
    larger = x.at[{"a": 0}].set(nx.arange("n", 4))
    assert larger.named_shape == {"b": 3, "n": 4, "a": 2}
    traced = jax.jit(lambda i: x.at[{"a": i}].set(5.0))(1)
    np.testing.assert_array_equal(traced.unwrap("a", "b"), [[0, 0, 0], [5, 5, 5]])
    introduced = x.at[{"n": None, "a": 0}].add(nx.ones({"n": 1, "b": 3}))
    assert introduced.named_shape == {"b": 3, "a": 2}


def test_iteration_unpacks_the_first_positional_axis():
    first, second = array(a=2, b=3).untag("a")
    np.testing.assert_array_equal(second.unwrap("b"), [3, 4, 5])
    assert first in [first]


def test_slice_singleton():
    assert nx_slice[1:3] == slice(1, 3)
    assert nx_slice[::2, None] == (slice(None, None, 2), None)
    assert SliceLike() == nx_slice
    assert hash(SliceLike()) == hash(nx_slice)
    with pytest.raises(TypeError, match="not callable"):
        nx_slice(1, 2)
    with pytest.raises(AttributeError, match="cannot assign"):
        nx_slice.x = 1
