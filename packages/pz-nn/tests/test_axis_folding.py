import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close

from pz_nn._axis_folding import fold_groups
from pz_nn._contraction import contract_data

SIZES = {"a": 2, "b": 3, "d": 4, "e": 5, "h": 2, "p": 3}


def array(labels, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=[SIZES[label] for label in labels]), jnp.float32)


@pytest.mark.smoke
@pytest.mark.parametrize("weight", ["".join(p) for p in itertools.permutations("dhp")])
@pytest.mark.parametrize(
    "left, result", [("abd", "abhp"), ("ahpd", "ahp"), ("abhp", "abd"), ("dhp", "")]
)
def test_contractions_equal_einsum_in_every_layout(left, result, weight):
    x, w = array(left, 0), array(weight, 1)
    expected = np.einsum(f"{left},{weight}->{result}", np.asarray(x), np.asarray(w))
    assert_close(contract_data(x, tuple(left), w, tuple(weight), tuple(result)), expected)


def test_what_is_folded():
    def fold_groups_of(*labels):
        return fold_groups(*map(tuple, labels))

    assert fold_groups_of("abd", "dhp", "d") is None  # free axes last: XLA reads that
    assert fold_groups_of("abd", "hd", "d") is None  # a matrix either way round
    assert fold_groups_of("abd", "hpd", "d") == ([("a",), ("b",), ("d",)], [("h", "p"), ("d",)])
    assert fold_groups_of("abhp", "dhp", "hp") == (
        [("a",), ("b",), ("h", "p")],
        [("d",), ("h", "p")],
    )
    assert fold_groups_of("abph", "dhp", "hp") is None  # another order in the left operand


def copies(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return text.count(" copy(") + text.count(" transpose(")


def test_weights_are_read_where_they_lie(optimized_programs):
    """One token times a weight {heads, projection, embedding}: no copy, unlike the plain einsum."""
    if jax.default_backend() != "cpu":
        pytest.skip("how XLA lowers a dot differs by backend")
    if jax.__version_info__ < (0, 10):
        pytest.skip("this XLA makes one loop of copy and product, folded or not")
    x, w = jnp.ones((1, 1, 64)), jnp.ones((4, 4, 16, 64))

    def ours(x, w):
        return contract_data(x, tuple("bsd"), w, tuple("kmpd"), tuple("bskmp"))

    assert copies(ours, x, w) == 0
    assert copies(lambda x, w: jnp.einsum("bsd,kmpd->bskmp", x, w), x, w) > 0
