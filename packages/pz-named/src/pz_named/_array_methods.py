"""The other methods of `jax.Array`, on positional axes and vectorised over names.

A mixin of `NamedArrayBase`. Each method takes the arguments of JAX's method of that name; any of
them may be a named array itself, whose names are then matched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp

from pz_named._aligned import apply_elementwise
from pz_named._layout import NamedLeaf
from pz_named._lifted_methods import lift_method
from pz_named._reducing import require_positions
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["ArrayMethods"]


class ArrayMethods(NamedLeaf):
    """Elementwise, shape-changing and selecting methods."""

    def argpartition(self, kth: int, axis: int = -1) -> NamedArrayBase:
        """Positions that partition the values; see `jax.Array.argpartition`."""
        require_positions("argpartition", self, axis)
        # Not the method of jax.Array: that of jax 0.8 looks for its function where it no longer is.
        return cast("NamedArrayBase", nmap(jnp.argpartition)(self, kth, axis=axis))

    def astype(self, dtype: Any, copy: bool = False, device: Any = None) -> NamedArrayBase:
        """Converts the dtype; see `jax.Array.astype`."""
        return lift_method("astype", self, dtype, copy=copy, device=device)

    def choose(self, choices: Any, out: None = None, mode: str = "raise") -> NamedArrayBase:
        """Picks from choices by the integers in this array; see `jax.Array.choose`."""
        return lift_method("choose", self, choices, out=out, mode=mode)

    def clip(self, min: Any = None, max: Any = None) -> NamedArrayBase:
        """Limits the values; see `jax.Array.clip`."""
        return lift_method("clip", self, min=min, max=max)

    def compress(
        self,
        condition: Any,
        axis: Any = None,
        *,
        out: None = None,
        size: int | None = None,
        fill_value: Any = 0,
    ) -> NamedArrayBase:
        """Keeps what a mask marks; see `jax.Array.compress`."""
        require_positions("compress", self, axis)
        return lift_method(
            "compress", self, condition, axis=axis, out=out, size=size, fill_value=fill_value
        )

    def conj(self) -> NamedArrayBase:
        """Complex conjugate; see `jax.Array.conj`."""
        return apply_elementwise(jnp.conjugate, self)

    def conjugate(self) -> NamedArrayBase:
        """Complex conjugate; see `jax.Array.conjugate`."""
        return apply_elementwise(jnp.conjugate, self)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> NamedArrayBase:
        """Diagonal of two positional axes; see `jax.Array.diagonal`."""
        require_positions("diagonal", self, axis1, axis2)
        return lift_method("diagonal", self, offset, axis1, axis2)

    def dot(
        self, b: Any, *, precision: Any = None, preferred_element_type: Any = None
    ) -> NamedArrayBase:
        """Dot product over positional axes; see `jax.Array.dot`."""
        return lift_method(
            "dot", self, b, precision=precision, preferred_element_type=preferred_element_type
        )

    def flatten(self, order: str = "C", *, out_sharding: Any = None) -> NamedArrayBase:
        """All positional axes as one; see `jax.Array.flatten`."""
        return lift_method("flatten", self, order=order, out_sharding=out_sharding)

    def item(self, *args: int) -> NamedArrayBase:
        """The single value of the positional axes; see `jax.Array.item`."""
        return lift_method("item", self, *args)

    def nonzero(
        self, *, fill_value: Any = None, size: int | None = None
    ) -> tuple[NamedArrayBase, ...]:
        """Positions of values that are not zero; see `jax.Array.nonzero`."""
        result: Any = lift_method("nonzero", self, fill_value=fill_value, size=size)
        return tuple(result)

    def ravel(self, order: str = "C", *, out_sharding: Any = None) -> NamedArrayBase:
        """All positional axes as one; see `jax.Array.ravel`."""
        return lift_method("ravel", self, order=order, out_sharding=out_sharding)

    def repeat(
        self,
        repeats: Any,
        axis: Any = None,
        *,
        total_repeat_length: int | None = None,
        out_sharding: Any = None,
    ) -> NamedArrayBase:
        """Repeats each value; see `jax.Array.repeat`."""
        require_positions("repeat", self, axis)
        return lift_method(
            "repeat",
            self,
            repeats,
            axis=axis,
            total_repeat_length=total_repeat_length,
            out_sharding=out_sharding,
        )

    def reshape(self, *args: Any, order: str = "C", out_sharding: Any = None) -> NamedArrayBase:
        """Another shape of the positional axes; see `jax.Array.reshape`."""
        return lift_method("reshape", self, *args, order=order, out_sharding=out_sharding)

    def round(self, decimals: int = 0, out: None = None) -> NamedArrayBase:
        """Rounds; see `jax.Array.round`."""
        return lift_method("round", self, decimals=decimals, out=out)

    def searchsorted(
        self, v: Any, side: str = "left", sorter: Any = None, *, method: str = "scan"
    ) -> NamedArrayBase:
        """Where values would be inserted; see `jax.Array.searchsorted`."""
        return lift_method("searchsorted", self, v, side=side, sorter=sorter, method=method)

    def squeeze(self, axis: Any = None) -> NamedArrayBase:
        """Without positional axes of size 1; see `jax.Array.squeeze`."""
        require_positions("squeeze", self, axis)
        return lift_method("squeeze", self, axis=axis)

    def swapaxes(self, axis1: int, axis2: int) -> NamedArrayBase:
        """Two positional axes exchanged; see `jax.Array.swapaxes`."""
        require_positions("swapaxes", self, axis1, axis2)
        return lift_method("swapaxes", self, axis1, axis2)

    def take(
        self,
        indices: Any,
        axis: Any = None,
        out: None = None,
        mode: Any = None,
        unique_indices: bool = False,
        indices_are_sorted: bool = False,
        fill_value: Any = None,
    ) -> NamedArrayBase:
        """Values at positions; see `jax.Array.take`."""
        require_positions("take", self, axis)
        return lift_method(
            "take",
            self,
            indices,
            axis=axis,
            out=out,
            mode=mode,
            unique_indices=unique_indices,
            indices_are_sorted=indices_are_sorted,
            fill_value=fill_value,
        )

    def trace(
        self, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: None = None
    ) -> NamedArrayBase:
        """Sum of a diagonal; see `jax.Array.trace`."""
        require_positions("trace", self, axis1, axis2)
        return lift_method("trace", self, offset, axis1, axis2, dtype=dtype, out=out)

    def transpose(self, *args: Any) -> NamedArrayBase:
        """Positional axes in another order; see `jax.Array.transpose`."""
        require_positions("transpose", self, *args)
        return lift_method("transpose", self, *args)

    def view(self, dtype: Any = None, type: None = None) -> NamedArrayBase:
        """The bits read as another dtype; see `jax.Array.view`."""
        return lift_method("view", self, dtype=dtype, type=type)

    @property
    def real(self) -> NamedArrayBase:
        """The real part."""
        return apply_elementwise(jnp.real, self)

    @property
    def imag(self) -> NamedArrayBase:
        """The imaginary part."""
        return apply_elementwise(jnp.imag, self)

    @property
    def T(self) -> NamedArrayBase:
        """Positional axes reversed."""
        return self.transpose()

    @property
    def mT(self) -> NamedArrayBase:
        """The last two positional axes exchanged."""
        return self.swapaxes(-2, -1)
