"""Patterns in which `*` stands for any characters and `?` for any one character.

`fnmatch` also reads brackets, which are ordinary characters in labels such as `blocks[0].query`.
"""

from __future__ import annotations

import re

__all__ = ["compile_wildcards"]


def compile_wildcards(pattern: str) -> re.Pattern[str]:
    """Returns a regular expression that matches the whole of a text."""
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(rf"\A{escaped}\Z", re.DOTALL)
