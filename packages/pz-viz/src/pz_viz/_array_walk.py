"""Finds everything in a tree that holds data or stands for it, without reading any of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import pz_named as nx
from pz_core.struct import Struct
from pz_core.tree_util import tree_flatten_exactly_one_level
from pz_core.variables import (
    AbstractVariable,
    AbstractVariableSlot,
    AbstractVariableValue,
    Parameter,
)
from pz_named.named_axes import NamedArrayBase
from pz_viz._arrays import shape_text

__all__ = ["Found", "dtype_and_size", "shape_of", "sharding_text", "walk"]


@dataclasses.dataclass(frozen=True)
class Found:
    """An array or slot, and where it stands.

    Attributes:
      keypath: Its key path.
      structs: Key path and class of every struct around it, from the root on.
      value: A named array, an array, or a slot.
      role: See `SummaryRow.roles`.
      identity: Equal for appearances of the same thing.
    """

    keypath: tuple[Any, ...]
    structs: tuple[tuple[tuple[Any, ...], str], ...]
    value: Any
    role: str
    identity: Any


def _is_array(value: Any) -> bool:
    return isinstance(value, (NamedArrayBase, jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def _role(variable: Any) -> str:
    if isinstance(variable, Parameter):
        return "trainable"
    if isinstance(variable, AbstractVariable):
        return "state"
    return "frozen"


def _arrays_of_variable(found: Found) -> Iterator[Found]:
    """The arrays in a variable's value, which may be a tree."""
    variable = found.value
    pairs = jax.tree_util.tree_leaves_with_path(
        variable.value, is_leaf=lambda x: isinstance(x, NamedArrayBase)
    )
    for keypath, value in pairs:
        if _is_array(value):
            inside = (*found.keypath, *keypath)
            identity = (variable.get_slot(), keypath)
            yield dataclasses.replace(
                found, keypath=inside, value=value, role=_role(variable), identity=identity
            )


def walk(model: Any) -> Iterator[Found]:
    """Everything that holds data or stands for it, in flatten order."""
    stack = [Found((), (), model, "array", None)]
    while stack:
        found = stack.pop()
        value = found.value
        if isinstance(value, (AbstractVariable, AbstractVariableValue)):
            yield from _arrays_of_variable(found)
        elif isinstance(value, AbstractVariableSlot):
            yield dataclasses.replace(found, role="slot", identity=value)
        elif _is_array(value):
            yield dataclasses.replace(found, identity=id(getattr(value, "data_array", value)))
        else:
            structs = found.structs
            if isinstance(value, Struct) or not found.keypath:
                structs = (*structs, (found.keypath, type(value).__name__))
            level = tree_flatten_exactly_one_level(value)
            for key, child in reversed(level[0] if level else []):
                stack.append(Found((*found.keypath, key), structs, child, "array", None))


def dtype_and_size(value: Any) -> tuple[str, int, int]:
    """The dtype as text, the number of elements, and the size in bytes."""
    data = getattr(value, "data_array", value)
    count = math.prod(data.shape)
    return str(data.dtype), count, count * int(getattr(data.dtype, "itemsize", 0))


def shape_of(value: Any) -> str:
    """`dtype(positional | name:size)` of a named or plain array."""
    if isinstance(value, NamedArrayBase):
        return shape_text(value)
    return f"{value.dtype}({', '.join(map(str, value.shape))})"


def sharding_text(value: Any) -> str:
    """`f:x, h:y`; "replicated" on several devices; empty on one."""
    sharding = getattr(getattr(value, "data_array", value), "sharding", None)
    devices = getattr(sharding, "device_set", ())
    if len(devices) < 2:
        return ""
    try:
        axes: Mapping[Any, Any]
        if isinstance(value, NamedArrayBase):
            axes = nx.sharding_of(value)
        else:
            spec = tuple(sharding.spec)  # type: ignore[union-attr]  # checked by the handler
            axes = {i: x if isinstance(x, tuple) else (x,) for i, x in enumerate(spec) if x}
    except (TypeError, AttributeError):
        return f"{len(devices)} devices"
    split = [f"{name}:{'+'.join(map(str, over))}" for name, over in axes.items() if over]
    return ", ".join(split) or "replicated"
