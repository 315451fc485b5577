"""Reading by index, positional and by name.

Stages: normalise the indexer (bounds, lists, masks) → if everything is static, slice the data and
permute → otherwise lift JAX's own indexing over the names.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pz_named._cutting import cut_axes, cut_for
from pz_named._layout import Layout, NamedLeaf, axis_positions, named_shape_text
from pz_named._packing import as_jax, names_first, pack, transposed
from pz_named.axis_names import AxisName
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = [
    "EntriesByName",
    "arrays_in",
    "check_bounds",
    "check_index_names",
    "entries_by_name",
    "get_by_name",
    "get_by_position",
    "normalise_positional",
    "options_for",
    "restored",
]

_OPTIONS = ("indices_are_sorted", "unique_indices", "mode")


def options_for(method: str, options: Mapping[str, Any], *, reading: bool) -> dict[str, Any]:
    """The options as a dict, after a check of their names.

    Raises:
      TypeError: For a keyword that the method does not take.
    """
    allowed = (*_OPTIONS, "fill_value") if reading else _OPTIONS
    for key in options:
        if key not in allowed:
            raise TypeError(
                f"x.at[...].{method}: unexpected keyword {key!r}; allowed are {', '.join(allowed)}."
            )
    return dict(options)


def _is_mask(index: Any) -> bool:
    return getattr(index, "dtype", None) == np.bool_ or isinstance(index, bool)


def _clean(index: Any) -> Any:
    """One index with NumPy integers, lists and slice bounds in plain form."""
    if isinstance(index, slice):
        return slice(
            *(None if b is None else int(b) for b in (index.start, index.stop, index.step))
        )
    if isinstance(index, list):
        array = np.asarray(index)
        return array.astype(np.int32) if array.size == 0 else array
    if isinstance(index, np.integer):
        return int(index)
    return index


def _concrete_mask(index: Any) -> np.ndarray[Any, Any]:
    if isinstance(index, (NamedLeaf, jax.core.Tracer, bool, np.bool_)) or index.ndim == 0:
        kind = "named" if isinstance(index, NamedLeaf) else "traced"
        kind = "scalar" if isinstance(index, (bool, np.bool_)) else kind
        raise IndexError(
            f"x[mask]: a {kind} boolean mask cannot index, because the result's size would depend "
            f"on its values; it is {index!r}. Use a reduction's where= argument, "
            "where(mask, x, other), or compress(mask, x, name, size=...) with a fixed size."
        )
    return np.asarray(index)


def check_bounds(index: Any, size: int, axis: object) -> None:
    """Raises for integers that are known and out of range."""
    if isinstance(index, int):
        low = high = index
    elif isinstance(index, np.ndarray) and index.size and np.issubdtype(index.dtype, np.integer):
        low, high = int(index.min()), int(index.max())
    else:
        return
    if low < -size or high >= size:
        raise IndexError(
            f"x[...]: index {low if low < -size else high} is out of range for axis {axis!r} of "
            f'size {size}. To allow it, say how: x.at[...].get(mode="clip") or mode="fill".'
        )


def normalise_positional(
    layout: Layout, indexer: Any, *, check: bool, axes: Sequence[object] | None = None
) -> tuple[Any, ...]:
    """A positional indexer as a tuple with one entry per axis plus the `None`s.

    Args:
      layout: Of the array to index.
      indexer: What stood in the brackets.
      check: Whether known integers out of range raise.
      axes: What to call the axes in messages; default their positions.

    Returns:
      Entries that are None, a slice, an int, or an integer array.

    Raises:
      IndexError: For too many indices, an index out of range, or a mask whose size is unknown.
      TypeError: For an index of another kind.
    """
    shape = layout.positional_shape
    entries = [_clean(i) for i in (indexer if isinstance(indexer, tuple) else (indexer,))]
    if any(isinstance(entry, dict) for entry in entries):
        raise IndexError(
            f"x[{indexer!r}]: indexing by name and by position cannot be mixed in one indexer; "
            "index twice: x[{...}][...]."
        )
    if sum(entry is Ellipsis for entry in entries) > 1:
        raise IndexError(f"x[{indexer!r}]: an index can only have a single ellipsis ('...').")
    masks = {i: _concrete_mask(entry) for i, entry in enumerate(entries) if _is_mask(entry)}
    used = sum(
        masks[i].ndim if i in masks else not (entry is None or entry is Ellipsis)
        for i, entry in enumerate(entries)
    )
    if used > len(shape):
        raise IndexError(
            f"x[{indexer!r}]: too many indices, {used} for {len(shape)} positional axes; the shape "
            f"is {named_shape_text(layout.named_shape, shape)}. Index named axes with a dict, "
            'x[{"name": index}], or untag them first.'
        )
    result: list[Any] = []
    axis = 0
    for i, entry in enumerate(entries):
        if entry is None:
            result.append(None)
        elif entry is Ellipsis:
            result.extend([slice(None)] * (len(shape) - used))
            axis += len(shape) - used
        elif i in masks:
            result.extend(_mask_positions(masks[i], shape[axis : axis + masks[i].ndim]))
            axis += masks[i].ndim
        else:
            _require_index(entry)
            if check:
                check_bounds(entry, shape[axis], axes[axis] if axes else axis)
            result.append(entry)
            axis += 1
    return (*result, *[slice(None)] * (len(shape) - axis))


def _mask_positions(
    mask: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> tuple[np.ndarray[Any, Any], ...]:
    if mask.shape != shape:
        raise IndexError(
            f"x[mask]: a mask must have the shape of the axes it indexes; mask.shape={mask.shape}, "
            f"the axes have {shape}."
        )
    return np.nonzero(mask)


def _require_index(entry: Any) -> None:
    if isinstance(entry, (int, slice)):
        return
    dtype = getattr(entry, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"x[...]: an index must be an integer, a slice, None, '...' or an integer array; it is "
            f"{entry!r} of type {type(entry).__name__}."
        )


def _is_static(entry: Any) -> bool:
    return entry is None or isinstance(entry, (int, slice))


def get_by_position(x: NamedLeaf, indexer: Any, options: dict[str, Any]) -> NamedArrayBase:
    """`x[indexer]` for the positional axes, vectorised over names."""
    layout = x._layout()
    entries = normalise_positional(layout, indexer, check=options.get("mode") is None)
    if all(map(_is_static, entries)) and not options:
        return _get_static_positions(x, layout, entries)
    return index_lifted(x, entries, options)


def _get_static_positions(x: NamedLeaf, layout: Layout, entries: Sequence[Any]) -> NamedArrayBase:
    indexed = [entry for entry in entries if entry is not None]
    cuts = {
        axis: cut_for(entry, layout.shape[axis])
        for axis, entry in zip(layout.logical_axes, indexed, strict=True)
    }
    data = cut_axes(as_jax(x.data_array), cuts)
    kept = [a for a in range(len(layout.shape)) if a not in cuts or not cuts[a].drop]
    order = [*layout.name_axes, *(a for a in layout.logical_axes if not cuts[a].drop)]
    data = transposed(data, tuple(kept.index(a) for a in order))
    new, position = [], len(layout.names)
    for entry in entries:
        if entry is None:
            new.append(position)
        position += not isinstance(entry, int)
    return pack(lax.expand_dims(data, new) if new else data, layout.names)


def index_lifted(x: NamedLeaf, entries: Sequence[Any], options: dict[str, Any]) -> NamedArrayBase:
    """Gathers with JAX's indexing; index arrays may be named."""

    def get(array: Any, index: Any) -> Any:
        return jnp.asarray(array).at[tuple(restored(entries, index))].get(**options)

    result: NamedArrayBase = nmap(get)(x, arrays_in(entries))
    return result


def arrays_in(entries: Sequence[Any]) -> list[Any]:
    """The array indices, which may be named and so are arguments of the lifted function."""
    return [entry for entry in entries if not _is_static(entry)]


def restored(entries: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """The entries with their arrays replaced by what the lifted function received."""
    remaining = iter(arrays)
    return [entry if _is_static(entry) else next(remaining) for entry in entries]


class EntriesByName(NamedTuple):
    """A name indexer, sorted by what happens to each axis."""

    introduced: tuple[AxisName, ...]
    sliced: dict[AxisName, slice]
    removed: dict[AxisName, Any]


def entries_by_name(x: NamedLeaf, indexer: Mapping[AxisName, Any]) -> EntriesByName:
    """Sorts the entries of a name indexer.

    Raises:
      ValueError: For an unknown name, or `None` for a name that is there.
      TypeError: For an index of an unsupported kind.
    """
    layout = x._layout()
    introduced: list[AxisName] = []
    sliced: dict[AxisName, slice] = {}
    removed: dict[AxisName, Any] = {}
    for name, index in indexer.items():
        if index is None:
            if name in layout.names:
                raise ValueError(
                    f"x[{{{name!r}: None}}]: None introduces a new axis, but {name!r} is there "
                    f"already; named_shape={layout.named_shape!r}."
                )
            introduced.append(name)
            continue
        size = layout.shape[axis_positions(f"x[{{{name!r}: ...}}]", layout, (name,))[0]]
        if isinstance(index, slice):
            sliced[name] = _clean(index)
        else:
            removed[name] = _index_for_name(name, index, size)
    return EntriesByName(tuple(introduced), sliced, removed)


def _index_for_name(name: AxisName, index: Any, size: int) -> Any:
    index = _clean(index)
    if isinstance(index, bool) or not (isinstance(index, int) or hasattr(index, "dtype")):
        raise TypeError(
            f"x[{{{name!r}: index}}]: index must be an integer, a slice, None, a list, or an "
            f"integer array, named or not; it is {index!r} of type {type(index).__name__}."
        )
    if _is_mask(index):
        mask = _concrete_mask(index)
        if mask.ndim != 1:
            raise IndexError(
                f"x[{{{name!r}: mask}}]: a mask for one axis has one axis; mask.shape={mask.shape}."
            )
        return _mask_positions(mask, (size,))[0]
    if not isinstance(index, int) and not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(
            f"x[{{{name!r}: index}}]: an index array must have an integer dtype; it has "
            f"{index.dtype}. Convert it with .astype(int)."
        )
    return index


def get_by_name(
    x: NamedArrayBase | Any, indexer: Mapping[AxisName, Any], options: dict[str, Any]
) -> NamedArrayBase:
    """`x[{name: index, ...}]`.

    Names that are not indexed come first, then names of index arrays, introduced names, sliced
    names, and positional axes last.
    """
    entries = entries_by_name(x, indexer)
    layout = x._layout()
    if options.get("mode") is None:
        for name, index in entries.removed.items():
            check_bounds(index, layout.named_shape[name], name)
    check_index_names(entries)
    arrays = [name for name, index in entries.removed.items() if not _is_static(index)]
    if not arrays and not options:
        return _get_static_names(x, layout, entries)
    others_are_in_range = len(entries.removed) == 1 or not options
    if (
        len(arrays) == 1
        and others_are_in_range
        and not _shares_names(entries.removed[arrays[0]], layout, arrays[0])
    ):
        return _get_one_array(x, entries, arrays[0], options)
    positional = x.untag_prefix(*entries.sliced, *entries.removed)
    index = (None,) * len(entries.introduced), entries.sliced.values(), entries.removed.values()
    result = index_lifted(positional, [i for group in index for i in group] + _rest(x), options)
    return result.tag_prefix(*entries.introduced, *entries.sliced)


def _shares_names(index: Any, layout: Layout, axis: AxisName) -> bool:
    """Whether an index array is to be paired with other axes of the array, name by name."""
    if not isinstance(index, NamedLeaf):
        return False
    return any(name in layout.names and name != axis for name in index._layout().names)


def _get_one_array(
    x: NamedLeaf, entries: EntriesByName, axis: AxisName, options: dict[str, Any]
) -> NamedArrayBase:
    """A lookup by one index array, such as that of embeddings: one gather, without lifting."""
    static = {name: index for name, index in entries.removed.items() if name != axis}
    cut: Any = _get_static_names(x, x._layout(), entries._replace(removed=static))
    data, layout = names_first(cut)
    index = entries.removed[axis]
    index_data, index_names = (index, ()) if not isinstance(index, NamedLeaf) else _parts(index)
    place, count = layout.names.index(axis), len(index_names)
    found = data.at[(slice(None),) * place + (index_data,)].get(**options)
    width = jnp.ndim(index_data)
    new = [*entries.introduced, *entries.sliced]
    axis_of = {n: i if i < place else i - 1 + width for i, n in enumerate(layout.names)}
    untouched = [name for name in layout.names if name not in new and name != axis]
    order = [
        *(axis_of[name] for name in untouched),
        *range(place, place + count),
        *(axis_of[name] for name in new),
        *range(place + count, place + width),
        *range(len(layout.names) - 1 + width, found.ndim),
    ]
    return pack(transposed(found, tuple(order)), (*untouched, *index_names, *new))


def _parts(index: NamedLeaf) -> tuple[Any, tuple[AxisName, ...]]:
    data, layout = names_first(index)
    return data, layout.names


def _rest(x: NamedLeaf) -> list[slice]:
    return [slice(None)] * len(x._layout().logical_axes)


def check_index_names(entries: EntriesByName) -> None:
    clashing = {*entries.introduced, *entries.sliced}
    for name, index in entries.removed.items():
        if not isinstance(index, NamedLeaf):
            continue
        for index_name in index._layout().names:
            if index_name in clashing:
                raise ValueError(
                    f"x[{{{name!r}: index}}]: the index array has an axis {index_name!r}, which the "
                    "indexer also slices or introduces, so the result would have it twice. Index "
                    "in two steps, or give the index array's axis another name."
                )


def _get_static_names(x: NamedLeaf, layout: Layout, entries: EntriesByName) -> NamedArrayBase:
    axis_of = dict(zip(layout.names, layout.name_axes, strict=True))
    cuts = {
        axis_of[name]: cut_for(
            operator.index(index) if not isinstance(index, slice) else index,
            layout.shape[axis_of[name]],
        )
        for name, index in {**entries.sliced, **entries.removed}.items()
    }
    data = cut_axes(as_jax(x.data_array), cuts)
    untouched = [name for name in layout.names if axis_of[name] not in cuts]
    order = [*(axis_of[name] for name in (*untouched, *entries.sliced)), *layout.logical_axes]
    kept = [a for a in range(len(layout.shape)) if a not in cuts or not cuts[a].drop]
    data = transposed(data, tuple(kept.index(a) for a in order))
    if entries.introduced:
        count = len(untouched)
        data = lax.expand_dims(data, range(count, count + len(entries.introduced)))
    return pack(data, (*untouched, *entries.introduced, *entries.sliced))
