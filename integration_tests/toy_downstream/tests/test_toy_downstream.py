"""Runs where only toy-downstream, pz-core and jax are installed (`./hatchw run downstream:test`)."""

import importlib.util
import sys

import pytest
import toy_downstream


def test_selectors_edit_a_tree_of_ours():
    tree = {"first": toy_downstream.Layer(3, 0.5), "rest": [toy_downstream.Layer(2, 1.0), 7]}
    halved = toy_downstream.halve_rates(tree)
    assert halved == {
        "first": toy_downstream.Layer(3, 0.25),
        "rest": [toy_downstream.Layer(2, 0.5), 7],
    }
    assert tree["first"].rate == 0.5


@pytest.mark.parametrize("name", ["pz_named", "pz_nn", "penzai", "treescope"])
def test_nothing_else_of_ours_came_along(name):
    assert importlib.util.find_spec(name) is None
    assert name not in sys.modules


def test_the_check_can_fail():
    assert importlib.util.find_spec("pz_core") is not None
