"""Dimension variables: the unknown sizes of a shape pattern.

`var("batch")` stands for one size; `*var("rest")` for a run of positional sizes; `**var("others")`
for a group of named axes; `var("size")["height"]` for one member of a group.

Example:
    >>> from pz_named.dimensions import var
    >>> (2, *var("rest"))
    (2, MultiDimVar(name='rest'))
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "DimVar",
    "KnownDim",
    "MultiDimVar",
    "RemainingAxisPlaceholder",
    "var",
    "vars_for_axes",
]

VariableName: TypeAlias = str | tuple[str, Hashable]


@dataclasses.dataclass(frozen=True)
class RemainingAxisPlaceholder:
    """The value paired with a `MultiDimVar` key in a named shape."""


@dataclasses.dataclass(frozen=True, order=True)
class MultiDimVar:
    """Stands for a run of positional sizes, or for a group of named axes.

    Attributes:
      name: The variable.
    """

    name: str


@dataclasses.dataclass(frozen=True, order=True)
class DimVar(Mapping[Any, Any]):
    """Stands for one size.

    It is also a mapping of length one, so that `*v` and `**v` stand for several sizes.

    Attributes:
      name: The variable, or `(variable, index)` for a member of a group.
    """

    name: VariableName

    def _many(self, use: str) -> MultiDimVar:
        if not isinstance(self.name, str):
            raise TypeError(
                f"{use} of the dimension variable {self.name!r}: a member of a group stands for one "
                f"size; expand the group instead, var({self.name[0]!r})."
            )
        return MultiDimVar(self.name)

    def __iter__(self) -> Iterator[MultiDimVar]:
        yield self._many("iteration")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, MultiDimVar):
            if key == self._many("expansion"):
                return RemainingAxisPlaceholder()
            raise KeyError(key)
        if isinstance(key, (str, int, np.integer)) and not isinstance(key, bool):
            self._many("indexing")
            return DimVar((str(self.name), key if isinstance(key, str) else operator.index(key)))
        raise KeyError(key)


@dataclasses.dataclass(frozen=True, order=True)
class KnownDim:
    """A size that is known and also binds a variable.

    Attributes:
      name: The variable.
      size: Its size.
      from_keypath: Where the size came from, for messages.
    """

    name: VariableName
    size: int
    from_keypath: str | None = None


def var(name: str) -> DimVar:
    """A dimension variable.

    Args:
      name: Variables of one name have one size.

    Returns:
      The variable; expand it with `*` or `**` to stand for several axes.

    Raises:
      TypeError: When `name` is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"var: the name must be a string; it is {name!r}.")
    return DimVar(name)


def vars_for_axes(
    var_name: str, axis_names_or_specs: Collection[Hashable] | Mapping[Hashable, int | None]
) -> dict[Hashable, DimVar | KnownDim]:
    """Named dimensions for a group of axes.

    Args:
      var_name: The group's variable.
      axis_names_or_specs: Axis names, or a mapping from names to sizes (None where unknown).

    Returns:
      A variable `(var_name, axis)` for each axis, with its size where that is known.

    Raises:
      TypeError: For a single string, whose letters would be taken for axes.
    """
    if isinstance(axis_names_or_specs, str):
        raise TypeError(
            f"vars_for_axes: axis names must be a collection; it is the string "
            f"{axis_names_or_specs!r}. Write [{axis_names_or_specs!r}]."
        )
    if isinstance(axis_names_or_specs, Mapping):
        sizes: Mapping[Hashable, int | None] = axis_names_or_specs
    else:
        sizes = dict.fromkeys(axis_names_or_specs)
    return {
        axis: DimVar((var_name, axis))
        if size is None
        else KnownDim((var_name, axis), operator.index(size))
        for axis, size in sizes.items()
    }
