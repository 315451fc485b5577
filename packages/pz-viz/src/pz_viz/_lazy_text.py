"""Text that is made only where it shows.

An array inside a closed node is drawn in HTML, where a reader may open the node, and never in
plain text. Printing its values is the costliest part of drawing it, so plain text does without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from treescope import rendering_parts

from pz_viz._leaf_part import LeafPart

__all__ = ["LazyText"]


class LazyText(LeafPart):
    """A leaf that stands in an open node only; its height counts as one line until it is drawn."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make

    @functools.cached_property
    def _part(self) -> Any:
        return rendering_parts.text(self._make())

    def _compute_newlines_in_expanded_parent(self) -> int:
        return 1

    def render_to_html(self, stream: Any, **options: Any) -> None:
        """Makes the text and writes it."""
        self._part.render_to_html(stream, **options)

    def render_to_text(self, stream: Any, **options: Any) -> None:
        """Makes the text and writes it."""
        self._part.render_to_text(stream, **options)
