"""Axes of any array, named or positional, found by name and brought into an order.

The views ask for axes by role (query, key, block, position, …); here a role becomes an axis of the
data, and the data is transposed on its device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pz_viz._markup import visible
from pz_viz.host_copies import HostCopyError, array_of, unreadable_reason

__all__ = ["Axis", "arranged", "axes_of", "find_axis"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of an array.

    Attributes:
      key: Its name, or its logical position as an int.
      size: Its size.
      data_axis: Where it lies in the data array.
      is_named: Whether `key` is a name.
    """

    key: Hashable
    size: int
    data_axis: int
    is_named: bool

    @property
    def label(self) -> str:
        """How the axis is printed."""
        return visible(str(self.key)) if self.is_named else f"axis{self.key}"


def axes_of(array: Any, default_names: Sequence[str] = ()) -> list[Axis]:
    """The axes in the order in which a reader thinks of them: named ones first, as listed.

    Args:
      array: A named array, or anything with a shape.
      default_names: Names for the last axes of an array without names, in order.

    Returns:
      One entry per axis of the data.
    """
    if hasattr(array, "as_namedarrayview"):
        view = array.as_namedarrayview()
        shape = view.data_array.shape
        named = [
            Axis(name, shape[view.data_axis_for_name[name]], view.data_axis_for_name[name], True)
            for name in array.named_shape
        ]
        positional = [
            Axis(i, shape[at], at, False) for i, at in enumerate(view.data_axis_for_logical_axis)
        ]
        return named + positional
    shape = np.shape(array)
    names = list(default_names[-len(shape) :]) if shape else []
    unnamed = len(shape) - len(names)
    return [
        Axis(i, n, i, False) if i < unnamed else Axis(names[i - unnamed], n, i, True)
        for i, n in enumerate(shape)
    ]


def find_axis(
    axes: Iterable[Axis], wanted: Hashable | None, usual: Sequence[str], argument: str
) -> Axis | None:
    """The axis that an argument names, or else the first that bears a usual name.

    Args:
      axes: The axes still free.
      wanted: What the caller passed; None leaves the choice to `usual`.
      usual: Usual names of this role, best first.
      argument: The caller's argument, for errors.

    Returns:
      The axis, or None if none was asked for and none has a usual name.

    Raises:
      ValueError: If the caller named an axis that the array does not have.
    """
    by_key = {axis.key: axis for axis in axes}
    if wanted is not None:
        if wanted in by_key:
            return by_key[wanted]
        known = ", ".join(repr(key) for key in by_key) or "none"
        raise ValueError(
            f"{argument}={wanted!r}: the array has no such axis (or it already has another role). "
            f"Its free axes: {known}."
        )
    return next((by_key[name] for name in usual if name in by_key), None)


def arranged(array: Any, order: Sequence[Axis], what: str) -> Any:
    """The data with its axes in the given order, on its device.

    Raises:
      HostCopyError: If the data cannot be read.
    """
    data = array.as_namedarrayview().data_array if hasattr(array, "named_shape") else array
    if isinstance(data, (list, tuple)):
        data = np.asarray(data)
    reason = unreadable_reason(array_of(data))
    if reason is not None:
        raise HostCopyError(
            f"{what}: a view shows values, and this array has none to read ({reason}). "
            "Pass a computed array, from outside of jax.jit."
        )
    permutation = tuple(axis.data_axis for axis in order)
    if permutation == tuple(range(len(permutation))):
        return data
    return (np if isinstance(data, np.ndarray) else jnp).transpose(data, permutation)
