"""Joining arrays along a name, and taking one apart.

Example:
    >>> import pz_named as nx
    >>> nx.concatenate([nx.ones({"token": 2}), nx.zeros({"token": 3})], "token").named_shape
    {'token': 5}
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from pz_named._layout import named_shape_text, near_misses, rule_broken_by_name
from pz_named.arrays import NamedArray, NamedArrayBase, NamedArrayView
from pz_named.axis_names import AxisName

__all__ = ["concatenate", "stack", "unstack"]


def _axes_in_data_order(array: NamedArrayBase) -> tuple[list[AxisName], dict[AxisName, int]]:
    """Keys of the data axes, in order, with sizes; the key of positional axis i is the integer i."""
    layout = array._layout()
    keys: list[Any] = [None] * len(layout.shape)
    for name, axis in zip(layout.names, layout.name_axes, strict=True):
        keys[axis] = name
    for position, axis in enumerate(layout.logical_axes):
        keys[axis] = position
    return keys, dict(zip(keys, layout.shape, strict=True))


def _checked(what: str, arrays: Sequence[NamedArrayBase]) -> list[NamedArrayBase]:
    arrays = list(arrays)
    if not arrays:
        raise ValueError(f"{what}: at least one array is needed; the sequence is empty.")
    for index, array in enumerate(arrays):
        if not isinstance(array, NamedArrayBase):
            raise TypeError(
                f"{what}: arrays[{index}] is no named array but {type(array).__name__}; wrap it and "
                "tag its axes."
            )
    if len({len(array.positional_shape) for array in arrays}) > 1:
        raise ValueError(
            f"{what}: all arrays need the same number of positional axes; their positional shapes "
            f"are {[array.positional_shape for array in arrays]}. Name them first."
        )
    return arrays


def _conform(
    what: str, arrays: Sequence[NamedArrayBase], apart: AxisName
) -> tuple[list[Any], list[AxisName]]:
    """Data of the arrays with the union of their axes (without `apart`) in front, broadcast."""
    keyed = [_axes_in_data_order(array) for array in arrays]
    union: dict[AxisName, int] = {}
    for keys, sizes in keyed:
        for key in keys:
            if key != apart and union.setdefault(key, sizes[key]) != sizes[key]:
                shapes = [named_shape_text(a.named_shape, a.positional_shape) for a in arrays]
                kind = "positional axis" if isinstance(key, int) else "axis"
                raise ValueError(
                    f"{what}: {kind} {key!r} has sizes {union[key]} and {sizes[key]}; all arrays "
                    f"must agree in it. Their shapes are {', '.join(shapes)}."
                )
    datas = []
    for array, (keys, sizes) in zip(arrays, keyed, strict=True):
        present = [key for key in union if key in sizes] + [apart] * (apart in sizes)
        data = jnp.asarray(array.data_array).transpose([keys.index(key) for key in present])
        absent = [i for i, key in enumerate(union) if key not in sizes]
        data = lax.expand_dims(data, absent)
        shape = (*union.values(), *data.shape[len(union) :])
        datas.append(jnp.broadcast_to(data, shape))
    return datas, list(union)


def _named_by_keys(data: Any, keys: Sequence[AxisName]) -> NamedArrayBase:
    """An array over data whose axes have these keys, integers meaning positions."""
    logical = sorted((key, axis) for axis, key in enumerate(keys) if isinstance(key, int))
    if not logical:
        return NamedArray(collections.OrderedDict(zip(keys, data.shape, strict=True)), data)
    names = {key: axis for axis, key in enumerate(keys) if not isinstance(key, int)}
    return NamedArrayView(data.shape, tuple(axis for _, axis in logical), names, data)


def concatenate(arrays: Sequence[NamedArrayBase], axis_name: AxisName) -> NamedArrayBase:
    """Joins arrays along a name that all of them have.

    Args:
      arrays: Named arrays with equally many positional axes. Names that only some have are
        broadcast.
      axis_name: The axis to join along; sizes may differ there.

    Returns:
      The joined array, with `axis_name` last.

    Raises:
      ValueError: For no arrays, a missing axis, or sizes that disagree.
    """
    arrays = _checked("concatenate", arrays)
    for index, array in enumerate(arrays):
        if axis_name not in array.named_shape:
            raise ValueError(
                f"concatenate: arrays[{index}] has no axis {axis_name!r}; named_shape="
                f"{array.named_shape!r}. {near_misses(axis_name, array.named_shape)} To join along "
                "a new axis use stack."
            )
    datas, keys = _conform("concatenate", arrays, axis_name)
    return _named_by_keys(jnp.concatenate(datas, axis=len(keys)), [*keys, axis_name])


def stack(arrays: Sequence[NamedArrayBase], axis_name: AxisName) -> NamedArrayBase:
    """Joins arrays along a new name, which is last in the result.

    Args:
      arrays: Named arrays with equally many positional axes. Names that only some have are
        broadcast.
      axis_name: A name that none of them has.

    Returns:
      The joined array.

    Raises:
      ValueError: For no arrays, a name that is there, or sizes that disagree.
    """
    arrays = _checked("stack", arrays)
    if (rule := rule_broken_by_name(axis_name)) is not None:
        raise ValueError(f"stack: {rule}.")
    for index, array in enumerate(arrays):
        if axis_name in array.named_shape:
            raise ValueError(
                f"stack: arrays[{index}] has an axis {axis_name!r} already; named_shape="
                f"{array.named_shape!r}. To join along it use concatenate."
            )
    datas, keys = _conform("stack", arrays, axis_name)
    return _named_by_keys(jnp.stack(datas, axis=len(keys)), [*keys, axis_name])


def unstack(array: NamedArrayBase, axis_name: AxisName) -> list[NamedArrayBase]:
    """The slices along a name, as a list of arrays without it.

    Raises:
      KeyError: When the array has no such name.
    """
    sizes = array.named_shape
    if axis_name not in sizes:
        raise KeyError(
            f"unstack: no axis is named {axis_name!r}; named_shape={sizes!r}. "
            + near_misses(axis_name, sizes)
        )
    return [array[{axis_name: index}] for index in range(sizes[axis_name])]
