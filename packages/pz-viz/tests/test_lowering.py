"""What our pages assume about treescope's markup."""

import treescope
from treescope._internal.parts import foldable_impl
from viz_samples import Span, chain

from pz_viz import _lowering


def test_treescope_writes_the_copy_handler_that_we_take_out():
    html = treescope.render_to_html(Span(1, [2]), compressed=False)
    assert _lowering._COPY_HANDLER in html
    assert _lowering._COPY_HANDLER not in _lowering.lowered(_lowering.drawn(Span(1, [2]))).body


def test_our_markup_is_treescopes_own():
    part = _lowering.drawn(chain(3))
    ours = _lowering.lowered(part)
    theirs = treescope.lowering.render_to_html_as_root(part)
    inner = ours.body.split(">", 1)[1].removesuffix("</div>")
    for removed, left in ((_lowering._COPY_HANDLER, ""), (_lowering._INPUT_END, ">")):
        assert removed in theirs
        theirs = theirs.replace(removed, left)
    assert inner in theirs
    for rule in ours.style.splitlines():
        assert rule in theirs


def test_class_names_that_our_styles_and_script_use():
    html = treescope.render_to_html(
        {"a": 1, "b": "s", "c": None, "d": Span(1, [2, [3]])}, compressed=False
    )
    for name in (
        "foldable_node_toggle",
        "foldable_node",
        "copybutton",
        "color_number",
        "color_string",
        "color_keyword",
        "treescope_root",
        "roundtrip_mode",
    ):
        assert name in html
    assert "foldable_node_toggle:not(:checked)" in foldable_impl.COLLAPSED_SELECTOR


def test_pictures_are_told_by_their_scripts():
    import numpy as np

    figure = treescope.render_array(np.eye(2))
    assert _lowering.lowered(figure.treescope_part).runs_scripts
    assert not _lowering.lowered(_lowering.drawn(Span(1, 2))).runs_scripts
