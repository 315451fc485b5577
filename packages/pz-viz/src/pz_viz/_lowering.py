"""Treescope parts to markup for a page of ours: the one place that knows treescope's internals.

Treescope wraps its markup in a shadow root that scripts fill in with `new Function`, which a
strict content policy forbids and a reader without scripts never sees. On our own pages the same
markup stands in the document itself: folding is pure CSS there, and works without any script.
`tests/test_lowering.py` pins what is assumed here about treescope.
"""

from __future__ import annotations

import dataclasses
import io
import threading
from typing import Any

import treescope
from treescope import lowering, rendering_parts
from treescope._internal.parts import foldable_impl, part_interface

from pz_viz._tree_style import tree_rule

__all__ = ["LoweredTree", "drawn", "lowered", "represented"]

# Handlers written into attributes, which our policy blocks; the page's script does their work.
_COPY_HANDLER = " onClick='this.getRootNode().host.defns.handle_copy_click(this)'"
_RUN_HERE = "<treescope-run-here>"
_one_thread = threading.RLock()
_INPUT_END = "></input>"  # an end tag that HTML does not have


@dataclasses.dataclass(frozen=True)
class LoweredTree:
    """Markup and the style rules it needs.

    Attributes:
      body: The markup; with `runs_scripts` a fragment of treescope's own.
      style: CSS rules, sorted.
      runs_scripts: Whether the markup holds scripts that need a permissive policy.
    """

    body: str
    style: str
    runs_scripts: bool = False


def _context() -> Any:
    return part_interface.HtmlContextForSetup(
        collapsed_selector=foldable_impl.COLLAPSED_SELECTOR,
        roundtrip_selector=foldable_impl.ROUNDTRIP_SELECTOR,
        abbreviate_selector=foldable_impl.make_abbreviate_selector(
            threshold=treescope.abbreviation_threshold.get(),
            roundtrip_threshold=treescope.roundtrip_abbreviation_threshold.get(),
        ),
    )


def lowered(part: Any, *, roundtrip: bool = False) -> LoweredTree:
    """Markup of a laid-out part.

    Args:
      part: A treescope part.
      roundtrip: Whether it starts in round-trip mode.

    Returns:
      The markup, to stand in a page that holds our script or none.
    """
    stream = io.StringIO()
    part.render_to_html(stream, at_beginning_of_line=True, render_context={})
    body = stream.getvalue().replace(_COPY_HANDLER, "").replace(_INPUT_END, ">")
    if _RUN_HERE in body:  # an array picture or a frame, which only scripts can draw
        fragment = lowering.render_to_html_as_root(part, roundtrip, compressed=True)
        return LoweredTree(fragment, "", runs_scripts=True)
    rules = sorted(
        rule.rule
        for rule in part.html_setup_parts(_context())
        if isinstance(rule, part_interface.CSSStyleRule) and rule.rule != tree_rule()
    )
    classes = "treescope_root roundtrip_mode" if roundtrip else "treescope_root"
    return LoweredTree(
        f'<div class="{classes}" tabindex="0" role="group" aria-label="object">{body}</div>',
        "\n".join(rules) + "\n",
    )


def represented(renderer: Any, value: Any, *, ignore_exceptions: bool) -> Any:
    """Any value as a part, by one thread at a time: treescope keeps its state in globals."""
    with _one_thread:
        return renderer.to_foldable_representation(value, ignore_exceptions=ignore_exceptions)


def drawn(value: Any) -> Any:
    """Any value as a laid-out part, through the active renderer."""
    part = represented(treescope.active_renderer.get(), value, ignore_exceptions=True)
    treescope.active_expansion_strategy.get()(part.renderable)
    return rendering_parts.build_full_line_with_annotations(part)
