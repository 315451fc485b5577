"""Quantiles as methods, over positions or names.

A mixin of `NamedArrayBase`. Positions get temporary names, so that one implementation serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp

from pz_named import quantiles
from pz_named._layout import NamedLeaf
from pz_named._packing import pack
from pz_named._reducing import axis_names_in, positions_in
from pz_named.axis_names import TmpPosAxisMarker

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["QuantileMethods"]


class QuantileMethods(NamedLeaf):
    """Median and quantile."""

    def median(
        self, axis: Any = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """The median; see `quantiles.median`.

        `axis` is a position or several (None: all positional axes), or a name or several.
        """
        return self.quantile(0.5, axis, keepdims, where=where)

    def quantile(
        self, q: Any, axis: Any = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """A quantile, linearly interpolated; see `quantiles.quantile`.

        `axis` is a position or several (None: all positional axes), or a name or several.
        """
        x = cast("NamedArrayBase", self)
        names = axis_names_in(axis, x)
        if names is not None:
            return quantiles.quantile(x, q, names, where=where, keepdims=keepdims)
        markers = [TmpPosAxisMarker() for _ in x.positional_shape]
        reduced = [markers[position] for position in positions_in(x._layout(), axis)]
        if where is not None:
            mask: Any = where if isinstance(where, NamedLeaf) else pack(jnp.asarray(where), ())
            where = _tag_last(x, mask, markers)
        result = quantiles.quantile(
            x.tag(*markers), q, tuple(reduced), where=where, keepdims=keepdims
        )
        kept = [marker for marker in markers if keepdims or marker not in reduced]
        of_q = [TmpPosAxisMarker() for _ in result.positional_shape]
        return result.tag(*of_q).untag(*of_q, *kept)


def _tag_last(x: NamedArrayBase, mask: NamedArrayBase, markers: list[Any]) -> NamedArrayBase:
    """The mask with its positional axes named by the last markers, as broadcasting aligns them.

    Raises:
      ValueError: When the mask has more positional axes than `x`.
    """
    shape = mask.positional_shape
    if len(shape) > len(markers):
        raise ValueError(
            f"quantile: where= has more positional axes than the array; positional shapes {shape} "
            f"and {x.positional_shape}. Name its extra axes."
        )
    last = markers[len(markers) - len(shape) :]
    stretched = [size == 1 for size in shape]
    mask = mask[tuple(0 if gone else slice(None) for gone in stretched)]
    return mask.tag(*(m for m, gone in zip(last, stretched, strict=True) if not gone))
