"""Static slices of plain arrays: one `lax.slice` for all axes, where indexing would gather."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax import lax

__all__ = ["Cut", "cut_axes", "cut_for"]


class Cut(NamedTuple):
    """A static index of one axis: a range, and whether the axis is dropped."""

    start: int
    stop: int
    step: int
    drop: bool


def cut_for(entry: int | slice, size: int) -> Cut:
    """The cut that a static index makes in an axis of this size."""
    if isinstance(entry, slice):
        start, stop, step = entry.indices(size)
        return Cut(start, stop, step, False)
    start = entry + size if entry < 0 else entry
    return Cut(start, start + 1, 1, True)


def cut_axes(data: Any, cuts: Mapping[int, Cut]) -> Any:
    """`data` cut along the given data axes: one slice, and a reversal for negative steps."""
    starts, limits, steps = [0] * data.ndim, list(data.shape), [1] * data.ndim
    reverse = []
    for axis, cut in cuts.items():
        length = len(range(cut.start, cut.stop, cut.step))
        first = cut.start if cut.step > 0 else cut.start + (length - 1) * cut.step
        steps[axis] = abs(cut.step)
        starts[axis] = first if length else 0
        limits[axis] = first + (length - 1) * abs(cut.step) + 1 if length else 0
        if cut.step < 0:
            reverse.append(axis)
    if starts != [0] * data.ndim or limits != list(data.shape) or steps != [1] * data.ndim:
        data = lax.slice(data, starts, limits, None if set(steps) <= {1} else steps)
    if reverse:
        data = lax.rev(data, reverse)
    dropped = [axis for axis, cut in cuts.items() if cut.drop]
    return lax.squeeze(data, dropped) if dropped else data
