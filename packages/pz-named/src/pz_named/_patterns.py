"""The parser of `rearrange` patterns: text → terms of both sides, checked against the names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pz_named._layout import near_misses
from pz_named.axis_names import AxisName

__all__ = ["Group", "parse_pattern"]


class Group(NamedTuple):
    """`(name: parts)`, an axis that is split (left) or merged (right)."""

    name: str
    parts: tuple[str, ...]


_TOKEN = re.compile(r"\s*(?:\(\s*([^\s():]+)\s*:([^():]*)\)|(\.\.\.)|([^\s():.]+))")


def _terms(side: str, pattern: str) -> list[Any]:
    terms: list[Any] = []
    position = 0
    side = side.rstrip()
    while position < len(side):
        match = _TOKEN.match(side, position)
        if match is None:
            raise ValueError(
                f"rearrange: cannot read {side[position:].strip()!r} in {pattern!r}; a side consists "
                "of names, '...', and groups such as (token: row column)."
            )
        group, parts, ellipsis, name = match.groups()
        if group is not None:
            terms.append(Group(group, tuple(parts.split())))
        else:
            terms.append(Ellipsis if ellipsis else name)
        position = match.end()
    return terms


def _flat(terms: Sequence[Any]) -> list[Any]:
    """The elementary names of a side."""
    names: list[Any] = []
    for term in terms:
        names += term.parts if isinstance(term, Group) else [term]
    return names


def parse_pattern(pattern: str, names: Sequence[AxisName]) -> tuple[list[Any], list[Any]]:
    """Reads a pattern.

    Args:
      pattern: `left -> right`.
      names: The names of the array.

    Returns:
      The terms of both sides, names and `Group`s, with `...` replaced by what it stands for.

    Raises:
      ValueError: When the pattern is malformed or does not fit the names.
    """
    sides = pattern.split("->")
    if len(sides) != 2:
        raise ValueError(
            f"rearrange: a pattern has one '->' between its two sides; it is {pattern!r}."
        )
    left, right = (_terms(side, pattern) for side in sides)
    if left.count(...) != right.count(...) or left.count(...) > 1:
        raise ValueError(
            f"rearrange: '...' must be on both sides of {pattern!r}, once, or on none."
        )
    listed = [term.name if isinstance(term, Group) else term for term in left]
    for name in listed:
        if name is not ... and name not in names:
            raise ValueError(
                f"rearrange: {name!r} on the left of {pattern!r} is no name of the array. "
                + near_misses(name, names)
            )
    others = [name for name in names if name not in listed]
    if others and ... not in left:
        raise ValueError(
            f"rearrange: the left of {pattern!r} must list all names; {others!r} are missing. List "
            "them, or write '...' on both sides."
        )
    left, right = _filled(left, others), _filled(right, others)
    _check_same(pattern, _flat(left), _flat(right))
    return left, right


def _filled(terms: list[Any], others: Sequence[AxisName]) -> list[Any]:
    if ... not in terms:
        return terms
    place = terms.index(...)
    return [*terms[:place], *others, *terms[place + 1 :]]


def _check_same(pattern: str, left: list[Any], right: list[Any]) -> None:
    for side, names in (("left", left), ("right", right)):
        twice = [name for index, name in enumerate(names) if name in names[:index]]
        if twice:
            raise ValueError(f"rearrange: {twice!r} are twice on the {side} of {pattern!r}.")
    lost = [name for name in left if name not in right]
    new = [name for name in right if name not in left]
    if lost or new:
        raise ValueError(
            f"rearrange: both sides of {pattern!r} must have the same elementary names; only on the "
            f"left: {lost!r}, only on the right: {new!r}. To drop or add axes use squeeze, sum, "
            "or expand."
        )
