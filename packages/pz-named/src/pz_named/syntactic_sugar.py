"""`slice[2:]`: the bracket notation of slices, usable where Python has no brackets.

Example:
    >>> import pz_named as nx
    >>> from pz_named import syntactic_sugar
    >>> nx.arange("row", 5)[{"row": syntactic_sugar.slice[2:]}].named_shape
    {'row': 3}
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

__all__ = ["SliceLike", "slice"]

Index = TypeVar("Index")


@dataclasses.dataclass(frozen=True)
class SliceLike:
    """An object whose brackets return what stands in them."""

    def __getitem__(self, index: Index) -> Index:
        return index


slice = SliceLike()
"""Builds slice objects: `slice[1:3]` is the builtin `slice(1, 3)`."""
