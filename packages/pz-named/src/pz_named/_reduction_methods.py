"""Reductions, cumulations and sorts as methods, over positions or names.

A mixin of `NamedArrayBase`. Each method takes the arguments of JAX's method of that name. `axis` is
a position or several (None: all positional axes), or a *name* or several: `x.sum("batch")` reduces
the axis named so. JAX would read the string as a collective over a mapped axis and keep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from pz_named._layout import NamedLeaf
from pz_named._lifted_methods import lift_method
from pz_named._reducing import (
    all_of,
    along_names,
    any_of,
    axis_names_in,
    count_nonzero_of,
    reduce_positions,
    require_positions,
)

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["ReductionMethods"]


def _given(**options: Any) -> dict[str, Any]:
    """The options that are set; so each JAX version is asked only for what it knows."""
    return {key: value for key, value in options.items() if value is not None}


def _has_named(*values: Any) -> bool:
    return any(isinstance(value, NamedLeaf) for value in values)


def _one_name(method: str, x: NamedLeaf, axis: Any) -> Any:
    """The name in `axis` (None when it is a position); several are refused."""
    names = axis_names_in(axis, x)
    if names is None:
        return None
    if len(names) != 1:
        raise ValueError(
            f"{method}: one axis is needed, but axis={axis!r} lists {len(names)}. Merge them first "
            "with merge_axes."
        )
    return names[0]


def _single(fun: Any) -> Any:
    """`fun` with `axis` as a tuple of one, as reductions give it."""
    return lambda data, axis, keepdims: fun(data, axis=axis[0], keepdims=keepdims)


class ReductionMethods(NamedLeaf):
    """Reductions, cumulations and sorts."""

    def all(
        self, axis: Any = None, out: None = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """Whether all values are true; see `jax.Array.all`."""
        return reduce_positions(
            "all", all_of, self, axis, keepdims=keepdims, where=where, options=_given(out=out)
        )

    def any(
        self, axis: Any = None, out: None = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """Whether any value is true; see `jax.Array.any`."""
        return reduce_positions(
            "any", any_of, self, axis, keepdims=keepdims, where=where, options=_given(out=out)
        )

    def max(
        self,
        axis: Any = None,
        out: None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: Any = None,
    ) -> NamedArrayBase:
        """Largest value; see `jax.Array.max`."""
        options = _given(initial=initial, out=out)
        if _has_named(initial):
            require_positions("max with a named initial", self, axis)
            return lift_method("max", self, axis=axis, keepdims=keepdims, where=where, **options)
        return reduce_positions(
            "max", jnp.max, self, axis, keepdims=keepdims, where=where, options=options
        )

    def min(
        self,
        axis: Any = None,
        out: None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: Any = None,
    ) -> NamedArrayBase:
        """Smallest value; see `jax.Array.min`."""
        options = _given(initial=initial, out=out)
        if _has_named(initial):
            require_positions("min with a named initial", self, axis)
            return lift_method("min", self, axis=axis, keepdims=keepdims, where=where, **options)
        return reduce_positions(
            "min", jnp.min, self, axis, keepdims=keepdims, where=where, options=options
        )

    def sum(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: Any = None,
        promote_integers: bool = True,
    ) -> NamedArrayBase:
        """Sum; see `jax.Array.sum`."""
        options = _given(dtype=dtype, initial=initial, promote_integers=promote_integers, out=out)
        if _has_named(initial):
            require_positions("sum with a named initial", self, axis)
            return lift_method("sum", self, axis=axis, keepdims=keepdims, where=where, **options)
        return reduce_positions(
            "sum", jnp.sum, self, axis, keepdims=keepdims, where=where, options=options
        )

    def prod(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
        keepdims: bool = False,
        initial: Any = None,
        where: Any = None,
        promote_integers: bool = True,
    ) -> NamedArrayBase:
        """Product; see `jax.Array.prod`."""
        options = _given(dtype=dtype, initial=initial, promote_integers=promote_integers, out=out)
        if _has_named(initial):
            require_positions("prod with a named initial", self, axis)
            return lift_method("prod", self, axis=axis, keepdims=keepdims, where=where, **options)
        return reduce_positions(
            "prod", jnp.prod, self, axis, keepdims=keepdims, where=where, options=options
        )

    def mean(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
        keepdims: bool = False,
        *,
        where: Any = None,
    ) -> NamedArrayBase:
        """Mean; see `jax.Array.mean`."""
        return reduce_positions(
            "mean",
            jnp.mean,
            self,
            axis,
            keepdims=keepdims,
            where=where,
            options=_given(dtype=dtype, out=out),
        )

    def std(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
        ddof: int = 0,
        keepdims: bool = False,
        *,
        where: Any = None,
        correction: Any = None,
    ) -> NamedArrayBase:
        """Standard deviation; see `jax.Array.std`."""
        return reduce_positions(
            "std",
            jnp.std,
            self,
            axis,
            keepdims=keepdims,
            where=where,
            options=_given(dtype=dtype, ddof=ddof, correction=correction, out=out),
        )

    def var(
        self,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
        ddof: int = 0,
        keepdims: bool = False,
        *,
        where: Any = None,
        correction: Any = None,
    ) -> NamedArrayBase:
        """Variance; see `jax.Array.var`."""
        return reduce_positions(
            "var",
            jnp.var,
            self,
            axis,
            keepdims=keepdims,
            where=where,
            options=_given(dtype=dtype, ddof=ddof, correction=correction, out=out),
        )

    def ptp(self, axis: Any = None, out: None = None, keepdims: bool = False) -> NamedArrayBase:
        """Distance between the largest and the smallest value; see `jax.Array.ptp`."""
        return reduce_positions(
            "ptp", jnp.ptp, self, axis, keepdims=keepdims, options=_given(out=out)
        )

    def count_nonzero(
        self, axis: Any = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """How many values are not zero; see `reductions.count_nonzero`."""
        return reduce_positions(
            "count_nonzero", count_nonzero_of, self, axis, keepdims=keepdims, where=where
        )

    def logsumexp(
        self, axis: Any = None, keepdims: bool = False, *, where: Any = None
    ) -> NamedArrayBase:
        """`log(sum(exp(x)))`, computed without overflow; see `reductions.logsumexp`."""
        return reduce_positions(
            "logsumexp", jax.nn.logsumexp, self, axis, keepdims=keepdims, where=where
        )

    def argmax(
        self, axis: Any = None, out: None = None, keepdims: bool | None = None
    ) -> NamedArrayBase:
        """Position of the largest value; see `jax.Array.argmax`."""
        name = _one_name("argmax", self, axis)
        if name is None:
            return lift_method("argmax", self, axis=axis, out=out, keepdims=keepdims)
        if keepdims:
            return along_names("argmax", jnp.argmax, self, name, keepdims=True)
        return reduce_positions("argmax", _single(jnp.argmax), self, name)

    def argmin(
        self, axis: Any = None, out: None = None, keepdims: bool | None = None
    ) -> NamedArrayBase:
        """Position of the smallest value; see `jax.Array.argmin`."""
        name = _one_name("argmin", self, axis)
        if name is None:
            return lift_method("argmin", self, axis=axis, out=out, keepdims=keepdims)
        if keepdims:
            return along_names("argmin", jnp.argmin, self, name, keepdims=True)
        return reduce_positions("argmin", _single(jnp.argmin), self, name)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: None = None) -> NamedArrayBase:
        """Running sum; see `jax.Array.cumsum`."""
        name = _one_name("cumsum", self, axis)
        if name is None:
            return lift_method("cumsum", self, axis=axis, dtype=dtype, out=out)
        return along_names("cumsum", jnp.cumsum, self, name, **_given(dtype=dtype))

    def cumprod(self, axis: Any = None, dtype: Any = None, out: None = None) -> NamedArrayBase:
        """Running product; see `jax.Array.cumprod`."""
        name = _one_name("cumprod", self, axis)
        if name is None:
            return lift_method("cumprod", self, axis=axis, dtype=dtype, out=out)
        return along_names("cumprod", jnp.cumprod, self, name, **_given(dtype=dtype))

    def sort(
        self,
        axis: Any = -1,
        *,
        kind: None = None,
        order: None = None,
        stable: bool = True,
        descending: bool = False,
    ) -> NamedArrayBase:
        """Sorted values; see `jax.Array.sort`."""
        name = _one_name("sort", self, axis)
        options: dict[str, Any] = {"stable": stable, "descending": descending}
        if name is None:
            return lift_method("sort", self, axis, kind=kind, order=order, **options)
        return along_names("sort", jnp.sort, self, name, **options)

    def argsort(
        self,
        axis: Any = -1,
        *,
        kind: None = None,
        order: None = None,
        stable: bool = True,
        descending: bool = False,
    ) -> NamedArrayBase:
        """Positions that sort the values; see `jax.Array.argsort`."""
        name = _one_name("argsort", self, axis)
        options: dict[str, Any] = {"stable": stable, "descending": descending}
        if name is None:
            return lift_method("argsort", self, axis, kind=kind, order=order, **options)
        return along_names("argsort", jnp.argsort, self, name, **options)
