"""What may name an axis.

A name is any hashable value that is no integer: integers mean positions. Names belong to one
array; they carry no size and there is no global registry of them. This follows "Tensor Considered
Harmful" (Rush, 2019) and `xarray`, not frameworks with sized axis objects.

Example:
    >>> from pz_named.axis_names import TmpPosAxisMarker
    >>> TmpPosAxisMarker() == TmpPosAxisMarker()
    False
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeAlias

__all__ = ["AxisName", "TmpPosAxisMarker"]

AxisName: TypeAlias = Hashable
"""Any hashable value that is not an `int` instance (so not a `bool` either)."""


class TmpPosAxisMarker:
    """A temporary name that collides with no other.

    Instances are hashable and equal only to themselves, so a positional axis can be named for a
    while without knowing which names are taken. `nmap` maps such an axis anonymously: no
    collective can address it.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<unnamed axis>"
