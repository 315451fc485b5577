"""Patterns that match key paths, such as `body.sublayers[*].**.query`.

A pattern is a row of steps:

    .name      an attribute; `*` and `?` in the name match any characters, any one character
    [3] [-1]   an item of a sequence by index (negative: from the end), or an integer key
    [1:4]      a slice of a sequence
    ["name"]   a dictionary key; `*` and `?` as above; the quotes may be single ones
    [*]        any item of any container
    **         any number of steps of any kind, also none

The dot before the first step may be left out, and so may that before `**`.

>>> from pz_core.selectors import select
>>> select({"a": [1, 2], "b": [3]}).at_path_pattern("**[0]").get_sequence()
(1, 3)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from pz_core._nodes import children_of, keys_of
from pz_core._places import Place
from pz_core._wildcards import compile_wildcards
from pz_core.tree_util import CustomGetAttrKey

__all__ = ["PathPattern", "PathPatternError"]


class PathPatternError(ValueError):
    """A path pattern that cannot be read.

        select(model).at_path("body..query")  # error at position 5: two dots

    Repair: `body.query`, or `body.**.query` for any steps between.
    """


@dataclasses.dataclass(frozen=True)
class _Attribute:
    name: re.Pattern[str]

    def matches(self, key: Any, index: int, count: int) -> bool:
        if isinstance(key, jax.tree_util.GetAttrKey | CustomGetAttrKey):
            return self.name.match(str(key.name)) is not None
        return False


@dataclasses.dataclass(frozen=True)
class _Key:
    name: re.Pattern[str]

    def matches(self, key: Any, index: int, count: int) -> bool:
        return (
            isinstance(key, jax.tree_util.DictKey)
            and isinstance(key.key, str)
            and self.name.match(key.key) is not None
        )


@dataclasses.dataclass(frozen=True)
class _Items:
    items: slice

    def matches(self, key: Any, index: int, count: int) -> bool:
        return _is_index(key) and index in range(*self.items.indices(count))


@dataclasses.dataclass(frozen=True)
class _Item:
    """One item of a sequence, or a dictionary's integer key."""

    number: int

    def matches(self, key: Any, index: int, count: int) -> bool:
        if isinstance(key, jax.tree_util.DictKey):
            return type(key.key) is int and key.key == self.number
        return _is_index(key) and index == self.number + (count if self.number < 0 else 0)


@dataclasses.dataclass(frozen=True)
class _AnyItem:
    def matches(self, key: Any, index: int, count: int) -> bool:
        return _is_index(key) or isinstance(key, jax.tree_util.DictKey)


def _is_index(key: Any) -> bool:
    return isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey)


_ANY_STEPS = None
_Step = _Attribute | _Key | _Items | _Item | _AnyItem | None

_TOKEN = re.compile(
    r"""
    \.?(?P<any>\*\*)(?=[.\[]|$)
    | (?P<dot>\.?)(?P<name>[\w*?]+)
    | \[(?P<number>-?\d+)\]
    | \[(?P<slice>-?\d*:-?\d*(?::-?\d*)?)\]
    | \[(?P<quote>["'])(?P<key>.*?)(?P=quote)\]
    | \[(?P<star>\*)\]
    """,
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class PathPattern:
    """A pattern that was read.

    Attributes:
      text: The pattern.
      steps: Its steps; None for `**`.
    """

    text: str
    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Reads a pattern.

        Raises:
          PathPatternError: If it does not follow the grammar.
        """
        steps: list[_Step] = []
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None or (token["name"] and position and not token["dot"]):
                raise PathPatternError(
                    f"path pattern {text!r}: cannot read {text[position:]!r} at position "
                    f"{position}. A pattern is a row of steps such as .name, [3], [1:4], "
                    f'["key"], [*] and **; for example "body.sublayers[*].**.query".'
                )
            steps.append(_step(token))
            position = token.end()
        return cls(text, tuple(steps))

    def find(self, start: Place) -> list[Place]:
        """Returns the outermost places below (or at) `start` whose path from it matches."""
        found = []
        stack = [(start, self._closure({0}))]
        while stack:
            place, states = stack.pop()
            if len(self.steps) in states:
                found.append(place)
                continue
            children = children_of(place[2])
            if not children:
                continue
            keys = keys_of(place[2])
            below = []
            for index, child in enumerate(children):
                after = self._advance(states, keys[index], index, len(children))
                if after:
                    below.append(((place, index, child), after))
            stack.extend(reversed(below))
        return found

    def _closure(self, states: set[int]) -> frozenset[int]:
        """Adds the states that are reached by letting `**` match no step."""
        result = set(states)
        for state in sorted(states):
            while state < len(self.steps) and self.steps[state] is _ANY_STEPS:
                state += 1
                result.add(state)
        return frozenset(result)

    def _advance(self, states: frozenset[int], key: Any, index: int, count: int) -> frozenset[int]:
        after = set()
        for state in states:
            if state == len(self.steps):
                continue
            step = self.steps[state]
            if step is None:
                after.add(state)
            elif step.matches(key, index, count):
                after.add(state + 1)
        return self._closure(after)


def _step(token: re.Match[str]) -> _Step:
    if token["any"]:
        return _ANY_STEPS
    if token["name"]:
        return _Attribute(compile_wildcards(token["name"]))
    if token["number"]:
        return _Item(int(token["number"]))
    if token["slice"]:
        parts = [int(part) if part else None for part in token["slice"].split(":")]
        return _Items(slice(*parts))
    if token["star"]:
        return _AnyItem()
    return _Key(compile_wildcards(token["key"]))
