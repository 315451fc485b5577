"""Methods that speak of names: thin forms of the functions of the same name.

A mixin of `NamedArrayBase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pz_named import rearrangement
from pz_named._layout import NamedLeaf

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase
    from pz_named.axis_names import AxisName

__all__ = ["NamingMethods"]


class NamingMethods(NamedLeaf):
    """Renaming, splitting, merging and adding names."""

    def rename(self: NamedArrayBase, names: Mapping[AxisName, AxisName]) -> NamedArrayBase:  # type: ignore[misc]
        """Gives axes other names; see `rearrangement.rename`."""
        return rearrangement.rename(self, names)

    def split_axis(  # type: ignore[misc]
        self: NamedArrayBase, axis: AxisName, named_shape: Mapping[AxisName, int]
    ) -> NamedArrayBase:
        """Splits one axis into several; see `rearrangement.split_axis`."""
        return rearrangement.split_axis(self, axis, named_shape)

    def merge_axes(  # type: ignore[misc]
        self: NamedArrayBase, axes: Sequence[AxisName], name: AxisName
    ) -> NamedArrayBase:
        """Merges axes into one; see `rearrangement.merge_axes`."""
        return rearrangement.merge_axes(self, axes, name)

    def expand(  # type: ignore[misc]
        self: NamedArrayBase, named_shape: AxisName | Mapping[AxisName, int]
    ) -> NamedArrayBase:
        """Adds names that the array lacks; see `rearrangement.expand`."""
        return rearrangement.expand(self, named_shape)
