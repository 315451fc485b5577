"""Colours for display, as treescope has them (an alias module of Penzai)."""

from treescope.formatting_util import color_from_string as color_from_string
from treescope.formatting_util import oklch_color as oklch_color

__all__ = ["color_from_string", "oklch_color"]
