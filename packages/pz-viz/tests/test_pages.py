"""Pages are valid, self-contained, escaped and bounded."""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest
import treescope
import viz_hostile
from viz_hostile import checked, hostile_views
from viz_samples import HOSTILE, Chain, Span, linear

import pz_viz
from pz_viz._markup import visible


@pytest.mark.smoke
@pytest.mark.parametrize("static", [False, True])
def test_hostile_text_stays_text_in_every_view(static):
    page = pz_viz.report(hostile_views(), title=HOSTILE[0], note=HOSTILE[1], static=static)
    checker = checked(page)
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "\x1b" not in page
    # No script but ours, no handler, no address.
    scripts = checker.tags.count("script")
    data_blocks = sum(a == ("script", "type", "application/json") for a in checker.attributes)
    assert scripts - data_blocks == (0 if static else 1)
    for tag, name, value in checker.attributes:
        assert not name.startswith("on"), (tag, name, value)
        assert name not in ("href", "src") or value.startswith(("#", "data:image/png"))
    assert any(visible(HOSTILE[0]) in text for text in checker.texts)


def test_no_view_is_forgotten():
    source = inspect.getsource(viz_hostile)
    views = [n for n in pz_viz.__all__ if n.endswith("_view") or n.startswith("show_")]
    forgotten = [name for name in [*views, "side_by_side", "summary"] if name not in source]
    assert forgotten == []


@pytest.mark.parametrize("static", [False, True])
def test_a_page_says_that_it_loads_nothing(static):
    page = pz_viz.to_html(Span(1, 2), title="A <title>", static=static)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src &#x27;none&#x27;" in policy
    scripts = "script-src &#x27;none&#x27;" if static else "script-src &#x27;sha256-"
    assert scripts in policy
    assert "unsafe-eval" not in policy
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in page
    assert "<title>A &lt;title&gt;</title>" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)  # names a namespace, loads nothing


def test_a_theme_may_be_forced():
    assert 'data-theme="dark"' in pz_viz.to_html(1, theme="dark")
    assert "data-theme=" not in pz_viz.to_html(1).split("<style>")[0]


def test_pages_are_written_where_asked(tmp_path):
    path = tmp_path / "page.html"
    page = pz_viz.to_html(Span(1, "ü"), path)
    assert path.read_bytes().decode("utf-8") == page
    assert "<title>Span</title>" in page


def test_a_report_has_headings_notes_and_links():
    page = pz_viz.report(
        [
            pz_viz.Section("One", (Span(1, 2), "Some words."), note="What this is."),
            pz_viz.Section("Two", pz_viz.effect_view(np.eye(2))),
            pz_viz.Section("Three", pz_viz.show_token_array(np.arange(2), ["a", "b"])),
        ],
        title="Report",
    )
    texts = checked(page).texts
    for expected in ("One", "Two", "Three", "What this is.", "Some words.", "Report"):
        assert expected in texts
    assert page.count('href="#section-') == 3


def test_a_large_page_is_cut_with_a_note_or_refused():
    model = {f"part_{i}": Span(i, "x" * 100) for i in range(50)}
    whole = pz_viz.to_html(model)
    assert "too large" not in whole
    mixed = [Span(i, "x" * 300) if i * i % 7 % 2 else i for i in range(400)]
    with pz_viz.folding(400):
        full = len(pz_viz.to_html(mixed))
        cut = pz_viz.to_html(mixed, max_bytes=full // 2)
    assert "The page was too large" in cut
    assert "more" in cut
    with pytest.raises(ValueError, match=r"bytes however much is folded, and max_bytes is 100"):
        pz_viz.to_html(model, max_bytes=100)
    assert pz_viz.to_html(model, max_bytes=10_000_000)


def test_array_pictures_need_scripts():
    figure = treescope.render_array(np.eye(3))
    page = pz_viz.to_html(figure)
    assert "unsafe-eval" in page
    with pytest.raises(
        ValueError, match=r"treescope draws pictures of arrays with scripts.*effect_view"
    ):
        pz_viz.to_html(figure, static=True)
    assert pz_viz.to_html(pz_viz.effect_view(np.eye(3)), static=True)


def test_a_view_displays_itself_in_a_frame_of_its_own():
    view = pz_viz.effect_view(np.eye(2), title="<b>")
    frame = view._repr_html_()
    checker = checked(frame)
    assert checker.tags == ["iframe"]
    assert ("iframe", "sandbox", "allow-scripts") in checker.attributes
    srcdoc = next(value for _, name, value in checker.attributes if name == "srcdoc")
    assert "<title>&lt;b&gt;</title>" in srcdoc
    checked(srcdoc)
    assert repr(view) == view.text


def test_static_pages_leave_the_autovisualizer_out():
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        page = pz_viz.to_html(Span(jnp.eye(4), 1), static=True)
    assert "treescope-run-here" not in page


def test_a_report_of_bare_views_is_an_error():
    view = pz_viz.effect_view(np.eye(2))
    with pytest.raises(TypeError, match=r"report: expected sections, got View.*Section"):
        pz_viz.report([view], title="x")
    assert pz_viz.report([pz_viz.Section("Heading", view)], title="x")


def test_views_stand_side_by_side():
    view = pz_viz.side_by_side(
        {"one": pz_viz.effect_view(np.eye(2)), "<two>": pz_viz.summary(Span(1, 2))}, title="Both"
    )
    page = checked(pz_viz.to_html(view))
    assert "<two>" in page.texts
    assert view.text.startswith("[one]\nEffects")
    static = pz_viz.to_html(view, static=True)
    assert "<img" in static
    assert pz_viz.side_by_side({"s": pz_viz.summary(1)}).static_body is None


def test_ten_thousand_layers_make_a_small_page():
    layer = linear("a")
    assert len(pz_viz.to_html(Chain([Span(i, layer) for i in range(10_000)]))) < 100_000
