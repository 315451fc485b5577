import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_named.named_axes import is_namedarray, nmap, wrap
from pz_toolshed import auto_nmap

pytestmark = pytest.mark.smoke

njnp = auto_nmap.wrap_module(jnp)
njax = auto_nmap.wrap_module(jax)


def test_functions_of_a_module_and_its_submodules_are_lifted():
    a = tm.random_input(b=3, row=4, column=2)
    q, r = njnp.linalg.qr(a.untag("row", "column"))
    want_q, want_r = nmap(jnp.linalg.qr)(a.untag("row", "column"))
    tm.assert_trees_close((q, r), (want_q, want_r))
    v = tm.random_input(column=2)
    got = njnp.einsum("ij,j->i", a.untag("row", "column"), v.untag("column")).tag("row")
    want = jnp.einsum("bij,j->bi", a.unwrap("b", "row", "column"), v.unwrap("column"))
    np.testing.assert_allclose(got.unwrap("b", "row"), want, rtol=1e-6)


def test_upstream_examples():
    np.testing.assert_array_equal(njnp.array([1, 2]).tag("a").unwrap("a"), [1, 2])
    np.testing.assert_allclose(
        njnp.linspace(0.0, 1.0, 5).tag("t").unwrap("t"), jnp.linspace(0.0, 1.0, 5)
    )
    key = tm.key()
    got = njax.random.uniform(key, (2, 3)).tag("x", "y")
    np.testing.assert_array_equal(got.unwrap("x", "y"), jax.random.uniform(key, (2, 3)))
    arr = wrap(jnp.array([3.0, 1.0, 2.0])).tag("v")
    values, indices = njax.lax.top_k(arr.untag("v"), k=2)
    assert values.tag("k").unwrap("k").tolist() == [3.0, 2.0]
    assert indices.tag("k").unwrap("k").tolist() == [0, 2]


def test_classes_and_constants_pass_through_and_functions_keep_their_identity():
    assert njnp.float32 is jnp.float32
    assert njnp.pi == math.pi
    assert njnp.newaxis is None
    assert njnp.sin is njnp.sin
    assert is_namedarray(njnp.sin(wrap(jnp.ones(2)).tag("a")))


def test_completion_equality_and_copy():
    assert "linalg" in dir(njnp)
    assert njnp == auto_nmap.wrap_module(jnp) != njax
    assert copy.copy(njnp) == njnp


def test_errors():
    with pytest.raises(AttributeError, match=r"jax\.config is a .*; .*only functions"):
        njax.config
    with pytest.raises(AttributeError, match=r"no_such_function"):
        njnp.no_such_function
