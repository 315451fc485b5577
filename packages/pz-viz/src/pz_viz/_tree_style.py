"""The style of every tree: the reader's light or dark colours, and folding from the keyboard.

Treescope draws for a white page and hides its toggles with `display: none`, which takes them out of
the tab order. On our own pages `assets/tree.css` stands in the page's head. In treescope's own
displays, which are frames of their own in a notebook, a part that draws nothing carries it along.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from treescope import rendering_parts
from treescope._internal.parts import part_interface

from pz_viz._leaf_part import LeafPart
from pz_viz.views import asset

__all__ = ["style_the_root", "tree_rule"]


@functools.cache
def tree_rule() -> str:
    """The style rules on one line, without their comments."""
    text = re.sub(r"/\*.*?\*/", "", asset("tree.css"), flags=re.DOTALL)
    return " ".join(text.split())


class _Style(LeafPart):
    """Draws nothing; brings the style rules along."""

    def _compute_newlines_in_expanded_parent(self) -> int:
        return 0

    def html_setup_parts(self, context: Any, /) -> set[Any]:
        del context
        return {part_interface.CSSStyleRule(tree_rule())}

    def render_to_html(self, stream: Any, **options: Any) -> None:
        del stream, options

    def render_to_text(self, stream: Any, **options: Any) -> None:
        del stream, options


_STYLE = _Style()


def style_the_root(node: Any, path: str | None, node_renderer: Any) -> Any:
    """Wrapper hook: puts the style behind the root, where it moves nothing."""
    if path != "":
        return NotImplemented
    drawn = node_renderer(node, path)
    part = rendering_parts.siblings(drawn.renderable, _STYLE)
    return rendering_parts.RenderableAndLineAnnotations(part, drawn.annotations)
