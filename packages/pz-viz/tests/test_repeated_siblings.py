"""Runs of repeated siblings are drawn at their ends and counted in between."""

import pytest
import treescope
from hypothesis import given
from hypothesis import strategies as st
from viz_samples import Chain, Empty, Span, chain, linear

import pz_viz
from pz_viz.repeated_siblings import TreeLimits, folded_ranges, limited_to


@pytest.mark.smoke
def test_a_long_run_is_counted_in_a_note():
    text = treescope.render_to_text(chain(300))
    assert text.count("Linear(") == 3
    assert "# … 297 more Linear: [2] … [298]" in text
    assert len(text) < 1500


def test_nothing_is_folded_when_asked():
    with pz_viz.folding(None):
        assert treescope.render_to_text(chain(20)).count("Linear(") == 20
    assert treescope.render_to_text(chain(20)).count("Linear(") == 3


def test_short_runs_and_plain_data_are_drawn_whole():
    assert "more" not in treescope.render_to_text(chain(7))
    assert treescope.render_to_text(list(range(100))).count(",") == 100


def test_alternating_layers_fold_as_a_pattern():
    layers = [x for i in range(50) for x in (linear(f"l{i}"), Empty())]
    text = treescope.render_to_text(Chain(layers))
    assert "# … 96 more items (Linear, Empty): [2] … [97]" in text


def test_dicts_fold_by_key():
    text = treescope.render_to_text({f"layer_{i}": Span(i, i) for i in range(30)})
    assert "# … 27 more Span: ['layer_2'] … ['layer_28']" in text


def test_a_container_without_a_pattern_is_bounded():
    # Square-free kinds: no run ever repeats.
    kinds = [Empty(), Span(0, 1), linear("a")]
    layers = [kinds[(i * i + i // 3) % 3] if i % 7 else [] for i in range(500)]
    with limited_to(TreeLimits(run=400, children=30)):
        text = treescope.render_to_text(Chain(layers))
    assert "470 more items" in text


def test_a_folded_one_line_form_has_the_note_too():
    with treescope.using_expansion_strategy(max_height=1, relax_for_only_child=False):
        text = treescope.render_to_text(Chain([Empty()] * 12))
    assert text == "Chain(sublayers=[Empty(), Empty(), <… 9 more Empty: [2] … [10]>, Empty()])"


@given(st.lists(st.sampled_from([int, str, float]), max_size=40), st.integers(4, 12))
def test_ranges_are_disjoint_ordered_and_repeat_what_precedes_them(kinds, limit):
    at = 0
    for start, stop, period in folded_ranges(kinds, limit):
        assert at <= start - max(2, period)  # the head of the run is drawn
        assert start < stop <= len(kinds) - period  # and its last repetition
        assert all(kinds[i] is kinds[i - period] for i in range(start, stop + period))
        at = stop


@pytest.mark.parametrize("limit", [0, 3, -1])
def test_a_limit_that_saves_nothing_is_an_error(limit):
    with pytest.raises(ValueError, match=rf"limit={limit}.*Pass 4, or None"):
        with pz_viz.folding(limit):
            pass
    with pz_viz.folding(4):
        pass
    with pz_viz.folding(None):
        pass


def test_ten_thousand_layers_stay_small():
    model = Chain([Span(i, i) for i in range(10_000)])
    assert len(treescope.render_to_text(model)) < 2_000
