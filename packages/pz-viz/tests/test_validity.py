"""Every page is valid HTML that needs nothing else, by an independent parser and by rules of ours."""

import pytest
from viz_hostile import hostile_views
from viz_samples import HOSTILE, Linear, chain
from viz_validity import problems

import pz_viz
from pz_core import selectors

html5lib = pytest.importorskip("html5lib", reason="html5lib, the parser, is not installed")

GOOD = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>T</title></head>'
    '<body><p id="a">Text.</p></body></html>'
)


@pytest.mark.parametrize("static", [False, True])
def test_a_page_of_every_view_is_valid(static):
    page = pz_viz.report(hostile_views(), title=HOSTILE[0], note=HOSTILE[1], static=static)
    assert problems(page) == []


@pytest.mark.parametrize("static", [False, True])
def test_the_page_of_a_selection_is_valid(static):
    selection = selectors.select(chain(12)).at_instances_of(Linear).pick_nth_selected(1)
    assert problems(pz_viz.to_html(selection, static=static)) == []


def test_the_pages_in_a_notebooks_frames_are_valid():
    for view in hostile_views().values():
        if isinstance(view, pz_viz.View):
            frame = html5lib.parseFragment(view._repr_html_(), namespaceHTMLElements=False)
            assert problems(frame.find("iframe").get("srcdoc")) == []


def test_what_is_wrong_would_be_noticed():
    assert problems(GOOD) == []
    for old, new, said in (
        (' lang="en"', "", "html has no language"),
        ("utf-8", "latin-1", "charset declared"),
        ("<title>T</title>", "<title> </title>", "an empty one"),
        ("Text.", '<span id="a"></span>', "id 'a' appears 2 times"),
        ("Text.", '<a href="#b">b</a>', "leads to #b"),
        ("Text.", '<a href="https://example.org">b</a>', "loads something"),
        ("Text.", '<b onclick="f()">b</b>', "a handler onclick"),
        ("Text.", '<img src="data:image/png;base64,">', "an image without words"),
        ("Text.", '<b style="background: url(//x)">b</b>', "loads a style's url"),
        ("Text.", "<span><div>b</div></span>", "div in ['span']"),
        ("Text.", "<style>b{}</style>", "a style element in the body"),
    ):
        page = GOOD.replace("<p id", "<div id").replace("</p>", "</div>").replace(old, new)
        assert [words for words in problems(page) if said in words], said
    with pytest.raises(html5lib.html5parser.ParseError):
        problems(GOOD.replace("</p>", "</b></p>"))
