"""Reductions and cumulations by axis name.

Longer than other modules since each reduction states its whole contract, with an example.

`axis` is a name or several; None means all names. Positional axes stay, as `nmap` would leave them.
A mask `where=` is matched by name and may have fewer, or more, names than the array.

Example:
    >>> import pz_named as nx
    >>> x = nx.wrap([[1.0, 2.0], [3.0, 5.0]], "batch", "feature")
    >>> nx.sum(x, "feature").unwrap("batch").tolist()
    [3.0, 8.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp

from pz_named._aligned import apply_elementwise
from pz_named._arguments import names_in, single_name
from pz_named._packing import names_first, pack
from pz_named._reducing import all_of, along_names, any_of, count_nonzero_of, reduce_names
from pz_named.axis_names import AxisName

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "var",
]

Axes: TypeAlias = AxisName | tuple[AxisName, ...] | list[AxisName] | None


def _reduce(
    what: str,
    fun: Callable[..., Any],
    x: NamedArrayBase,
    axis: Axes,
    keepdims: bool,
    where: Any,
    **options: Any,
) -> NamedArrayBase:
    given = {key: value for key, value in options.items() if value is not None}
    names = names_in(what, x, axis)
    return reduce_names(what, fun, x, names, keepdims=keepdims, where=where, options=given)


def sum(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    dtype: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The sum over names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      dtype: The dtype to compute in; default JAX's choice.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.sum(x, "column").unwrap("row").tolist()
        [3, 7]
    """
    return _reduce("sum", jnp.sum, x, axis, keepdims, where, dtype=dtype)


def prod(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    dtype: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The product over names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      dtype: The dtype to compute in; default JAX's choice.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.prod(x, "column").unwrap("row").tolist()
        [2, 12]
    """
    return _reduce("prod", jnp.prod, x, axis, keepdims, where, dtype=dtype)


def mean(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    dtype: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The mean over names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      dtype: The dtype to compute in; default JAX's choice.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.mean(x, "column").unwrap("row").tolist()
        [1.5, 3.5]
    """
    return _reduce("mean", jnp.mean, x, axis, keepdims, where, dtype=dtype)


def all(
    x: NamedArrayBase, axis: Axes = None, *, where: Any = None, keepdims: bool = False
) -> NamedArrayBase:
    """Whether all values along names are true.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.all(x, "column").unwrap("row").tolist()
        [True, True]
    """
    return _reduce("all", all_of, x, axis, keepdims, where)


def any(
    x: NamedArrayBase, axis: Axes = None, *, where: Any = None, keepdims: bool = False
) -> NamedArrayBase:
    """Whether any value along names is true.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.any(x, "column").unwrap("row").tolist()
        [True, True]
    """
    return _reduce("any", any_of, x, axis, keepdims, where)


def count_nonzero(
    x: NamedArrayBase, axis: Axes = None, *, where: Any = None, keepdims: bool = False
) -> NamedArrayBase:
    """How many values along names are not zero.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.count_nonzero(x, "column").unwrap("row").tolist()
        [2, 2]
    """
    return _reduce("count_nonzero", count_nonzero_of, x, axis, keepdims, where)


def logsumexp(
    x: NamedArrayBase, axis: Axes = None, *, where: Any = None, keepdims: bool = False
) -> NamedArrayBase:
    """`log(sum(exp(x)))` over names, computed without overflow.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.logsumexp(x, "column").unwrap("row").tolist()
        [2.31326..., 4.31326...]
    """
    return _reduce("logsumexp", jax.nn.logsumexp, x, axis, keepdims, where)


def max(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    initial: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The largest value along names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      initial: A value that takes part as well. With `where` it defaults to the dtype's lowest
        value, which is the result where nothing counts.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name, or an axis of size 0 without `initial`.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.max(x, "column").unwrap("row").tolist()
        [2, 4]
    """
    if where is not None and initial is None:
        initial = _extreme(x.dtype, 0)
    return _reduce("max", jnp.max, x, axis, keepdims, where, initial=initial)


def min(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    initial: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The smallest value along names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      initial: A value that takes part as well. With `where` it defaults to the dtype's highest
        value, which is the result where nothing counts.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name, or an axis of size 0 without `initial`.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.min(x, "column").unwrap("row").tolist()
        [1, 3]
    """
    if where is not None and initial is None:
        initial = _extreme(x.dtype, 1)
    return _reduce("min", jnp.min, x, axis, keepdims, where, initial=initial)


def std(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    ddof: int = 0,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The standard deviation over names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      ddof: What is subtracted from the count in the denominator.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.std(x, "column").unwrap("row").tolist()
        [0.5, 0.5]
    """
    return _reduce("std", jnp.std, x, axis, keepdims, where, ddof=ddof)


def var(
    x: NamedArrayBase,
    axis: Axes = None,
    *,
    ddof: int = 0,
    where: Any = None,
    keepdims: bool = False,
) -> NamedArrayBase:
    """The variance over names.

    Args:
      x: The array.
      axis: Names to reduce; None for all.
      ddof: What is subtracted from the count in the denominator.
      where: What counts, a mask matched by name; default everything.
      keepdims: Whether reduced names stay, with size 1.

    Returns:
      The array without those names.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.var(x, "column").unwrap("row").tolist()
        [0.25, 0.25]
    """
    return _reduce("var", jnp.var, x, axis, keepdims, where, ddof=ddof)


def argmax(x: NamedArrayBase, axis: Axes = None, *, where: Any = None) -> NamedArrayBase:
    """The position of the largest value along names.

    Args:
      x: The array.
      axis: One name or several; None for all.
      where: What counts, a mask matched by name; default everything.

    Returns:
      Positions along the name, usable as `x[{name: positions}]`. For several names, positions in
      their merged axis, the last name varying fastest (as `merge_axes` orders them).

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.argmax(x, "column").unwrap("row").tolist()
        [1, 1]
    """
    return _arg_extreme("argmax", jnp.argmax, x, axis, where, _extreme(x.dtype, 0))


def argmin(x: NamedArrayBase, axis: Axes = None, *, where: Any = None) -> NamedArrayBase:
    """The position of the smallest value along names.

    Args:
      x: The array.
      axis: One name or several; None for all.
      where: What counts, a mask matched by name; default everything.

    Returns:
      Positions along the name, usable as `x[{name: positions}]`. For several names, positions in
      their merged axis, the last name varying fastest (as `merge_axes` orders them).

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[1, 2], [3, 4]], "row", "column")
        >>> nx.argmin(x, "column").unwrap("row").tolist()
        [0, 0]
    """
    return _arg_extreme("argmin", jnp.argmin, x, axis, where, _extreme(x.dtype, 1))


def _extreme(dtype: Any, side: int) -> Any:
    """The lowest (0) or highest (1) value of a dtype."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return bool(side)
    if jnp.issubdtype(dtype, jnp.integer):
        limits: Any = jnp.iinfo  # its constructor has no annotations
        return (limits(dtype).min, limits(dtype).max)[side]
    return (-jnp.inf, jnp.inf)[side]


def _arg_extreme(
    what: str, fun: Callable[..., Any], x: NamedArrayBase, axis: Axes, where: Any, unlikely: Any
) -> NamedArrayBase:
    names = names_in(what, x, axis)
    if where is not None:
        fill = jnp.asarray(unlikely, x.dtype)
        x = apply_elementwise(
            lambda value, other, mask: jnp.where(mask, value, other), x, fill, where
        )
    rest = [name for name in x.named_shape if name not in names]
    data, layout = names_first(x, [*rest, *names])
    count = len(rest) + len(names)
    size = math.prod(data.shape[len(rest) : count])  # -1 would fail beside an axis of size 0
    merged = data.reshape((*data.shape[: len(rest)], size, *data.shape[count:]))
    return pack(fun(merged, axis=len(rest)), [name for name in layout.names if name not in names])


def cumsum(x: NamedArrayBase, axis: AxisName, *, dtype: Any = None) -> NamedArrayBase:
    """The running sum along a name, which stays.

    Example:
        >>> import pz_named as nx
        >>> nx.cumsum(nx.arange("row", 4), "row").unwrap("row").tolist()
        [0, 1, 3, 6]
    """
    return along_names("cumsum", jnp.cumsum, x, single_name("cumsum", x, axis), dtype=dtype)


def cumprod(x: NamedArrayBase, axis: AxisName, *, dtype: Any = None) -> NamedArrayBase:
    """The running product along a name, which stays.

    Example:
        >>> import pz_named as nx
        >>> nx.cumprod(nx.arange("row", 1, 5), "row").unwrap("row").tolist()
        [1, 2, 6, 24]
    """
    return along_names("cumprod", jnp.cumprod, x, single_name("cumprod", x, axis), dtype=dtype)
