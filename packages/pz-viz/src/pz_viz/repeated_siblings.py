"""Repeated siblings are drawn once or twice and counted.

A model of 10,000 equal layers reads like one of ten: in a long list, tuple or dict the middle of
a run of siblings of the same classes becomes one note that says how many there are and where.

    with folding(None):        # draw every sibling
        pz_viz.show(model)

Selected nodes are always drawn, up to `MOST_FORCED` in one container; the note counts the rest.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
from treescope import rendering_parts

from pz_core.struct import Struct
from pz_core.variables import AbstractVariable
from pz_named.named_axes import NamedArrayBase
from pz_viz._markup import visible

__all__ = ["folding"]

MOST_FORCED = 20
"""The most selected children of one container that are drawn although they repeat."""

_LONGEST_PERIOD = 6


@dataclasses.dataclass(frozen=True)
class TreeLimits:
    """How much of a tree is drawn.

    Attributes:
      run: The shortest run of repeated siblings that is folded; None folds nothing.
      children: The most children of one container that are drawn, repeated or not.
      levels: Structs nested deeper are named, not drawn: treescope recurses, Python has a limit.
      nodes: The most structs and variables below one outermost struct, where anything is folded.
    """

    run: int | None = 8
    children: int = 60
    levels: int = 24
    nodes: int = 3000


_limits: contextvars.ContextVar[TreeLimits] = contextvars.ContextVar(
    "pz_viz_tree_limits",
    default=TreeLimits(),  # noqa: B039  frozen
)


def tree_limits() -> TreeLimits:
    """The limits in force."""
    return _limits.get()


_text = rendering_parts.text
_fold = rendering_parts.fold_condition
_COMMA = rendering_parts.siblings(",", _fold(collapsed=_text(" ")))
_LAST_COMMA = _fold(expanded=_text(","))


@dataclasses.dataclass(frozen=True)
class ShownPaths:
    """The paths that a selection wants to be seen, while it is drawn.

    Attributes:
      ancestors: Every selected path and every path that leads to one.
      folded: Filled in while drawing: paths of children that were counted, not drawn.
    """

    ancestors: Collection[str]
    folded: set[str]


shown_paths: contextvars.ContextVar[ShownPaths | None] = contextvars.ContextVar(
    "pz_viz_shown_paths", default=None
)


@contextlib.contextmanager
def folding(limit: int | None) -> Iterator[None]:
    """Sets from how many repeated siblings on the middle ones are counted instead of drawn.

    Args:
      limit: The shortest run that is folded, at least 4; the default setting is 8. None folds
        nothing and draws containers of any length whole.

    Raises:
      ValueError: If the limit is below 4, where a fold would save nothing.
    """
    if limit is not None and limit < 4:
        raise ValueError(f"folding: limit={limit}; a run is folded from 4 on. Pass 4, or None.")
    with limited_to(dataclasses.replace(_limits.get(), run=limit)):
        yield


@contextlib.contextmanager
def limited_to(limits: TreeLimits | None) -> Iterator[None]:
    """Draws trees within the given limits; None leaves them as they are."""
    token = _limits.set(_limits.get() if limits is None else limits)
    try:
        yield
    finally:
        _limits.reset(token)


def _is_ours(child: Any) -> bool:
    return isinstance(child, (Struct, AbstractVariable, NamedArrayBase, jax.Array))


def _run_length(kinds: Sequence[type], start: int, period: int) -> int:
    """How many children from `start` on repeat the first `period` of them."""
    end = start + period
    while end < len(kinds) and kinds[end] is kinds[end - period]:
        end += 1
    return (end - start) // period * period


def folded_ranges(kinds: Sequence[type], limit: int) -> list[tuple[int, int, int]]:
    """Where runs of equal class patterns can be folded.

    Args:
      kinds: The children's classes.
      limit: The shortest run, in children, that is folded.

    Returns:
      Disjoint `(start, stop, period)` in order: children from `start` to `stop` (exclusive) repeat
      the `period` ones before them. The head and the last repetition of a run stay outside.

    >>> folded_ranges([int] * 10, 8)
    [(2, 9, 1)]
    >>> folded_ranges([int, str] * 5, 8)
    [(2, 8, 2)]
    """
    ranges, at = [], 0
    while at < len(kinds):
        longest = min(_LONGEST_PERIOD, (len(kinds) - at) // 3)
        lengths = [(_run_length(kinds, at, p), -p) for p in range(1, longest + 1)]
        length, period = max(lengths, default=(0, -1))
        period = -period
        if length >= limit and length >= 3 * period:
            head = max(2, period)
            ranges.append((at + head, at + length - period, period))
            at += length
        else:
            at += 1
    return ranges


def _hidden_ranges(children: Sequence[Any], paths: Sequence[str | None]) -> list[tuple[int, int]]:
    """Ranges of children that are counted, not drawn, once selected ones are taken out."""
    limits = _limits.get()
    if limits.run is None or not any(map(_is_ours, children)):
        return []
    ranges = [(a, b) for a, b, _ in folded_ranges([type(c) for c in children], limits.run)]
    shown = len(children) - sum(b - a for a, b in ranges)
    if shown > limits.children:
        ranges = [(limits.children - 2, len(children) - 2)]
    selected = shown_paths.get()
    if selected is None:
        return ranges
    forced = [i for a, b in ranges for i in range(a, b) if paths[i] in selected.ancestors]
    if len(forced) > MOST_FORCED:
        forced = [*forced[: MOST_FORCED - 2], *forced[-2:]]
    for i in forced:
        ranges = [
            part
            for a, b in ranges
            for part in ([(a, i), (i + 1, b)] if a <= i < b else [(a, b)])
            if part[0] < part[1]
        ]
    folded = [path for a, b in ranges for path in paths[a:b] if path is not None]
    selected.folded.update(path for path in folded if path in selected.ancestors)
    return ranges


def _note(children: Sequence[Any], names: Sequence[str], start: int, stop: int, paths: Any) -> Any:
    """The line that stands for the children from `start` to `stop`."""
    kinds = list(dict.fromkeys(type(child).__name__ for child in children[start:stop]))
    what = kinds[0] if len(kinds) == 1 else f"items ({', '.join(kinds[:4])})"
    where = names[start] if stop - start == 1 else f"{names[start]} … {names[stop - 1]}"
    selected = shown_paths.get()
    if selected is not None:
        inside = sum(path in selected.ancestors for path in paths[start:stop])
        where += f"; {inside} with selected parts" if inside else ""
    words = f"… {stop - start:_} more {what}: {where}"
    return rendering_parts.siblings(
        _fold(collapsed=rendering_parts.comment_color(_text(f"<{words}>"))),
        _fold(expanded=rendering_parts.comment_color(_text(f"# {words}"))),
        _fold(collapsed=_text(", ")) if stop < len(children) else rendering_parts.empty_part(),
    )


def _lines(
    children: Sequence[Any], names: Sequence[str], paths: Sequence[str | None], draw: Any
) -> list[Any] | None:
    """One line per child or note; None if nothing is folded."""
    hidden = _hidden_ranges(children, paths)
    if not hidden:
        return None
    stops = dict(hidden)
    lines, at = [], 0
    while at < len(children):
        if at in stops:
            lines.append(_note(children, names, at, stops[at], paths))
            at = stops[at]
            continue
        comma = _COMMA if at < len(children) - 1 else _LAST_COMMA
        lines.append(rendering_parts.build_full_line_with_annotations(draw(at), comma))
        at += 1
    return lines


def _joined(path: str | None, name: str) -> str | None:
    return None if path is None else f"{path}{name}"


def handle_sequence(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of exact lists and tuples; steps aside where nothing is folded."""
    if type(node) not in (list, tuple):
        return NotImplemented
    names = [f"[{i}]" for i in range(len(node))]
    paths = [_joined(path, name) for name in names]
    lines = _lines(node, names, paths, lambda i: subtree_renderer(node[i], path=paths[i]))
    if lines is None:
        return NotImplemented
    opening, closing = "[]" if type(node) is list else "()"
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=opening,
        children=lines,
        suffix=closing,
        path=path,
        child_type_single_and_plural=("element", "elements"),
    )


def handle_dict(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of exact dicts; steps aside where nothing is folded."""
    if type(node) is not dict:
        return NotImplemented
    keys, values = list(node), list(node.values())
    names = [f"[{visible(repr(key))}]" for key in keys]
    paths = [_joined(path, f"[{key!r}]") for key in keys]

    def draw(i: int) -> Any:
        return rendering_parts.siblings_with_annotations(
            f"{visible(repr(keys[i]))}: ", subtree_renderer(values[i], path=paths[i])
        )

    lines = _lines(values, names, paths, draw)
    if lines is None:
        return NotImplemented
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix="{",
        children=lines,
        suffix="}",
        path=path,
        child_type_single_and_plural=("item", "items"),
    )
