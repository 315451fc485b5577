"""The base of parts of a drawing that have no parts of their own."""

from __future__ import annotations

from typing import Any

from treescope import rendering_parts

__all__ = ["LeafPart"]


class LeafPart(rendering_parts.RenderableTreePart):  # type: ignore[misc]  # untyped base
    """Has no width while its parent is closed, no parts that fold, no marks and no set-up.

    A subclass says how many lines it adds to an open parent, and draws itself as HTML and as text.
    """

    def _compute_collapsed_width(self) -> int:
        return 0

    def _compute_layout_marks_in_this_part(self) -> frozenset[Any]:
        return frozenset()

    def foldables_in_this_part(self) -> tuple[Any, ...]:
        """None."""
        return ()

    def html_setup_parts(self, context: Any, /) -> set[Any]:
        """None."""
        del context
        return set()
