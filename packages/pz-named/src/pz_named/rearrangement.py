"""Renaming, splitting, merging and ordering named axes.

`rearrange` does all of it in one pattern, in the manner of einops (Rogozhnikov, 2022), with names
where einops has positions.

Example:
    >>> import pz_named as nx
    >>> image = nx.ones({"height": 4, "width": 6})
    >>> patches = nx.rearrange(
    ...     image, "(height: row y) (width: column x) -> row column (pixel: y x)", y=2, x=3
    ... )
    >>> patches.named_shape
    {'row': 2, 'column': 2, 'pixel': 6}
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax

from pz_named._arguments import names_in, require_named, require_new, single_name
from pz_named._packing import names_first, pack
from pz_named._patterns import Group, parse_pattern
from pz_named.axis_names import AxisName

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["expand", "merge_axes", "rearrange", "rename", "split_axis", "squeeze"]


def rename(x: NamedArrayBase, names: Mapping[AxisName, AxisName]) -> NamedArrayBase:
    """Gives axes other names; never moves data.

    Args:
      x: The array.
      names: New names by old ones. Two names may be exchanged.

    Returns:
      The array with its names in their old places, positional axes last.

    Raises:
      ValueError: For an unknown old name or a new name that is taken.

    Example:
        >>> import pz_named as nx
        >>> nx.rename(nx.ones({"a": 2, "b": 3}), {"a": "row"}).named_shape
        {'row': 2, 'b': 3}
    """
    layout = require_named("rename", x)
    names_in("rename", x, tuple(names))
    kept = [name for name in layout.names if name not in names]
    require_new("rename", tuple(names.values()), kept)
    data, _ = names_first(x)
    return pack(data, [names.get(name, name) for name in layout.names])


def split_axis(
    x: NamedArrayBase, axis: AxisName, named_shape: Mapping[AxisName, int]
) -> NamedArrayBase:
    """Splits one axis into several, the last of which varies fastest.

    Args:
      x: The array.
      axis: The name to split.
      named_shape: Names and sizes of the parts; one size may be -1 and is computed.

    Returns:
      The array with the parts in the place of `axis`.

    Raises:
      ValueError: When the sizes do not multiply to that of `axis`, or a name is taken.

    Example:
        >>> import pz_named as nx
        >>> nx.split_axis(nx.ones({"token": 6}), "token", {"row": 2, "column": -1}).named_shape
        {'row': 2, 'column': 3}
    """
    axis = single_name("split_axis", x, axis)
    data, layout = names_first(x)
    require_new("split_axis", tuple(named_shape), [n for n in layout.names if n != axis])
    size = layout.named_shape[axis]
    sizes = [operator.index(s) for s in named_shape.values()]
    known = math.prod(s for s in sizes if s != -1)
    unknown = sizes.count(-1)
    fits = known * 1 == size if not unknown else known > 0 and size % known == 0
    if unknown > 1 or not fits:
        raise ValueError(
            f"split_axis: sizes must multiply to {size}, the size of {axis!r} (one of them may be "
            f"-1); they are {dict(named_shape)!r}."
        )
    sizes = [size // known if s == -1 else s for s in sizes]
    place = layout.names.index(axis)
    shape = (*data.shape[:place], *sizes, *data.shape[place + 1 :])
    names = [*layout.names[:place], *named_shape, *layout.names[place + 1 :]]
    return pack(jnp.reshape(data, shape), names)


def merge_axes(x: NamedArrayBase, axes: Sequence[AxisName], name: AxisName) -> NamedArrayBase:
    """Merges axes into one, the last of which varies fastest.

    Args:
      x: The array.
      axes: At least one name, slowest first.
      name: The merged axis; may be one of `axes`.

    Returns:
      The array with the merged axis in the place of the first of `axes`.

    Raises:
      ValueError: For an unknown name, no name, or a new name that is taken.

    Example:
        >>> import pz_named as nx
        >>> nx.merge_axes(nx.ones({"a": 2, "b": 3, "c": 4}), ("c", "a"), "ca").named_shape
        {'b': 3, 'ca': 8}
    """
    axes = names_in("merge_axes", x, tuple(axes))
    if not axes:
        raise ValueError("merge_axes: axes is empty; name at least one axis, or use expand.")
    names = x._layout().names
    rest = [n for n in names if n not in axes]
    require_new("merge_axes", (name,), rest)
    place = sum(n not in axes for n in names[: names.index(axes[0])])
    order = [*rest[:place], *axes, *rest[place:]]
    data, _ = names_first(x, order)
    sizes = data.shape
    end = place + len(axes)
    shape = (*sizes[:place], math.prod(sizes[place:end]), *sizes[end:])
    return pack(jnp.reshape(data, shape), [*rest[:place], name, *rest[place:]])


def expand(x: NamedArrayBase, named_shape: AxisName | Mapping[AxisName, int]) -> NamedArrayBase:
    """Adds names that the array lacks.

    Args:
      x: The array.
      named_shape: Sizes of the new names, along which the values repeat; or one name, of size 1.

    Returns:
      The array with the new names first.

    Raises:
      ValueError: For a name that is taken.

    Example:
        >>> import pz_named as nx
        >>> nx.expand(nx.ones({"a": 2}), {"batch": 3}).named_shape
        {'batch': 3, 'a': 2}
    """
    sizes = dict(named_shape) if isinstance(named_shape, Mapping) else {named_shape: 1}
    data, layout = names_first_of("expand", x)
    require_new("expand", tuple(sizes), layout.names)
    shape = (*(operator.index(size) for size in sizes.values()), *data.shape)
    return pack(
        jnp.broadcast_to(lax.expand_dims(data, range(len(sizes))), shape), (*sizes, *layout.names)
    )


def squeeze(
    x: NamedArrayBase, axis: AxisName | tuple[AxisName, ...] | list[AxisName]
) -> NamedArrayBase:
    """Removes names of size 1.

    Raises:
      ValueError: For an unknown name, or one of another size.

    Example:
        >>> import pz_named as nx
        >>> nx.squeeze(nx.ones({"a": 2, "b": 1}), "b").named_shape
        {'a': 2}
    """
    names = names_in("squeeze", x, axis)
    data, layout = names_first(x)
    for name in names:
        if layout.named_shape[name] != 1:
            raise ValueError(
                f"squeeze: axis {name!r} has size {layout.named_shape[name]}; only axes of size 1 "
                "can go. Reduce it, or index it: x[{name: 0}]."
            )
    data = lax.squeeze(data, [layout.names.index(name) for name in names])
    return pack(data, [name for name in layout.names if name not in names])


def names_first_of(what: str, x: Any) -> Any:
    """`names_first` after a check that `x` is a named array."""
    require_named(what, x)
    return names_first(x)


def rearrange(x: NamedArrayBase, pattern: str, /, **sizes: int) -> NamedArrayBase:
    """Splits, merges, renames and orders names by one pattern.

    Grammar, names being words:

        pattern := side "->" side
        side    := (name | group | "...")*
        group   := "(" name ":" name* ")"

    On the left a group splits the axis before the colon into those after it; on the right it merges
    them, the last varying fastest. `...` stands for the names that are not mentioned, in their
    order; it must be on both sides or on none.

    Args:
      x: The array.
      pattern: For example `"(token: row column) embed -> row embed column"`. The left side lists all
        names of the array, in any order.
      **sizes: Sizes of parts; of each split axis one may be left out.

    Returns:
      The array with its names as on the right, in that order, and positional axes last.

    Raises:
      ValueError: When the pattern is malformed, or does not fit the names or sizes of the array.

    Example:
        >>> import pz_named as nx
        >>> x = nx.ones({"token": 6, "embed": 4})
        >>> nx.rearrange(x, "(token: row column) ... -> column row ...", row=2).named_shape
        {'column': 3, 'row': 2, 'embed': 4}
    """
    require_named("rearrange", x)
    left, right = parse_pattern(pattern, [name for name in x.named_shape])
    used = set()
    for group in left:
        if isinstance(group, Group):
            names_in("rearrange", x, group.name)
            parts: dict[AxisName, int] = {name: sizes.get(name, -1) for name in group.parts}
            used |= {name for name in group.parts if name in sizes}
            x = split_axis(x, group.name, parts)
    unused = [name for name in sizes if name not in used]
    if unused:
        raise ValueError(
            f"rearrange: sizes {unused!r} belong to no group on the left of {pattern!r}."
        )
    order: list[AxisName] = []
    for term in right:
        order += term.parts if isinstance(term, Group) else [term]
    data, _ = names_first(x, order)
    shape, names, place = [], [], 0
    for term in right:
        count = len(term.parts) if isinstance(term, Group) else 1
        shape.append(math.prod(data.shape[place : place + count]))
        names.append(term.name if isinstance(term, Group) else term)
        place += count
    return pack(jnp.reshape(data, (*shape, *data.shape[place:])), names)
