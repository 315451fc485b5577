"""Near misses for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near_misses"]


def near_misses(name: object, known: Iterable[str]) -> str:
    """A sentence " Did you mean …?" with what in `known` resembles `name`; may be empty."""
    found = difflib.get_close_matches(str(name), list(known), n=3)
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""
