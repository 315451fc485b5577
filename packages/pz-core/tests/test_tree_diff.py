"""Diff and patch: what is reported, round trips, errors."""

import dataclasses
import pickle
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from pz_core_trees import Box, KeylessNode, Net, Point, WithInit, array_trees

import pz_core
from pz_core import Parameter, StateVariable, diff, freeze_variables, patch, select
from pz_core.tree_diff import (
    Added,
    ArrayChanged,
    Removed,
    Replaced,
    StaticChanged,
    VariableChanged,
)
from pz_core.tree_patch import PatchError


def linear(name, value):
    return Box({"weight": jnp.full((2, 2), value)}, tag=name)


def blocks(count=4):
    return Net([linear(f"block {i}", float(i)) for i in range(count)], head=linear("head", 9.0))


def assert_same(a, b):
    """Equal structure, leaves, and sharing of variables."""
    assert jax.tree.structure(freeze_variables(a)) == jax.tree.structure(freeze_variables(b))
    for x, y in zip(
        jax.tree.leaves(freeze_variables(a)), jax.tree.leaves(freeze_variables(b)), strict=True
    ):
        assert type(x) is type(y)
        np.testing.assert_array_equal(x, y)
    pattern_a, pattern_b = (
        [leaves.index(leaf) for leaf in leaves]
        for leaves in (
            [v for v in jax.tree.leaves(t) if isinstance(v, pz_core.AbstractVariable)]
            for t in (a, b)
        )
    )
    assert pattern_a == pattern_b
    assert diff(a, b).is_empty()


def round_trip(before, after):
    changes = diff(before, after)
    frozen = jax.tree.map(np.asarray, freeze_variables(before))
    patched = patch(before, changes)
    assert_same(patched, after)
    jax.tree.map(np.testing.assert_array_equal, freeze_variables(before), frozen)  # left alone
    assert_same(patch(before, pickle.loads(pickle.dumps(changes))), after)
    assert isinstance(str(changes), str)
    return changes


@pytest.mark.smoke
class TestSurgery:
    def test_a_low_rank_insertion(self):
        before = blocks()

        def low_rank(box):
            return Net([box, jnp.ones((2, 1)), jnp.ones((1, 2))], name="low rank")

        after = select(before).at(lambda n: n.parts[1]).apply(low_rank)
        [change] = round_trip(before, after)
        assert isinstance(change, Replaced)
        assert jax.tree_util.keystr(change.path) == ".parts[1]"
        assert ".parts[1]: Box(" in str(change.describe())
        assert "replaced by Net(" in change.describe()

    def test_a_removed_block(self):
        before = blocks()
        after = select(before).at(lambda n: n.parts[1]).remove_from_parent()
        [change] = round_trip(before, after)
        assert isinstance(change, Removed)
        assert str(diff(before, after)).startswith(
            "1 change:\n  .parts[1]: removed Box(w={'weight': <float32[2,2]>}"
        )

    def test_a_removed_block_of_a_tree_without_shared_nodes(self):
        before, after = blocks(), jax.tree.map(lambda x: x + 0, blocks())
        after = select(after).at(lambda n: n.parts[2]).remove_from_parent()
        assert [type(change) for change in round_trip(before, after)] == [Removed]

    def test_inserted_blocks(self):
        before = blocks()
        after = select(before).at(lambda n: n.parts).at_children().insert_after(linear("new", 5.0))
        changes = round_trip(before, after)
        assert {type(change) for change in changes} == {Added}
        assert len(changes) == 4

    def test_an_ablated_head(self):
        before = blocks()
        after = (
            select(before).at(lambda n: n.parts[2].w["weight"]).apply(lambda w: w.at[0].set(0.0))
        )
        [change] = round_trip(before, after)
        assert isinstance(change, ArrayChanged)
        assert (change.before_shape, change.before_dtype) == ((2, 2), "float32")
        assert change.max_abs_difference == 2.0
        assert change.describe() == (
            ".parts[2].w['weight']: float32[2,2] changed, largest absolute difference 2"
        )

    def test_a_changed_static_field(self):
        before = Net([WithInit(1), Box(2)])
        after = (
            select(before)
            .at(lambda n: n.parts[0])
            .apply(lambda b: WithInit.from_attributes(**{**b.attributes_dict(), "tag": "other"}))
        )
        [change] = round_trip(before, after)
        assert isinstance(change, StaticChanged)
        assert change.describe() == ".parts[0]: static field 'tag' changed from 'init' to 'other'"

    def test_everything_at_once(self):
        before = blocks()
        after = select(before).at(lambda n: n.parts[0]).remove_from_parent()
        after = select(after).at(lambda n: n.parts[1].w["weight"]).apply(lambda w: w + 1)
        after = dataclasses.replace(after, name="renamed", head={"now": "a dict"})
        round_trip(before, after)

    def test_no_changes(self):
        changes = diff(blocks(), blocks())
        assert changes.is_empty()
        assert len(changes) == 0
        assert str(changes) == "no changes"
        tree = blocks()
        assert patch(tree, changes) is tree


@pytest.mark.smoke
class TestVariables:
    def test_two_variables_sharing_a_label(self):
        one, two = (Parameter(label="w", value=jnp.full(2, v)) for v in (1.0, 2.0))
        state = StateVariable(jnp.full(2, 1.0), label="w")
        cases = [
            ([one, state], [state, one]),
            ([one, one], [one, two]),
            ([one, two], [one, one]),
            ([one, two], [two, one]),
            ({"a": one, "b": [state]}, {"a": one, "b": [state, one, two], "c": two}),
        ]
        for before, after in cases:
            round_trip(before, after)

    def test_copies_of_variables(self):
        shared = Parameter(label="w", value=jnp.ones(2))
        before = [shared, {"again": shared}, 1]
        after = pickle.loads(pickle.dumps(before))
        assert diff(before, after).is_empty()
        after.append(after[0])
        patched = patch(before, round_trip(before, after))
        assert patched[3] is shared  # the first tree's own, since it did not change
        apart = [shared, {"again": pickle.loads(pickle.dumps(shared))}, 1]
        assert [type(c) for c in round_trip(before, apart)] == [Replaced]

    def test_changed_values(self):
        before = [Parameter(label="w", value=jnp.ones(2)), 1]
        after = pickle.loads(pickle.dumps(before))
        after[0].value = jnp.array([1.0, 4.0])
        [change] = round_trip(before, after)
        assert isinstance(change, VariableChanged)
        assert "[0]: Parameter(label='w') changed: .value: float32[2] changed" in change.describe()
        assert "difference 3" in change.describe()
        assert float(before[0].value[1]) == 1.0
        patched = patch(before, diff(before, after))
        patched[0].value = jnp.zeros(2)
        assert float(after[0].value[1]) == 4.0

    def test_metadata_and_kind(self):
        before = [Parameter(label="w", value=1.0), StateVariable(1.0, label="s")]
        after = [
            Parameter(label="w", value=1.0, metadata={"m": 1}),
            Parameter(label="s", value=1.0),
        ]
        changes = round_trip(before, after)
        assert [type(change) for change in changes] == [VariableChanged, Replaced]


@pytest.mark.smoke
class TestContainersAndLeaves:
    @pytest.mark.parametrize(
        "before, after",
        [
            ({"a": 1, "b": 2}, {"b": 2, "c": 3}),
            ({1: "x"}, {1: "y", 2: "z"}),
            ((1, 2, 3), (3,)),
            ([], [1]),
            ([1], []),
            (Point(1, 2), Point(1, 3)),
            (OrderedDict(a=1), OrderedDict(b=1)),
            (KeylessNode(1), KeylessNode(1, 2)),
            (None, 1),
            (1, 2),
            ("a", "b"),
            (1, 1.0),
            ([[1, 2], [3]], [[1], [2, 3]]),
            (jnp.ones(2), jnp.ones((2, 1))),
            (jnp.ones(2), np.ones(2, np.float32)),
            (jnp.ones(2), jnp.ones(2, jnp.bfloat16)),
            (jnp.array([True]), jnp.array([False])),
            (jnp.zeros((0, 2)), jnp.zeros((0, 3))),
            (np.array([1 + 2j]), np.array([1 + 3j])),
            (jnp.array(np.nan), jnp.array(1.0)),
            ([1, 2, 2, 2], [2, 2, 1, 2]),
        ],
    )
    def test_round_trips(self, before, after):
        assert not round_trip(before, after).is_empty()

    def test_equal_values(self):
        assert diff(
            [float("nan"), jnp.array(np.nan), None], [float("nan"), jnp.array(np.nan), None]
        ).is_empty()

    def test_random_keys(self):
        changes = diff(jax.random.key(0), jax.random.key(1))
        [change] = changes
        assert isinstance(change, ArrayChanged)
        assert (patch(jax.random.key(0), changes) == jax.random.key(1)).all()
        assert diff(jax.random.key(0), jax.random.key(0)).is_empty()

    def test_differences_of_small_types_do_not_overflow(self):
        [change] = diff(np.array([-128], np.int8), np.array([127], np.int8))
        assert change.max_abs_difference == 255.0
        assert diff(np.array(True), np.array(False)).changes[0].max_abs_difference is None

    def test_under_tracing(self):
        @jax.jit
        def f(x):
            assert len(diff([x, 1], [x + 1, 1])) == 1
            assert diff([x], [x]).is_empty()
            return patch([x, 1], diff([x, 1], [x, 2]))

        assert [int(y) for y in f(jnp.array(3))] == [3, 2]


@given(array_trees(), array_trees())
def test_any_two_trees(before, after):
    changes = diff(before, after)
    patched = patch(before, changes)
    assert jax.tree.structure(patched) == jax.tree.structure(after)
    jax.tree.map(np.testing.assert_array_equal, patched, after)
    assert diff(patched, after).is_empty()
    assert changes.is_empty() == diff(after, before).is_empty()


@given(array_trees())
def test_edits_of_any_tree(before):
    after = (
        select(before)
        .at_instances_of((int, np.ndarray))
        .pick_nth_selected(slice(0, 2))
        .set(np.full(3, 7.0))
    )
    changes = diff(before, after)
    assert len(changes) <= 2
    jax.tree.map(np.testing.assert_array_equal, patch(before, changes), after)


@pytest.mark.smoke
class TestErrors:
    @pytest.mark.parametrize(
        "before, after, other, text",
        [
            ([1, [2]], [1, [3]], [1], r"nothing at \[1\]; at root it has a list"),
            ([1], [2], ["x"], r"at \[0\] the diff expects a int, the tree has 'x' \(a str\)"),
            (np.ones(2), np.zeros(2), np.ones(3), r"expects an array float64\[2\]"),
            (Box(1), Box(1, "u"), Net([]), "a struct with the static field 'tag'"),
            ([[1]], [[1, 2]], [3], "a list, tuple or dictionary"),
            ([1, 2], [1], [], r"nothing at \[1\]"),
        ],
    )
    def test_a_diff_of_another_tree(self, before, after, other, text):
        changes = diff(before, after)
        with pytest.raises(PatchError, match=text):
            patch(other, changes)
        patch(before, changes)  # the repair: a tree like the first one

    def test_variables(self):
        before = [Parameter(label="w", value=1.0)]
        with pytest.raises(PatchError, match=r"expects a variable, the tree has a int"):
            patch([3], diff(before, [before[0], before[0]]))
        after = [Parameter(label="w", value=2.0)]
        with pytest.raises(PatchError, match=r"expects a variable, Parameter\(label='w'\)"):
            patch([3], diff(before, after))
        assert float(patch(before, diff(before, after))[0].value) == 2.0
