"""Pairing a value with a pattern, container by container."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from pz_named.array_specs import ArraySpec, Wildcard
from pz_named.arrays import is_namedarray

__all__ = ["Pair", "briefly", "pairs_of"]


class Pair(NamedTuple):
    """A leaf of the pattern and what stands there; `problem` where the containers differ."""

    path: str
    value: Any
    pattern: Any
    problem: str | None = None


def _is_pattern_leaf(node: Any) -> bool:
    return isinstance(node, (ArraySpec, Wildcard)) or is_namedarray(node)


def _children(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The children of a container with their key paths, and its structure one level deep."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)


def pairs_of(value: Any, pattern: Any, path: tuple[Any, ...] = ()) -> Iterator[Pair]:
    """Walks both trees together.

    Args:
      value: The tree to check.
      pattern: The pattern, which may end above the value's leaves.
      path: Where both stand.

    Yields:
      One pair for each leaf of the pattern, and one with a `problem` where containers differ.
    """
    text = "root" + jax.tree_util.keystr(path)
    if _is_pattern_leaf(pattern):
        yield Pair(text, value, pattern)
        return
    wanted, wanted_structure = _children(pattern)
    if wanted_structure == _LEAF:
        yield Pair(text, value, pattern)
        return
    found, found_structure = ([], None) if is_namedarray(value) else _children(value)
    if found_structure is not None and found_structure == wanted_structure:
        for (key, child), (_, child_pattern) in zip(found, wanted, strict=True):
            yield from pairs_of(child, child_pattern, (*path, *key))
        return
    yield Pair(text, value, pattern, _difference(value, pattern, found, wanted))
    if type(value) is type(pattern):  # what can be paired is checked all the same
        by_key = {jax.tree_util.keystr(key): child for key, child in found}
        for key, child_pattern in wanted:
            if (name := jax.tree_util.keystr(key)) in by_key:
                yield from pairs_of(by_key[name], child_pattern, (*path, *key))


_LEAF = jax.tree_util.tree_structure(0)


def _difference(value: Any, pattern: Any, found: list[Any], wanted: list[Any]) -> str:
    """Why two containers are not alike."""
    if type(value) is not type(pattern):
        return f"expected {type(pattern).__name__}, found {briefly(value)}"
    keys_found = [jax.tree_util.keystr(key) for key, _ in found]
    keys_wanted = [jax.tree_util.keystr(key) for key, _ in wanted]
    missing = [key for key in keys_wanted if key not in keys_found]
    extra = [key for key in keys_found if key not in keys_wanted]
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unexpected {', '.join(extra)}"] if extra else []
    if not parts:
        parts = ["the static data of the two differs"]
    return f"{type(pattern).__name__} of another structure: {'; '.join(parts)}"


def briefly(value: Any) -> str:
    """A value for a message: its type, shape and dtype, or a short text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
