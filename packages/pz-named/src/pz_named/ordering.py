"""Sorting, reversing, shifting, padding and repeating along names.

Example:
    >>> import pz_named as nx
    >>> nx.sort(nx.wrap([3, 1, 2], "row"), "row", descending=True).unwrap("row").tolist()
    [3, 2, 1]
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

from pz_named._arguments import names_in, require_named, single_name
from pz_named._layout import NamedLeaf
from pz_named._packing import names_first, pack
from pz_named._reducing import along_names
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["argsort", "flip", "pad", "repeat", "roll", "sort", "split", "tile"]


def sort(
    x: NamedArrayBase, axis: AxisName, *, descending: bool = False, stable: bool = True
) -> NamedArrayBase:
    """Sorts along a name.

    Args:
      x: The array.
      axis: The name.
      descending: Whether the largest comes first.
      stable: Whether equal values keep their order.

    Returns:
      The sorted array.
    """
    axis = single_name("sort", x, axis)
    return along_names("sort", jnp.sort, x, axis, descending=descending, stable=stable)


def argsort(
    x: NamedArrayBase, axis: AxisName, *, descending: bool = False, stable: bool = True
) -> NamedArrayBase:
    """The positions that sort along a name, for `take_along`; arguments as for `sort`.

    Example:
        >>> import pz_named as nx
        >>> nx.argsort(nx.wrap([3, 1, 2], "row"), "row").unwrap("row").tolist()
        [1, 2, 0]
    """
    axis = single_name("argsort", x, axis)
    return along_names("argsort", jnp.argsort, x, axis, descending=descending, stable=stable)


def flip(
    x: NamedArrayBase, axis: AxisName | tuple[AxisName, ...] | list[AxisName] | None = None
) -> NamedArrayBase:
    """Reverses names; None reverses all of them.

    Example:
        >>> import pz_named as nx
        >>> nx.flip(nx.arange("row", 3), "row").unwrap("row").tolist()
        [2, 1, 0]
    """
    names = names_in("flip", x, axis)
    data, layout = names_first(x)
    return pack(lax.rev(data, [layout.names.index(name) for name in names]), layout.names)


def roll(x: NamedArrayBase, shift: Any, axis: AxisName) -> NamedArrayBase:
    """Shifts values along a name; what leaves at one end enters at the other.

    Args:
      x: The array.
      shift: How far, towards higher positions; may be traced, or a named array (a shift for each
        element of its names).
      axis: The name.

    Returns:
      The shifted array.

    Example:
        >>> import pz_named as nx
        >>> nx.roll(nx.arange("row", 4), 1, "row").unwrap("row").tolist()
        [3, 0, 1, 2]
    """
    axis = single_name("roll", x, axis)
    if isinstance(shift, NamedLeaf):
        rolled: NamedArrayBase = nmap(lambda v, s: jnp.roll(v, s, axis=0))(
            x.untag_prefix(axis), shift
        )
        return rolled.tag_prefix(axis)
    data, layout = names_first(x)
    return pack(jnp.roll(data, shift, axis=layout.names.index(axis)), layout.names)


def pad(
    x: NamedArrayBase,
    widths: Mapping[AxisName, int | tuple[int, int]],
    *,
    mode: str = "constant",
    constant_values: Any = 0,
) -> NamedArrayBase:
    """Adds values at the ends of names.

    Args:
      x: The array.
      widths: How many before and after, by name; one number for both.
      mode: As for `jnp.pad`.
      constant_values: The number that "constant" puts.

    Returns:
      The larger array.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.pad(nx.ones({"row": 2}, int), {"row": (1, 0)}).unwrap("row").tolist()
        [0, 1, 1]
    """
    names = names_in("pad", x, tuple(widths))
    data, layout = names_first(x)
    pairs = [(0, 0)] * data.ndim
    for name in names:
        width = widths[name]
        pair = (width, width) if isinstance(width, int) else (width[0], width[1])
        pairs[layout.names.index(name)] = pair
    options = {"constant_values": constant_values} if mode == "constant" else {}
    return pack(jnp.pad(data, pairs, mode=mode, **options), layout.names)


def tile(x: NamedArrayBase, repetitions: Mapping[AxisName, int]) -> NamedArrayBase:
    """Repeats the array as a whole along names.

    Args:
      x: The array.
      repetitions: How often, by name.

    Returns:
      The larger array.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.tile(nx.arange("row", 2), {"row": 2}).unwrap("row").tolist()
        [0, 1, 0, 1]
    """
    names = names_in("tile", x, tuple(repetitions))
    data, layout = names_first(x)
    counts = [1] * data.ndim
    for name in names:
        counts[layout.names.index(name)] = operator.index(repetitions[name])
    return pack(jnp.tile(data, counts), layout.names)


def repeat(
    x: NamedArrayBase, repeats: Any, axis: AxisName, *, total_repeat_length: int | None = None
) -> NamedArrayBase:
    """Repeats each value along a name.

    Args:
      x: The array.
      repeats: How often: a number, or one number for each position (a list, an array, or a named
        array with the one name `axis`).
      axis: The name.
      total_repeat_length: The size of the result's axis; needed when `repeats` is traced.

    Returns:
      The larger array.

    Raises:
      ValueError: For an unknown name.

    Example:
        >>> import pz_named as nx
        >>> nx.repeat(nx.arange("row", 2), 2, "row").unwrap("row").tolist()
        [0, 0, 1, 1]
    """
    axis = single_name("repeat", x, axis)
    counts: Any = repeats.unwrap(axis) if hasattr(repeats, "unwrap") else repeats
    counts = counts if isinstance(counts, int) else jnp.asarray(counts)
    data, layout = names_first(x)
    place = layout.names.index(axis)
    data = jnp.repeat(data, counts, axis=place, total_repeat_length=total_repeat_length)
    return pack(data, layout.names)


def split(x: NamedArrayBase, axis: AxisName, parts: int | Sequence[int]) -> list[NamedArrayBase]:
    """Cuts an axis into parts.

    Args:
      x: The array.
      axis: The name.
      parts: The number of equal parts, or the size of each part.

    Returns:
      The parts, in order; `concatenate(parts, axis)` joins them.

    Raises:
      ValueError: When the sizes do not add up to that of the axis.

    Example:
        >>> import pz_named as nx
        >>> first, rest = nx.split(nx.arange("row", 5), "row", [2, 3])
        >>> rest.unwrap("row").tolist()
        [2, 3, 4]
    """
    axis = single_name("split", x, axis)
    require_named("split", x)
    size = x.axis_size(axis)
    if isinstance(parts, int):
        sizes = [size // parts] * parts if parts > 0 else []
    else:
        sizes = [operator.index(part) for part in parts]
    if sum(sizes) != size or any(part < 0 for part in sizes):
        raise ValueError(
            f"split: the parts must add up to {size}, the size of axis {axis!r}; parts={parts!r} "
            f"gives {sizes!r}."
        )
    data, layout = names_first(x)
    place = layout.names.index(axis)
    ends = list(itertools.accumulate(sizes))
    return [
        pack(lax.slice_in_dim(data, end - part, end, axis=place), layout.names)
        for part, end in zip(sizes, ends, strict=True)
    ]
