"""What an error about a selection says: its chain of steps, what was searched, what is near."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from pz_core._places import KeyPaths, Place, visit

__all__ = [
    "Step",
    "chain_text",
    "count_text",
    "near_keypaths",
    "near_labels",
    "near_types",
    "path_text",
    "searched_text",
    "where",
]

_MAX_VISITED = 20_000
_MAX_SHOWN = 3


def path_text(keypath: tuple[Any, ...]) -> str:
    """Returns a key path as text; the empty one is `root`."""
    return jax.tree_util.keystr(keypath) or "root"


def _visited(places: Sequence[Place]) -> Iterable[Place]:
    return itertools.islice(itertools.chain.from_iterable(map(visit, places)), _MAX_VISITED)


def _close(wanted: str, texts: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(wanted, list(texts), n=_MAX_SHOWN, cutoff=0.4)


def near_types(kinds: Any) -> Callable[[Sequence[Place]], str]:
    """Returns a function that names the types in a tree that look like the wanted ones."""

    def near(searched: Sequence[Place]) -> str:
        counts = Counter(type(place[2]).__qualname__ for place in _visited(searched))
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        found: list[str] = []
        for kind in wanted:
            name = getattr(kind, "__qualname__", str(kind))
            # Names such as `MyLinear` and `LinearV2` count as near however long they are.
            found += [other for other in counts if name.lower() in other.lower()]
            found += _close(name, counts)
        shown = list(dict.fromkeys(found))[:_MAX_SHOWN] or [n for n, _ in counts.most_common(3)]
        return "instances of " + ", ".join(f"{name} ({counts[name]})" for name in shown)

    return near


def near_keypaths(wanted: str) -> Callable[[Sequence[Place]], str]:
    """Returns a function that names the key paths in a tree that look like the wanted one."""

    def near(searched: Sequence[Place]) -> str:
        texts = []
        for start in searched:
            paths = KeyPaths(start)
            texts += [path_text(paths.of(place)) for place in itertools.islice(visit(start), 5000)]
        return ", ".join(_close(wanted, texts[:_MAX_VISITED]) or texts[:_MAX_SHOWN])

    return near


def near_labels(wanted: str) -> Callable[[Sequence[Place]], str]:
    """Returns a function that names the labels in a tree that look like the wanted one."""

    def near(searched: Sequence[Place]) -> str:
        labels = [str(p[2].label) for p in _visited(searched) if hasattr(p[2], "label")]
        return "labels " + ", ".join(_close(wanted, labels) or labels[:_MAX_SHOWN])

    return near


def searched_text(searched: Sequence[Place]) -> str:
    """Returns how many nodes a step searched, of which types, and where."""
    if not searched:
        return "nothing (the step before selected nothing)"
    counts = Counter(type(place[2]).__qualname__ for place in searched)
    types = ", ".join(f"{count} {name}" for name, count in counts.most_common(3))
    return f"{types}, the first at {path_text(KeyPaths().of(searched[0]))}"


def where(place: Place) -> str:
    """Returns the key path of a place as text."""
    return path_text(KeyPaths().of(place))


@dataclasses.dataclass(frozen=True)
class Step:
    """How a selection came about.

    Attributes:
      call: The method and its arguments.
      root: Place of the root of the tree.
      searched: The places that the method was called on.
      previous: How that selection came about; None for `select(tree)`.
      near: Says what in the searched places looks like what was asked for.
    """

    call: str
    root: Place
    searched: Sequence[Place]
    previous: Step | None
    near: Callable[[Sequence[Place]], str] | None = None


def chain_text(root: Place, step: Step | None) -> str:
    """Returns the calls that led to a selection."""
    calls = []
    while step is not None:
        calls.append(f".{step.call}")
        root, step = step.root, step.previous
    return f"select({type(root[2]).__qualname__}){''.join(reversed(calls))}"


def count_text(root: Place, step: Step | None, places: Sequence[Place], wanted: str) -> str:
    """Returns the message of an error about the number of selected nodes."""
    count = len(places)
    text = f"{chain_text(root, step)} must select {wanted}, it selects {count}."
    if count:
        shown = ", ".join(map(where, places[:_MAX_SHOWN]))
        return f"{text} They are at {shown}{', ...' if count > _MAX_SHOWN else ''}."
    while step is not None and not step.searched and step.previous is not None:
        step = step.previous  # back to the first step that found nothing
    if step is None:
        return text
    text += f" Searched by {step.call}: {searched_text(step.searched)}."
    return f"{text} Nearest there: {step.near(step.searched)}." if step.near else text
