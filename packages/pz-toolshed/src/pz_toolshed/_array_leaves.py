"""Splits a pytree into its arrays and everything else.

JAX transformations trace every leaf that they are given. A tree that also holds Python scalars,
strings or functions is split first, so that those stay what they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from pz_named.named_axes import NamedArrayView, is_namedarray

__all__ = [
    "TreeWithoutArrays",
    "data_axes",
    "is_array",
    "merge_arrays",
    "split_arrays",
    "with_data",
]


@dataclasses.dataclass(frozen=True)
class TreeWithoutArrays:
    """What is left of a tree when its arrays are taken out.

    Attributes:
      treedef: The structure of the whole tree.
      other_leaves: One entry per leaf: None where an array was, else a one-tuple of the leaf.
    """

    treedef: Any
    other_leaves: tuple[tuple[Any] | None, ...]


def is_array(leaf: Any) -> bool:
    """Whether a leaf is a JAX array (a tracer or a PRNG key array too) or a NumPy array."""
    return isinstance(leaf, jax.Array | np.ndarray)


def split_arrays(tree: Any, *, named: bool = False) -> tuple[list[Any], TreeWithoutArrays]:
    """Takes the arrays out of a tree, in leaf order; with `named`, named arrays as wholes."""
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=is_namedarray if named else None)
    taken = [is_array(leaf) or is_namedarray(leaf) for leaf in leaves]
    arrays = [leaf for leaf, take in zip(leaves, taken, strict=True) if take]
    other = tuple(None if take else (leaf,) for leaf, take in zip(leaves, taken, strict=True))
    return arrays, TreeWithoutArrays(treedef, other)


def merge_arrays(arrays: Any, rest: TreeWithoutArrays) -> Any:
    """Puts arrays, or whatever stands for them now, back where they were."""
    replacements = iter(arrays)
    leaves = [next(replacements) if kept is None else kept[0] for kept in rest.other_leaves]
    return jax.tree_util.tree_unflatten(rest.treedef, leaves)


def data_axes(array: Any) -> list[Any]:
    """What each axis of a named array's data is: a name, or the number of a positional axis.

    Names are never integers, so the two cannot be confused.
    """
    if isinstance(array, NamedArrayView):
        axes: list[Any] = [None] * len(array.data_shape)
        for number, axis in enumerate(array.data_axis_for_logical_axis):
            axes[axis] = number
        for name, axis in array.data_axis_for_name.items():
            axes[axis] = name
        return axes
    names = list(array.named_shape)
    return [*range(len(array.data_array.shape) - len(names)), *names]


def with_data(array: Any, data: Any) -> Any:
    """The named array with other data, or with what stands for it; nothing is checked."""
    return dataclasses.replace(array, data_array=data)
