"""Differences drawn in the tree, exactly as a reader sees them."""

import jax.numpy as jnp
import numpy as np
import pytest
from viz_samples import Chain, Linear, Span, chain, linear

import pz_viz
from pz_core import selectors
from pz_viz.diffs import diff_to_text

RULE = "┄" * 40


@pytest.mark.smoke
def test_each_kind_of_change_is_boxed_and_named():
    before = {"a": Span(1, 2), "b": [1, 2], "c": Span(3, 4), "d": 5, "same": 6}
    after = {"a": Span(1, 2, "s"), "b": [1], "c": Span("x", 4), "d": 5, "e": 7, "same": 6}
    text = diff_to_text(before, after)
    assert (
        text
        == f"""\
#╭{RULE}╮
{{
  'a':
  #╭{RULE}╮
  # unit changed from 'm' to 's':
  Span(lo=1, hi=2, unit='m')
  #╰{RULE}╯
  ,
  'b': [
    1,
    #╭{RULE}╮
    # Removed:
    2
    #╰{RULE}╯
    ,
  ],
  'c': Span(
    lo=
    #╭{RULE}╮
    # Replaced:
    3
    # by:
    'x'
    #╰{RULE}╯
    ,
    hi=4,
    unit='m',
  ),
  'd': 5,
  'same': 6,
}}
# Added as ['e']:
7
#╰{RULE}╯"""
    )


def test_arrays_tell_their_largest_difference():
    before = Span(jnp.zeros(3), jnp.ones(2))
    after = Span(jnp.array([0.0, 0.5, -0.25]), jnp.ones(3))
    text = diff_to_text(before, after)
    assert "# Changed: float32[3] changed, largest absolute difference 0.5" in text
    assert "# Changed: float32[2] became float32[3]" in text


def test_a_changed_parameter_and_an_inserted_layer():
    before = Chain([linear("a"), linear("b")])
    edited = selectors.select(before).at(lambda m: m.sublayers[0]).set(linear("a", value=3.0))
    view = pz_viz.show_diff(before, edited)
    assert "largest absolute difference 2" in view.body
    inserted = Chain([before.sublayers[0], Span(0, 1), before.sublayers[1]])
    assert "# Added as [1]:" in diff_to_text(before, inserted)
    assert "# Added as [1]:" in pz_viz.to_html(pz_viz.show_diff(before, inserted))
    grown = Chain([*before.sublayers, linear("new")])
    assert "Linear(weights=ParameterValue(label='new', value=<NamedArray" in diff_to_text(
        before, grown
    )
    tied = Chain([*before.sublayers, Linear(before.sublayers[0].weights, ("tied",))])
    assert "<Parameter(label='a') of this tree>" in diff_to_text(before, tied)


def test_equal_trees_have_no_changes():
    view = pz_viz.show_diff(Span(1, 2), Span(1, 2))
    assert view.text == "What changed\nno changes"
    assert "#╭" not in diff_to_text(Span(1, 2), Span(1, 2))


def test_a_change_deep_in_a_run_of_siblings_is_drawn():
    before = chain(200)
    edited = (
        selectors.select(before)
        .at_instances_of(Linear)
        .pick_nth_selected(77)
        .apply(lambda layer: Linear(layer.weights, ("other",)))
    )
    text = diff_to_text(before, edited)
    assert "# axes changed from ('features',) to ('other',):" in text
    assert "# … 75 more Linear: [2] … [76]" in text


def test_more_changes_than_can_be_drawn_are_counted():
    before, after = {"x": list(range(300))}, {"x": [-i - 1 for i in range(300)]}
    view = pz_viz.show_diff(before, after)
    assert "100 more changes are not drawn." in view.text
    assert view.body.count("# Replaced:") == 200


def test_numpy_arrays_count_too():
    assert "largest absolute difference 1" in diff_to_text({"a": np.zeros(2)}, {"a": np.ones(2)})
