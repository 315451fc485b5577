"""Checks of arguments that many operations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pz_named._layout import Layout, NamedLeaf, axis_positions, near_misses, rule_broken_by_name
from pz_named.axis_names import AxisName

__all__ = ["names_in", "require_named", "require_new", "single_name"]


def require_named(what: str, x: Any) -> Layout:
    """The layout of a named array.

    Raises:
      TypeError: When `x` is no named array.
    """
    if not isinstance(x, NamedLeaf):
        raise TypeError(
            f"{what}: a named array is needed; this is {type(x).__name__}. Name its axes first: "
            'wrap(array).tag("...").'
        )
    return x._layout()


def names_in(what: str, x: Any, axis: Any) -> tuple[AxisName, ...]:
    """The names that `axis` lists: one name, a tuple or list of names, or None for all.

    A tuple that is itself a name of the array is that one name.

    Raises:
      TypeError: When `x` is no named array.
      ValueError: For a position, an unknown or a repeated name.
    """
    layout = require_named(what, x)
    if axis is None:
        return layout.names
    if isinstance(axis, tuple) and axis in layout.names:
        return (axis,)
    names = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    for name in names:
        if isinstance(name, int):
            raise ValueError(
                f"{what}: axis={axis!r} is a position, but this function takes names. "
                f"{near_misses(name, layout.names)} For positions use the array's methods, or nmap."
            )
    axis_positions(what, layout, names)
    return names


def single_name(what: str, x: Any, axis: Any) -> AxisName:
    """The one name that `axis` is.

    Raises:
      TypeError: When `x` is no named array.
      ValueError: When `axis` is no known name, or lists several.
    """
    require_named(what, x)
    if axis is None:
        raise ValueError(f"{what}: axis=None is no name; say along which axis.")
    names = names_in(what, x, axis)
    if len(names) != 1:
        raise ValueError(
            f"{what}: one axis is needed; axis={axis!r} lists {len(names)}. Merge them first with "
            "merge_axes."
        )
    return names[0]


def require_new(what: str, names: Sequence[AxisName], taken: Sequence[AxisName]) -> None:
    """Checks names that an operation introduces.

    Raises:
      ValueError: For an integer, a repetition, or a name that is taken.
    """
    for index, name in enumerate(names):
        if (rule := rule_broken_by_name(name)) is not None:
            raise ValueError(f"{what}: {rule}.")
        if name in taken or name in names[:index]:
            raise ValueError(
                f"{what}: the name {name!r} is taken; the array's names are {tuple(taken)!r}, the "
                f"new ones {tuple(names)!r}. Choose another."
            )
