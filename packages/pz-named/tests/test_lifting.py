"""`nmap`: what the function sees, the order of names, collectives, nesting."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx

pytestmark = pytest.mark.smoke


def array(*names, sizes=(2, 3, 4)):
    shape = sizes[: len(names)]
    return nx.wrap(jnp.arange(float(np.prod(shape))).reshape(shape), *names)


def test_the_function_sees_positional_axes_only():
    seen = {}

    def look(tree, text, *, number):
        seen.update(shape=tree["k"][0].shape, text=text, number=number)
        return tree["k"][0].sum()

    x = array("a", "b")
    result = nx.nmap(look)({"k": [x.untag("b")]}, "text", number=3)
    assert seen == {"shape": (3,), "text": "text", "number": 3}
    np.testing.assert_array_equal(result.unwrap("a"), x.data_array.sum(1))


def test_names_are_ordered_by_first_sight():
    p, q, r = array("a", "b"), array("b", "c", sizes=(3, 4)), array("d", sizes=(5,))
    result = nx.nmap(lambda x, **rest: x + rest["y"] + rest["w"])(p, y=q, w=r)
    assert list(result.named_shape) == ["a", "b", "d", "c"]  # args, then kwargs alphabetically


def test_every_output_has_every_name():
    total, constant, nothing = nx.nmap(lambda v: (v, 3, None))(array("a"))
    assert constant.named_shape == {"a": 2}
    assert constant.data_array.weak_type
    assert nothing is None
    assert total.named_shape == {"a": 2}


def test_arrays_without_names_arrive_as_they_are():
    data = np.arange(3.0)
    seen = []
    nx.nmap(lambda v: seen.append(v) or 0)(nx.NamedArray(nx.wrap(0).named_axes, data))
    assert seen[0] is data


def test_names_are_jax_axis_names():
    x = array("a", "b")
    centred = nx.nmap(lambda v: v - jax.lax.pmean(v, "a"))(x)
    expected = x.data_array - x.data_array.mean(0)
    np.testing.assert_allclose(centred.unwrap("a", "b"), expected)
    with pytest.raises(NameError, match="unbound axis name"):
        nx.nmap(lambda v: jax.lax.psum(v, "zzz"))(x)


def test_markers_and_odd_names_vectorise():
    marker = nx.TmpPosAxisMarker()
    x = nx.wrap(jnp.ones((2, 3, 4)), marker, ("head", 0), None)
    assert nx.nmap(jnp.sin)(x).named_shape == {marker: 2, ("head", 0): 3, None: 4}


def test_markers_do_not_make_jit_compile_again():
    traced = []

    @jax.jit
    def inner(v):
        traced.append(None)
        return v * 2

    for _ in range(3):
        nx.nmap(inner)(nx.wrap(jnp.ones((2, 3)), nx.TmpPosAxisMarker(), "a"))
    assert len(traced) == 1


def test_the_guard_against_compiling_again_can_fail():
    traced = []

    @jax.jit
    def inner(v):
        traced.append(None)
        return v * 2

    for size in (2, 3):
        nx.nmap(inner)(array("a", sizes=(size,)).untag("a"))
    assert len(traced) == 2


def test_metadata_follows_the_function():
    def double(v, scale=2):
        """Doubles."""
        return v * scale

    lifted = nx.nmap(double)
    assert lifted.__name__ == "double"
    assert lifted.__wrapped__ is double
    assert "Doubles." in lifted.__doc__
    assert list(inspect.signature(lifted).parameters) == ["v", "scale"]
    nx.nmap(functools.partial(double, scale=3))
    nx.nmap(jnp.add)


def test_nested_lifting_and_closures():
    x = array("a", "b")
    outer = nx.nmap(lambda v: nx.nmap(jnp.sum)(nx.wrap(v).tag("b").untag("b")).unwrap())
    np.testing.assert_array_equal(outer(x.untag("b")).unwrap("a"), x.data_array.sum(1))
    captured = nx.nmap(lambda v: (nx.wrap(v) + x.untag("a", "b")).sum().unwrap())(array("a"))
    assert captured.named_shape == {"a": 2}


def test_lifting_composes_with_grad_jit_and_control_flow():
    x = array("a", "b")
    gradient = nx.nmap(jax.grad(lambda v: (v**2).sum()))(x.untag("b"))
    np.testing.assert_allclose(gradient.untag_prefix("a").unwrap(), 2 * x.data_array)
    chosen = nx.nmap(lambda v: jax.lax.cond(v > 2, lambda: v, lambda: -v))(x)
    np.testing.assert_allclose(
        chosen.unwrap("a", "b"), jnp.where(x.data_array > 2, x.data_array, -x.data_array)
    )
    jitted = nx.nmap(jax.jit(jnp.cumsum))(x.untag("b"))
    assert jitted.positional_shape == (3,)


def test_keys_and_empty_axes_pass_through():
    keys = nx.random_split(jax.random.key(0), {"a": 2})
    assert nx.nmap(jax.random.normal)(keys).named_shape == {"a": 2}
    assert nx.nmap(jnp.sin)(nx.zeros({"a": 0, "b": 2})).named_shape == {"a": 0, "b": 2}


def test_numpy_tracers_become_arrays_not_callbacks():
    x = array("a")
    with pytest.raises(jax.errors.TracerArrayConversionError):
        nx.nmap(np.asarray)(x)
