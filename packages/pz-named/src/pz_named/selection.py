"""Choosing values: by condition, by position along a name, the largest, one-hot codes.

Example:
    >>> import pz_named as nx
    >>> embeddings = nx.ones({"vocabulary": 5, "embed": 3})
    >>> tokens = nx.wrap([1, 4, 2], "token")
    >>> nx.take(embeddings, tokens, "vocabulary").named_shape
    {'embed': 3, 'token': 3}
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from pz_named._aligned import apply_elementwise
from pz_named._arguments import require_named, require_new, single_name
from pz_named._layout import NamedLeaf
from pz_named._packing import names_first, pack
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["compress", "one_hot", "take", "take_along", "top_k", "where"]


def where(condition: Any, x: Any, y: Any) -> NamedArrayBase:
    """`x` where the condition holds and `y` elsewhere, all matched by name.

    Args:
      condition: A mask.
      x: Values where it is true.
      y: Values where it is false. At least one of the three is a named array; others may be
        arrays (positional) or numbers.

    Returns:
      An array with the names of `x`, then those that only `y` and the condition have.

    Raises:
      ValueError: When a name has two sizes.
      TypeError: When none of the three is a named array.

    Example:
        >>> import pz_named as nx
        >>> x = nx.arange("row", 3)
        >>> nx.where(x > 0, x, -1).unwrap("row").tolist()
        [-1, 1, 2]
    """
    if not any(isinstance(value, NamedLeaf) for value in (condition, x, y)):
        raise TypeError(
            "where: one of condition, x and y must be a named array; for plain arrays use "
            "jnp.where."
        )
    return apply_elementwise(_choose, x, y, condition)


def _choose(x: Any, y: Any, condition: Any) -> Any:
    return jnp.where(condition, x, y)


def take(
    x: NamedArrayBase,
    indices: Any,
    axis: AxisName,
    *,
    mode: str | None = None,
    fill_value: Any = None,
) -> NamedArrayBase:
    """Values at positions along a name: `x[{axis: indices}]`.

    Args:
      x: The array.
      indices: Integers. The names of a named array are matched with those of `x` or added; a plain
        array's axes become the first positional axes.
      axis: The name that the indices replace.
      mode: For indices out of range: "clip" (what JAX does by default), "fill", or "promise_in_bounds".
        Without it, those that are known raise.
      fill_value: What "fill" puts.

    Returns:
      The array without `axis`, with what the indices add.

    Raises:
      ValueError: For an unknown name.
      IndexError: For a known index out of range, without `mode`.
    """
    axis = single_name("take", x, axis)
    options = {"mode": mode, "fill_value": fill_value}
    given = {key: value for key, value in options.items() if value is not None}
    return x.at[{axis: indices}].get(**given)


def take_along(
    x: NamedArrayBase, indices: NamedArrayBase, axis: AxisName, *, mode: str | None = None
) -> NamedArrayBase:
    """Values at positions that differ along other names; `indices` has `axis` too.

    Args:
      x: The array.
      indices: Integers with the name `axis`, of any size; other names are matched.
      axis: The name to take along.
      mode: As for `take`.

    Returns:
      An array in which `axis` has the size it has in `indices`.

    Raises:
      ValueError: When either array lacks `axis`.

    Example:
        >>> import pz_named as nx
        >>> x = nx.wrap([[3.0, 1.0, 2.0]], "row", "column")
        >>> nx.take_along(x, nx.argsort(x, "column"), "column").unwrap("row", "column").tolist()
        [[1.0, 2.0, 3.0]]
    """
    single_name("take_along", indices, axis)
    return take(x, indices, axis, mode=mode)


def top_k(x: NamedArrayBase, k: int, axis: AxisName) -> tuple[NamedArrayBase, NamedArrayBase]:
    """The largest values along a name, largest first, and their positions.

    Args:
      x: The array.
      k: How many, from 0 to the size of the axis.
      axis: The name.

    Returns:
      Values and int32 positions; `axis` keeps its place and has size `k`.

    Raises:
      ValueError: When `k` is out of range.

    Example:
        >>> import pz_named as nx
        >>> values, positions = nx.top_k(nx.wrap([3, 9, 5], "row"), 2, "row")
        >>> positions.unwrap("row").tolist()
        [1, 2]
    """
    axis = single_name("top_k", x, axis)
    data, layout = names_first(x)
    size, place = layout.named_shape[axis], layout.names.index(axis)
    if not 0 <= operator.index(k) <= size:
        raise ValueError(f"top_k: k={k} must be from 0 to {size}, the size of axis {axis!r}.")
    values, positions = lax.top_k(jnp.moveaxis(data, place, -1), operator.index(k))
    return (
        pack(jnp.moveaxis(values, -1, place), layout.names),
        pack(jnp.moveaxis(positions, -1, place), layout.names),
    )


def one_hot(x: NamedArrayBase, axis: AxisName, size: int, dtype: Any = None) -> NamedArrayBase:
    """Codes integers as vectors that are 1 in one place.

    Args:
      x: Integers; those out of range give zeros.
      axis: The new name.
      size: Its size.
      dtype: The dtype; default JAX's float.

    Returns:
      The array with `axis` behind its own names.

    Raises:
      ValueError: When the name is taken.

    Example:
        >>> import pz_named as nx
        >>> nx.one_hot(nx.wrap([2, 0], "token"), "class", 3).unwrap("token", "class").tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    require_named("one_hot", x)
    data, layout = names_first(x)
    require_new("one_hot", (axis,), layout.names)
    count = len(layout.names)
    dtype = jnp.result_type(float) if dtype is None else dtype
    coded = jax.nn.one_hot(data, operator.index(size), axis=count, dtype=dtype)
    return pack(coded, (*layout.names, axis))


def compress(
    condition: NamedArrayBase, x: NamedArrayBase, axis: AxisName, *, size: int, fill_value: Any = 0
) -> NamedArrayBase:
    """Moves what a mask marks to the front of an axis of fixed size.

    Args:
      condition: A mask with the name `axis`; its other names are matched.
      x: The array.
      axis: The name along which values are kept or dropped.
      size: The size of the axis in the result; it makes the shape known under `jit`.
      fill_value: What fills it when fewer values are marked. When more are, the last are dropped.

    Returns:
      An array with `axis` of that size, in front of its positional axes.

    Raises:
      ValueError: When either array lacks `axis`.

    Example:
        >>> import pz_named as nx
        >>> x = nx.arange("row", 5)
        >>> nx.compress(x > 2, x, "row", size=3, fill_value=-1).unwrap("row").tolist()
        [3, 4, -1]
    """
    axis = single_name("compress", x, axis)
    single_name("compress", condition, axis)

    def keep(mask: Any, values: Any) -> Any:
        # Not jnp.compress: it refuses a size beyond that of the axis.
        if values.shape[0] == 0:
            return jnp.full((size, *values.shape[1:]), fill_value, values.dtype)
        (places,) = jnp.nonzero(mask, size=size, fill_value=values.shape[0])
        return jnp.take(values, places, axis=0, mode="fill", fill_value=fill_value)

    kept: NamedArrayBase = nmap(keep)(condition.untag_prefix(axis), x.untag_prefix(axis))
    return kept.tag_prefix(axis)
