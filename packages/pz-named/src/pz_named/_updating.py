"""Functional updates by index, positional and by name: JAX's own updates, lifted over names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from pz_named._indexing import (
    EntriesByName,
    arrays_in,
    check_bounds,
    check_index_names,
    entries_by_name,
    normalise_positional,
    restored,
)
from pz_named._layout import NamedLeaf
from pz_named._packing import names_first, pack
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["update_by_name", "update_by_position"]


def _as_named(value: Any) -> Any:
    return value if isinstance(value, NamedLeaf) else pack(jnp.asarray(value), ())


def update_by_position(
    x: Any, indexer: Any, value: Any, update: Callable[..., Any], options: dict[str, Any]
) -> NamedArrayBase:
    """`x.at[indexer].<op>(value)` for positional axes, vectorised over all names.

    Args:
      x: The array.
      indexer: A positional indexer; its arrays may be named.
      value: An array-like or a named array.
      update: The update of a plain array, `update(array, indexer, value)`.
      options: JAX's options; with a `mode`, known integers may be out of range.

    Returns:
      The updated array; names of the indices and the value are added to it.
    """
    entries = normalise_positional(x._layout(), indexer, check=options.get("mode") is None)

    def lifted(array: Any, index: Any, new: Any) -> Any:
        return update(array, tuple(restored(entries, index)), new)

    result: NamedArrayBase = nmap(lifted)(x, arrays_in(entries), value)
    return result


def update_by_name(
    x: Any,
    indexer: Mapping[AxisName, Any],
    value: Any,
    update: Callable[..., Any],
    options: dict[str, Any],
) -> NamedArrayBase:
    """`x.at[{name: index, ...}].<op>(value)`; arguments as for `update_by_position`.

    Untouched names come first, then new names of indices and value, then the sliced and the
    removed names, then positional axes.
    """
    entries = entries_by_name(x, indexer)
    named_shape = x.named_shape
    if options.get("mode") is None:
        for name, index in entries.removed.items():
            check_bounds(index, named_shape[name], name)
    check_index_names(entries)
    prepared = _prepared_value(x, entries, _as_named(value))
    if not entries.introduced and not any(map(_has_names, entries.removed.values())):
        return _update_directly(x, entries, prepared, update)
    index = [
        *(None for _ in entries.introduced),
        *entries.sliced.values(),
        *entries.removed.values(),
    ]

    def lifted(array: Any, arrays: Any, new: Any) -> Any:
        return update(array, tuple(restored(index, arrays)), new)

    names = (*entries.sliced, *entries.removed)
    result: NamedArrayBase = nmap(lifted)(x.untag_prefix(*names), arrays_in(index), prepared)
    return result.tag_prefix(*names)


def _has_names(index: Any) -> bool:
    return isinstance(index, NamedLeaf) and bool(index._layout().names)


def _update_directly(
    x: Any, entries: EntriesByName, prepared: Any, update: Callable[..., Any]
) -> NamedArrayBase:
    """The update of one array, without lifting; no index has names."""
    indexed = (*entries.sliced, *entries.removed)
    target = x.untag_prefix(*indexed)
    sizes = {**target.named_shape, **prepared.named_shape}
    data, new = _spread(target, tuple(sizes)), _spread(prepared, tuple(sizes))
    data = jnp.broadcast_to(data, (*sizes.values(), *data.shape[len(sizes) :]))
    index = [i.data_array if isinstance(i, NamedLeaf) else i for i in entries.removed.values()]
    place = (*[slice(None)] * len(sizes), *entries.sliced.values(), *index)
    return pack(update(data, place, new), tuple(sizes)).tag_prefix(*indexed)


def _spread(x: Any, names: tuple[AxisName, ...]) -> Any:
    """The data with `names` first, of size 1 where `x` lacks one, and positional axes after."""
    own = x.named_shape
    data, _ = names_first(x, [name for name in names if name in own])
    return lax.expand_dims(data, [i for i, name in enumerate(names) if name not in own])


def _prepared_value(x: Any, entries: EntriesByName, value: Any) -> Any:
    """The value with the region's named axes in front and its positional axes padded."""
    removed = [name for name in value.named_shape if name in entries.removed]
    if removed:
        raise ValueError(
            f"x.at[{{...}}].set(value): the value has the axes {removed!r}, which the indexer "
            f"removes; value.named_shape={value.named_shape!r}. Index the value there first, or "
            "use a slice in the indexer."
        )
    sizes = {name: 1 for name in entries.introduced}
    for name, cut in entries.sliced.items():
        sizes[name] = len(range(*cut.indices(x.named_shape[name])))
    for name, size in sizes.items():
        if value.named_shape.get(name, 1) not in (1, size):
            raise ValueError(
                f"x.at[{{...}}].set(value): axis {name!r} has size {value.named_shape[name]} in the "
                f"value and {size} in the indexed region; they must agree, or be 1 in the value."
            )
    shapes = [
        np.shape(i) if not isinstance(i, NamedLeaf) else i._layout().positional_shape
        for i in entries.removed.values()
    ]
    region = (*np.broadcast_shapes(*shapes), *x.positional_shape)
    own = value.positional_shape
    fits = len(own) <= len(region) and all(
        a in (1, b) for a, b in zip(reversed(own), reversed(region), strict=False)
    )
    if not fits:
        raise ValueError(
            f"x.at[{{...}}].set(value): the value's positional shape {own} does not fit the indexed "
            f"region's {region}; sizes must agree from the right or be 1. Name the value's axes "
            "if they stand for names."
        )
    padded = value[(None,) * (len(region) - len(own)) + (...,)]
    absent = {name: None for name in sizes if name not in value.named_shape}
    return padded[absent].untag_prefix(*sizes)
