"""Finds the parameters of a model by its likeness to what a family builds, and where it differs.

Parameters are paired by their place in the tree, not by their labels: a block that was taken out
shifts the labels of those behind it, and nothing else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from pz_core.struct import Struct
from pz_core.tree_util import pretty_keystr, tree_flatten_exactly_one_level
from pz_core.variables import AbstractVariable, Parameter, ParameterSlot, ParameterValue

__all__ = ["DifferentModelError", "parameters_like"]


class DifferentModelError(Exception):
    """The model has a part that the reference has not; the text says where and what."""


def parameters_like(model: Any, reference: Any) -> dict[str, Any]:
    """The values of a model's parameters, under the labels that the reference has in their places.

    Args:
      model: A tree with parameters, frozen or not.
      reference: A tree of the same structure with parameter slots.

    Raises:
      DifferentModelError: The trees differ in something else than parameters' labels and values.
    """
    found: dict[str, Any] = {}
    _walk(model, reference, (), model, found)
    return found


def _walk(mine: Any, theirs: Any, path: tuple[Any, ...], root: Any, found: dict[str, Any]) -> None:
    if isinstance(theirs, ParameterSlot):
        _keep(mine, str(theirs.label), _place(path, root), found)
        return
    if type(mine) is not type(theirs) and not (_is_number(mine) and _is_number(theirs)):
        raise DifferentModelError(
            f"{_place(path, root)} is a {type(mine).__name__}, where the family has a"
            f" {type(theirs).__name__}"
        )
    ours, reference = (
        None if isinstance(node, AbstractVariable) else tree_flatten_exactly_one_level(node)
        for node in (mine, theirs)
    )
    if ours is None or reference is None:
        if not _equal(mine, theirs):
            raise DifferentModelError(
                f"{_place(path, root)} is {_short(mine)}, where the family has {_short(theirs)}"
            )
        return
    if difference := _static_difference(mine, theirs, len(ours[0]), len(reference[0])):
        raise DifferentModelError(f"{_place(path, root)} {difference}")
    for (key, child), (_, counterpart) in zip(ours[0], reference[0], strict=True):
        _walk(child, counterpart, (*path, key), root, found)


def _keep(mine: Any, label: str, place: str, found: dict[str, Any]) -> None:
    if not isinstance(mine, Parameter | ParameterValue):
        raise DifferentModelError(
            f"{place} is a {type(mine).__name__}, where the family has the parameter {label!r}"
        )
    value = mine.value
    # Freezing makes copies of a shared parameter, which may have been edited apart since.
    if label in found and found[label] is not value and not _equal_trees(found[label], value):
        raise DifferentModelError(
            f"{place} has another value than the other place of the shared parameter {label!r}"
        )
    found.setdefault(label, value)


def _static_difference(mine: Any, theirs: Any, n_mine: int, n_theirs: int) -> str:
    """How two nodes of one type differ apart from their children; empty if they do not."""
    if isinstance(mine, Struct):
        static, counterparts = (node.tree_flatten()[1].static_fields for node in (mine, theirs))
        for name in [*static, *(name for name in counterparts if name not in static)]:
            own, other = getattr(mine, name), getattr(theirs, name)
            if name not in static or name not in counterparts or not _equal(own, other):
                return f"has {name}={_short(own)}, where the family has {_short(other)}"
    elif isinstance(mine, dict) and mine.keys() != theirs.keys():
        return f"has the keys {_short(list(mine))}, where the family has {_short(list(theirs))}"
    if n_mine != n_theirs:
        return f"has {n_mine} parts, where the family has {n_theirs}"
    return ""


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        # Two partial objects are equal only if they are one; a copied model has copies of them.
        return (a.func, a.args, a.keywords) == (b.func, b.args, b.keywords)
    if _is_number(a) and _is_number(b):
        arrays = [x for x in (a, b) if not isinstance(x, int | float)]
        dtypes = {np.dtype(array.dtype) for array in arrays}
        if len(dtypes) > 1:
            return False
        dtype = dtypes.pop() if dtypes else None
        return np.array_equal(np.asarray(a, dtype), np.asarray(b, dtype))
    return bool(a == b)


def _equal_trees(a: Any, b: Any) -> bool:
    structures: list[Any] = [jax.tree_util.tree_structure(tree) for tree in (a, b)]
    leaves = [jax.tree_util.tree_leaves(tree) for tree in (a, b)]
    return bool(structures[0] == structures[1]) and all(map(_equal, *leaves))


def _is_number(node: Any) -> bool:
    return isinstance(node, int | float | np.ndarray | np.generic | jax.Array)


def _place(path: tuple[Any, ...], root: Any) -> str:
    return pretty_keystr(path, root) or "the model"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} …"
