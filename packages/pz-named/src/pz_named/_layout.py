"""Where the axes of a named array lie in its data: the plain facts every operation plans with.

A `Layout` is interned: equal arrangements share one object while they stay in the cache, so plans
are looked up by identity (see `_aligned` and `lifting`). Making one is also how a named array is
validated; a malformed array has no layout.
"""

from __future__ import annotations

import abc
import difflib
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from jax import export

from pz_named.axis_names import AxisName, TmpPosAxisMarker

__all__ = [
    "Layout",
    "NamedLeaf",
    "axis_positions",
    "is_size",
    "named_shape_text",
    "near_misses",
    "ordered_union",
    "prefix_layout",
    "rule_broken_by_name",
    "view_layout",
]


class Layout:
    """The arrangement of one array's axes.

    Attributes:
      names: Axis names in ascending order of their data axis.
      name_axes: The data axis of each name.
      logical_axes: The data axis of each positional axis.
      shape: The data's shape.
    """

    __slots__ = ("logical_axes", "name_axes", "names", "shape")

    def __init__(
        self,
        names: tuple[AxisName, ...],
        name_axes: tuple[int, ...],
        logical_axes: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.names = names
        self.name_axes = name_axes
        self.logical_axes = logical_axes
        self.shape = shape

    @property
    def named_shape(self) -> dict[AxisName, int]:
        """Sizes by name."""
        return {n: self.shape[a] for n, a in zip(self.names, self.name_axes, strict=True)}

    @property
    def positional_shape(self) -> tuple[int, ...]:
        """Sizes of the positional axes in logical order."""
        return tuple(self.shape[a] for a in self.logical_axes)


class NamedLeaf(abc.ABC):
    """What operations below the array classes need to know of a named array."""

    # NumPy operators then return NotImplemented and ours run reflected; without it a NumPy array
    # on the left builds an object array of named arrays.
    __array_ufunc__: ClassVar[None] = None
    data_array: Any

    @abc.abstractmethod
    def _layout(self) -> Layout:
        """The validated arrangement of axes; `ValueError` for a malformed array."""


def is_size(value: object) -> bool:
    """Whether `value` can be an axis size: an integer, NumPy's included, or a symbolic dimension."""
    if isinstance(value, (int, np.integer)):
        return True
    return bool(export.is_symbolic_dim(cast(Any, value)))


def rule_broken_by_name(name: object) -> str | None:
    """Why `name` cannot name an axis, or None; unhashable names raise `TypeError`."""
    hash(name)
    if isinstance(name, int):
        return (
            f"the axis name {name!r} is an integer; integers are positions, so use a string or "
            "another hashable value"
        )
    return None


@functools.lru_cache(maxsize=8192)
def prefix_layout(axes: tuple[tuple[AxisName, int], ...], shape: tuple[int, ...]) -> Layout:
    """The layout with positional axes first and then the named axes in order.

    Raises:
      ValueError: When names or sizes are unfit, or the sizes are not the end of `shape`.
    """
    for name, size in axes:
        if (rule := rule_broken_by_name(name)) is not None:
            raise ValueError(f"NamedArray: {rule}.")
        if not is_size(size):
            raise ValueError(
                f"NamedArray: the size of axis {name!r} must be an integer; it is {size!r}."
            )
    rank = len(shape) - len(axes)
    sizes = tuple(size for _, size in axes)
    if rank < 0 or sizes != shape[rank:]:
        raise ValueError(
            "NamedArray: the sizes of named_axes must be the trailing part of the data's shape; "
            f"named_axes={dict(axes)!r}, data_array.shape={shape}. If the data gained or lost "
            "axes (under vmap or tree_map), give it leading ones only: "
            ".with_positional_prefix() before, or rebuild with wrap(data).tag(...)."
        )
    return Layout(
        tuple(name for name, _ in axes), tuple(range(rank, len(shape))), tuple(range(rank)), shape
    )


@functools.lru_cache(maxsize=8192)
def view_layout(
    data_shape: tuple[int, ...],
    logical_axes: tuple[int, ...],
    name_axes: tuple[tuple[AxisName, int], ...],
    shape: tuple[int, ...],
) -> Layout:
    """The layout of a view, names in ascending data-axis order.

    Raises:
      ValueError: When the shapes differ or the axes are no permutation.
    """
    if data_shape != shape:
        raise ValueError(
            "NamedArrayView: the data's shape is part of a view and must stay as it was; "
            f"data_shape={data_shape}, data_array.shape={shape}. To map over leading axes use "
            ".with_positional_prefix() before, or nmap."
        )
    used = [*logical_axes, *(axis for _, axis in name_axes)]
    if sorted(used) != list(range(len(data_shape))):
        raise ValueError(
            "NamedArrayView: every data axis must be used exactly once, by a position or a name; "
            f"data_axis_for_logical_axis={logical_axes}, data_axis_for_name={dict(name_axes)!r} "
            f"for {len(data_shape)} data axes."
        )
    for name, _ in name_axes:
        if (rule := rule_broken_by_name(name)) is not None:
            raise ValueError(f"NamedArrayView: {rule}.")
    ordered = sorted(name_axes, key=operator.itemgetter(1))
    return Layout(
        tuple(name for name, _ in ordered),
        tuple(axis for _, axis in ordered),
        tuple(logical_axes),
        shape,
    )


def ordered_union(layouts: Iterable[Layout]) -> dict[AxisName, int] | None:
    """Names in first-seen order with their sizes; None when a name has two sizes."""
    union: dict[AxisName, int] = {}
    for layout in layouts:
        for name, axis in zip(layout.names, layout.name_axes, strict=True):
            if union.setdefault(name, layout.shape[axis]) != layout.shape[axis]:
                return None
    return union


def near_misses(name: object, known: Iterable[AxisName]) -> str:
    """The known names most like `name`, ready to end a message; all of them when none is like it."""
    known = list(known)
    texts = {str(k): k for k in known if not isinstance(k, TmpPosAxisMarker)}
    close = difflib.get_close_matches(str(name), list(texts), n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(texts[text]) for text in close) + "?"
    if not known:
        return "The array has no named axes."
    return "Its names are " + ", ".join(map(repr, known)) + "."


def named_shape_text(shape: Mapping[AxisName, int], positional: Sequence[int] = ()) -> str:
    """`{2, a:3}`-like text for messages: positional sizes, then names with sizes."""
    parts = [str(size) for size in positional] + [f"{name}:{size}" for name, size in shape.items()]
    return "{" + ", ".join(parts) + "}"


def axis_positions(what: str, layout: Layout, names: Sequence[AxisName]) -> tuple[int, ...]:
    """The data axis of each of `names`.

    Args:
      what: The caller, to begin messages with.
      layout: Where the axes lie.
      names: Names that must be known and distinct.

    Raises:
      ValueError: For an unknown or repeated name, with near misses.
    """
    axes = []
    for index, name in enumerate(names):
        if name not in layout.names:
            raise ValueError(
                f"{what}: no axis is named {name!r}; the shape is "
                f"{named_shape_text(layout.named_shape, layout.positional_shape)}. "
                + near_misses(name, layout.names)
            )
        if name in names[:index]:
            raise ValueError(f"{what}: the axis {name!r} is given twice in {tuple(names)!r}.")
        axes.append(layout.name_axes[layout.names.index(name)])
    return tuple(axes)
