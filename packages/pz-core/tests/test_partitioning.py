"""Partition and combine: the errors and the edges; the round trip is in the properties."""

import jax
import jax.numpy as jnp
import pytest
from pz_core_trees import Box, Net, OwnLayout, StaticOnly

from pz_core import NotInThisPartition, Parameter, combine, select

pytestmark = pytest.mark.smoke

MISSING = NotInThisPartition()


def test_sentinel():
    assert NotInThisPartition() == MISSING
    assert hash(NotInThisPartition()) == hash(MISSING)
    assert jax.tree.leaves(MISSING) == []
    assert MISSING.treescope_color() == "orange"


def test_whole_and_nothing():
    tree = {"a": [1, None]}
    assert select(tree).partition() == (tree, MISSING)
    assert select(tree).at_instances_of(str).partition() == (MISSING, tree)
    assert combine() == MISSING
    assert combine(tree) is tree
    assert combine(tree, MISSING) is tree
    assert combine(MISSING, MISSING) == MISSING


def test_childless_nodes():
    tree = [None, [], 1]
    selected, rest = select(tree).at(lambda t: t[2]).partition()
    assert selected == [MISSING, MISSING, 1]
    assert rest == [None, [], MISSING]
    selected, rest = select(tree).at(lambda t: t[2]).partition(at_leaves=True)
    assert (selected, rest) == ([None, [], 1], [None, [], MISSING])


def test_many_parts():
    parts = [[1, MISSING, MISSING], [MISSING, Box(2), MISSING], MISSING, [MISSING, Box(MISSING), 3]]
    assert combine(*parts) == [1, Box(2), 3]


@pytest.mark.parametrize(
    "a, b, where",
    [
        ([1], [1], r"root\[0\] .* 1 \(a int\) and 1 \(a int\)"),
        ([1], (MISSING,), r"root two .* \(a list\) .* \(a tuple\)"),
        ([MISSING], [MISSING, 1], "root two"),
        ({"a": 1}, {"b": 1}, "root two"),
        (Box(MISSING), Box(MISSING, "u"), "root two .*Box"),
        (Net([1]), Net([2]), r"root\.parts\[0\]"),
        (StaticOnly(1), StaticOnly(2), "root two"),
        (OwnLayout(1, MISSING), OwnLayout(1, 2), r"root\.a"),
    ],
)
def test_conflicts(a, b, where):
    with pytest.raises(ValueError, match=where):
        combine(a, b)


def test_the_advised_repair():
    assert combine([1], [NotInThisPartition()]) == [1]


def test_transforms_and_variables():
    parameter = Parameter(label="w", value=1.0)
    tree = {"w": parameter, "x": jnp.ones(2)}
    arrays, rest = select(tree).at_instances_of(jax.Array).partition()
    assert combine(arrays, rest)["w"] is parameter
    grads = jax.grad(lambda a: combine(a, rest)["x"].sum())(arrays)
    assert grads["x"].tolist() == [1.0, 1.0]
    assert jax.jit(lambda a: combine(a, {"w": MISSING, "x": MISSING}))(arrays)["x"].shape == (2,)
