"""CSS colours for display, computed without a display library.

Layers offer a colour through `Struct.treescope_color`; these two helpers are all they need for it.

>>> color_from_string("penzai")
'oklch(0.785 0.103 119.586181640625 / 1.0)'
"""

from __future__ import annotations

import hashlib

__all__ = ["color_from_string", "oklch_color"]


def oklch_color(lightness: float, chroma: float, hue: float, alpha: float = 1.0) -> str:
    """Returns the CSS text of a colour in the OkLCh space.

    Args:
      lightness: Perceived lightness, 0 (black) to 1 (white).
      chroma: Distance from grey, 0 to about 0.4.
      hue: Angle in degrees.
      alpha: Opacity, 0 to 1.

    Returns:
      A CSS colour such as `oklch(0.785 0.103 140 / 1.0)`.
    """
    return f"oklch({lightness} {chroma} {hue} / {alpha})"


def color_from_string(
    key_string: str, lightness: float = 0.785, chroma: float = 0.103, alpha: float = 1.0
) -> str:
    """Returns a colour whose hue is a stable hash of a string.

    The same string gives the same colour in every process, so a layer type can be recognised
    across notebooks.

    Args:
      key_string: What to hash, for example `module.ClassName`.
      lightness: See `oklch_color`.
      chroma: See `oklch_color`.
      alpha: See `oklch_color`.

    Returns:
      A CSS colour.
    """
    digest = hashlib.sha256(key_string.encode("utf-8")).digest()
    hue = 360 * int.from_bytes(digest[:2], "little") / 65536
    return oklch_color(lightness, chroma, hue, alpha)
