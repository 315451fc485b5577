"""Text from strangers, made safe and visible.

Token strings, labels and axis names may hold markup, control characters or characters that turn
the reading direction round. Everything that pz_viz writes into a page passes through `escaped`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping

__all__ = [
    "attributes",
    "css_color_or_none",
    "escaped",
    "number",
    "shaded",
    "shortened",
    "spaced",
    "table",
    "visible",
]

_NAMED_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def visible(text: str) -> str:
    r"""Writes control, bidirectional and other unprintable characters as escapes.

    >>> visible("a\u202eb\n")
    'a\\u202eb\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        ch if ch.isprintable() else _NAMED_ESCAPES.get(ch, ch.encode("unicode_escape").decode())
        for ch in text
    )


def spaced(text: str) -> str:
    """The text on one line, with the spaces at its ends visible.

    >>> spaced(" the")
    '␣the'
    """
    shown = visible(text)
    bare = shown.strip(" ")
    if not bare:
        return "␣" * len(shown)
    lead, tail = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    return "␣" * lead + bare + "␣" * tail


def escaped(text: object) -> str:
    """The text as it may stand in an element or in a quoted attribute."""
    return html.escape(visible(str(text)), quote=True)


def shortened(text: str, width: int) -> str:
    """The text cut to `width` characters, with an ellipsis where it was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def attributes(values: Mapping[str, object]) -> str:
    """` name="value"` for every value that is not None."""
    return "".join(f' {k}="{escaped(v)}"' for k, v in values.items() if v is not None)


def shaded(classes: str, amount: float) -> str:
    """Attributes of a cell that is coloured more strongly the larger `amount`, from 0 to 1, is.

    The colours in `page.css` are such that at 0.705 black and white text are equally readable.
    """
    amount = round(amount, 2)
    deep = " pz-deep" if amount > 0.7 else ""
    return f' class="{classes} pz-shade{deep}" style="--amount:{amount:.2f}"'


def css_color_or_none(color: object) -> str | None:
    """The colour, or None for what cannot be one CSS value (a treescope_color is user code)."""
    if not isinstance(color, str) or not color or any(ch in color for ch in "\"'<>;{}\\\n"):
        return None
    return color


def number(value: float) -> str:
    """A number in three significant digits, short enough for a table cell."""
    value = float(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"


def table(rows: Iterable[Iterable[str]], align: str = "") -> str:
    """A plain-text table; `align` holds one of `<`, `>` per column (default `<`)."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    align = align.ljust(len(widths), "<")
    return "\n".join(
        "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)).rstrip()
        for row in cells
    )
