"""From a named array to its names and data and back, without moving data.

Layers that work on a whole named array at once (a norm, a softmax, a contraction) take its data array
and the names of its axes in data order, run one array operation over axis indices, and name the result.
That keeps the program equal to the hand-written one and avoids one nested `vmap` for each name.
"""

from __future__ import annotations

import collections
import difflib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_named.named_axes import NamedArray, NamedArrayBase

Names = tuple[Hashable, ...]


def as_names(names: str | Sequence[Any]) -> tuple[Any, ...]:
    """One name or several, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def names_and_data(value: Any, user: str) -> tuple[Names, jax.Array]:
    """The axis names of a fully named array in data order, and its data.

    Args:
        value: A named array without positional axes.
        user: Name of the layer that asks, for messages.

    Returns:
        The names and the data array itself.

    Raises:
        TypeError: If the value is no named array.
        ValueError: If it has positional axes.
    """
    if not isinstance(value, NamedArrayBase):
        raise TypeError(
            f"{user}: the input must be a named array, but is a {type(value).__name__}. "
            'Name its axes first: `wrap(array, "batch", "features")`.'
        )
    prefix = value if isinstance(value, NamedArray) else None
    if prefix is None or len(prefix.named_axes) != prefix.data_array.ndim:
        prefix = _fully_named(value, user)
    return tuple(prefix.named_axes), prefix.data_array


def _fully_named(value: NamedArrayBase, user: str) -> NamedArray:
    if value.positional_shape:
        raise ValueError(
            f"{user}: every axis of the input must be named, but it has positional axes of shape "
            f"{value.positional_shape} beside named_shape={value.named_shape}. Tag them first: "
            '`x.tag("name", ...)`.'
        )
    prefix = value.untag()
    assert isinstance(prefix, NamedArray)
    return prefix


def with_names(names: Iterable[Hashable], data: jax.Array) -> NamedArray:
    """Names the last axes of `data`, in order; any others lead as positional axes."""
    names = tuple(names)
    sizes = data.shape[data.ndim - len(names) :]
    return NamedArray(collections.OrderedDict(zip(names, sizes, strict=True)), data)


def axis_indices(names: Names, wanted: Sequence[Hashable], user: str) -> tuple[int, ...]:
    """Positions of `wanted` in `names`.

    Raises:
        ValueError: If a wanted name is missing or repeated; the message shows near misses.
    """
    if len(set(wanted)) != len(wanted):
        raise ValueError(
            f"{user}: each axis may be named once, but got {tuple(wanted)}. Remove the repetition."
        )
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"{user}: the input must have the axes {tuple(wanted)}, but {missing} are missing; it has "
            f"{names}.{near_misses(missing, names)} Rename an axis of the input with RenameAxes, or "
            "give the layer the name that the input uses."
        )
    return tuple(names.index(name) for name in wanted)


def near_misses(unknown: Iterable[Hashable], known: Iterable[Hashable]) -> str:
    """A hint such as ` Did you mean 'embedding'?`, or nothing."""
    candidates = [str(name) for name in known]
    found = [
        match for name in unknown for match in difflib.get_close_matches(str(name), candidates, n=1)
    ]
    return f" Did you mean {', '.join(map(repr, dict.fromkeys(found)))}?" if found else ""


def move_to_end(names: Names, data: jax.Array, last: Sequence[Hashable]) -> NamedArray:
    """Orders axes as the others first, as they stand, then `last`; moves data only if it has to."""
    order = (*(name for name in names if name not in last), *last)
    return with_names(order, reordered(names, data, order))


def reordered(names: Names, data: jax.Array, order: Sequence[Hashable]) -> jax.Array:
    """The data with its axes in `order`, a permutation of `names`; moved only if it has to be."""
    permutation = [names.index(name) for name in order]
    if permutation == list(range(len(permutation))):
        return data
    return jnp.transpose(data, permutation)


def broadcast_against(names: Names, data: jax.Array, target: Sequence[Hashable]) -> jax.Array:
    """Lays `data` out along `target`, a superset of `names`, with size-1 axes where it has none."""
    present = [name for name in target if name in names]
    aligned = reordered(names, data, present)
    sizes = iter(aligned.shape)
    shape = tuple(next(sizes) if name in names else 1 for name in target)
    return aligned if shape == aligned.shape else aligned.reshape(shape)
