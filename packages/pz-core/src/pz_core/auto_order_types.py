"""Ordering across types, so that instances can be dictionary keys of a pytree.

JAX sorts the keys of a dictionary. Keys of several classes sort only if the classes agree on an
order; those that mix in `AutoOrderedAcrossTypes` do.

>>> import dataclasses
>>> @dataclasses.dataclass(frozen=True)
... class Row(AutoOrderedAcrossTypes):
...     index: int
>>> @dataclasses.dataclass(frozen=True)
... class Column(AutoOrderedAcrossTypes):
...     index: int
>>> sorted([Row(1), Column(2), "name", Row(0)])
['name', Column(index=2), Row(index=0), Row(index=1)]
"""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["AutoOrderedAcrossTypes"]


def _type_key(value: Any) -> tuple[str, str, int]:
    kind = type(value)
    return kind.__qualname__, kind.__module__, id(kind)


def _compare(a: Any, b: Any) -> int:
    """Returns -1, 0 or 1: a total order on any values, numbers and texts in their natural one."""
    if type(a) is type(b) and isinstance(a, tuple):
        return _compare_all(a, b)
    if type(a) is not type(b):
        key_a, key_b = _type_key(a), _type_key(b)
        return -1 if key_a < key_b else 1
    if a == b:
        return 0
    try:
        return -1 if a < b else 1
    except TypeError:
        return -1 if repr(a) < repr(b) else 1


def _compare_all(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    for x, y in zip(a, b, strict=False):
        order = _compare(x, y)
        if order:
            return order
    return (len(a) > len(b)) - (len(a) < len(b))


class AutoOrderedAcrossTypes:
    """Mix-in that orders instances of all its subclasses, and after any `str` or `tuple`.

    Subclasses are dataclasses with `eq=True, order=False`. The order is by class, then by the
    values of the fields; it is consistent within one process, nothing more is promised.
    """

    def _compare_with(self, other: Any) -> int | None:
        if isinstance(other, str | tuple):
            return 1
        if not isinstance(other, AutoOrderedAcrossTypes):
            return None
        if type(self) is not type(other):
            return -1 if _type_key(self) < _type_key(other) else 1
        return _compare_all(_compared_values(self), _compared_values(other))

    def __lt__(self, other: Any) -> bool:
        order = self._compare_with(other)
        return NotImplemented if order is None else order < 0

    def __le__(self, other: Any) -> bool:
        order = self._compare_with(other)
        return NotImplemented if order is None else order <= 0

    def __gt__(self, other: Any) -> bool:
        order = self._compare_with(other)
        return NotImplemented if order is None else order > 0

    def __ge__(self, other: Any) -> bool:
        order = self._compare_with(other)
        return NotImplemented if order is None else order >= 0


def _compared_values(value: Any) -> tuple[Any, ...]:
    if not dataclasses.is_dataclass(value):
        raise AssertionError(
            f"AutoOrderedAcrossTypes orders dataclasses, but {type(value).__qualname__} is none. "
            f"Decorate it with `@dataclasses.dataclass(frozen=True)`."
        )
    return tuple(getattr(value, f.name) for f in dataclasses.fields(value) if f.compare)
