"""What an error about a selection says: its chain of steps, what was searched, what is near."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from pz_core._places import KeyPaths, Place, visit

__all__ = ["near_keypaths", "near_labels", "near_types", "path_text", "searched_text"]

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
