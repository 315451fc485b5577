"""Folding from the keyboard in treescope's own displays.

Treescope hides its toggles with `display: none`, which takes them out of the tab order. This part
draws nothing; it carries a style rule that brings them back, for the whole of the tree around it.
"""

from __future__ import annotations

from typing import Any

from treescope import rendering_parts
from treescope._internal.parts import part_interface

__all__ = ["KEYBOARD_FOLDING"]

_CLOSED = ".foldable_node:has(>label>.foldable_node_toggle:not(:checked))"

_RULE = f"""
.foldable_node>label>.foldable_node_toggle {{
display: inline-block; appearance: none; position: absolute; left: -1.25ch; top: 0;
width: 1.25ch; height: 1.25em; margin: 0; cursor: pointer; z-index: 2; }}
{_CLOSED} .foldable_node>label>.foldable_node_toggle {{ display: none; }}
label:has(>.foldable_node_toggle:focus-visible) {{ outline: 2px solid #0b57d0; outline-offset: 1px; }}
"""


class _KeyboardFolding(rendering_parts.RenderableTreePart):  # type: ignore[misc]  # untyped base
    def _compute_collapsed_width(self) -> int:
        return 0

    def _compute_newlines_in_expanded_parent(self) -> int:
        return 0

    def _compute_layout_marks_in_this_part(self) -> frozenset[Any]:
        return frozenset()

    def foldables_in_this_part(self) -> tuple[Any, ...]:
        return ()

    def html_setup_parts(self, context: Any, /) -> set[Any]:
        del context
        return {part_interface.CSSStyleRule(" ".join(_RULE.split()))}

    def render_to_html(self, stream: Any, **options: Any) -> None:
        del stream, options

    def render_to_text(self, stream: Any, **options: Any) -> None:
        del stream, options


KEYBOARD_FOLDING = _KeyboardFolding()
