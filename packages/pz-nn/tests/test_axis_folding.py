import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close

from pz_nn import _contraction
from pz_nn._axis_folding import fold_groups
from pz_nn._contraction import contract_data

SIZES = {"a": 2, "b": 3, "d": 4, "e": 5, "h": 2, "p": 3}


def array(labels, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=[SIZES[label] for label in labels]), jnp.float32)


def primitives(function, *arguments):
    jaxpr = jax.make_jaxpr(lambda *args: function(*args))(*arguments)  # traced anew each time
    return [str(equation.primitive) for equation in jaxpr.eqns]


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["".join(p) for p in itertools.permutations("dhp")])
@pytest.mark.parametrize(
    "left, result",
    [
        ("abd", "abhp"),
        ("ahpd", "ahp"),
        ("ahbd", "habp"),
        ("ahbd", "ahbp"),
        ("abhp", "abd"),
        ("dhp", ""),
    ],
)
def test_contractions_equal_einsum_in_every_layout(left, result, weight):
    def ours(x, w):
        return contract_data(x, tuple(left), w, tuple(weight), tuple(result))

    x, w = array(left, 0), array(weight, 1)
    expected = np.einsum(f"{left},{weight}->{result}", np.asarray(x), np.asarray(w))
    assert_close(ours(x, w), expected)  # not folded
    assert_close(jax.jit(ours)(x, w), expected)


def test_what_is_folded():
    def fold_groups_of(*labels):
        return fold_groups(*map(tuple, labels))

    rows = [("a", "b"), ("d",)]
    assert fold_groups_of("ad", "hd", "d") is None  # matrices
    assert fold_groups_of("abd", "hd", "d") == (rows, [("h",), ("d",)])
    assert fold_groups_of("abd", "hpd", "d") == (rows, [("h", "p"), ("d",)])
    assert fold_groups_of("abd", "hdp", "d") == (rows, [("h",), ("d",), ("p",)])
    assert fold_groups_of("abhp", "dhp", "hp") == ([("a", "b"), ("h", "p")], [("d",), ("h", "p")])
    # In another order in the left operand; an axis between; paired axes.
    assert fold_groups_of("aph", "dhp", "hp") is None
    assert fold_groups_of("ahdp", "hpe", "hp") is None
    assert fold_groups_of("abd", "abed", "d") is None
    # Paired axes move to the front, where XLA wants them, if that brings others together.
    moved = [("h",), ("a", "b"), ("d",)]
    assert fold_groups_of("ahbd", "ehd", "d") == (moved, [("e",), ("h",), ("d",)])


def test_only_traced_programs_on_cpus_fold(monkeypatch):
    x, w = array("abd", 0), array("hpd", 1)

    def ours(x, w):
        return contract_data(x, tuple("abd"), w, tuple("hpd"), tuple("abhp"))

    def fails(*_arguments, **_keywords):
        raise AssertionError("folded")

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert primitives(ours, x, w) == ["reshape", "reshape", "dot_general", "reshape"]
    monkeypatch.setattr(_contraction, "fold", fails)
    ours(x, w)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert primitives(ours, x, w) == ["dot_general"]


def copies(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return text.count(" copy(") + text.count(" transpose(")


@pytest.fixture
def new_xla(optimized_programs):
    if jax.default_backend() != "cpu":
        pytest.skip("how XLA lowers a dot differs by backend")
    if jax.__version_info__ < (0, 10):
        pytest.skip("this XLA makes one loop of copy and product, folded or not")


def test_weights_are_read_where_they_lie(new_xla):
    """One token times a weight {heads, projection, embedding}: no copy, unlike the plain einsum."""
    x, w = jnp.ones((1, 1, 64)), jnp.ones((4, 4, 16, 64))

    def ours(x, w):
        return contract_data(x, tuple("bsd"), w, tuple("kmpd"), tuple("bskmp"))

    assert copies(ours, x, w) == 0
    assert copies(lambda x, w: jnp.einsum("bsd,kmpd->bskmp", x, w), x, w) > 0


@pytest.mark.parametrize("weight", ["hpd", "dhp"])
def test_gradients_read_activations_where_they_lie(new_xla, weight):
    x, w = jnp.ones((2, 32, 64)), jnp.ones([{"h": 4, "p": 32, "d": 64}[label] for label in weight])
    upstream = jnp.ones((2, 32, 4, 32))

    def gradients(product):
        return lambda x, w, upstream: jax.vjp(product, x, w)[1](upstream)

    def ours(x, w):
        return contract_data(x, tuple("bsd"), w, tuple(weight), tuple("bshp"))

    def plain(x, w):
        return jnp.einsum(f"bsd,{weight}->bshp", x, w)

    assert copies(gradients(ours), x, w, upstream) == 0
    assert copies(gradients(plain), x, w, upstream) > 0
