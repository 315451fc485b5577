"""Random keys and samples with named shapes."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pz_named.arrays import NamedArrayBase, is_namedarray, wrap
from pz_named.axis_names import AxisName
from pz_named.creation import checked_sizes
from pz_named.lifting import nmap

__all__ = ["random_split"]


def _in_split_order(
    named_shape: Mapping[AxisName, int] | Sequence[tuple[AxisName, int]],
) -> dict[AxisName, int]:
    if isinstance(named_shape, collections.OrderedDict):
        return dict(named_shape)
    if isinstance(named_shape, Mapping):
        try:
            return {name: named_shape[name] for name in sorted(named_shape)}  # type: ignore[type-var]
        except TypeError as exc:
            raise ValueError(
                "random_split: the order of axes decides which key goes where, and the names "
                f"{list(named_shape)!r} cannot be sorted. Give an OrderedDict or a sequence of "
                "pairs instead."
            ) from exc
    pairs = [tuple(pair) for pair in named_shape]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            "random_split: named_shape must be a mapping or a non-empty sequence of (name, size) "
            f"pairs; it is {named_shape!r}."
        )
    return dict(pairs)  # type: ignore[arg-type]


def random_split(
    key: Any, named_shape: Mapping[AxisName, int] | Sequence[tuple[AxisName, int]]
) -> NamedArrayBase:
    """Splits a random key into keys along new named axes.

    Args:
      key: A typed or raw key, or a named array of keys.
      named_shape: Sizes by name. The order decides which key goes where: that of an `OrderedDict`
        or a sequence of pairs as given, that of any other mapping sorted by name.

    Returns:
      The keys: names of `key`, then the new ones. Raw keys keep their positional axis of size 2.

    Raises:
      ValueError: For names that `key` has already, or a plain mapping whose names do not sort.
    """
    sizes = checked_sizes("random_split", _in_split_order(named_shape))
    keys = key if is_namedarray(key) else wrap(key)
    overlap = [name for name in sizes if name in keys.named_shape]
    if overlap:
        raise ValueError(
            f"random_split: the key has the axes {overlap!r} already; its named_shape is "
            f"{keys.named_shape!r}. Choose other names."
        )
    count = math.prod(sizes.values())

    def split(one: Any) -> Any:
        result = jax.random.split(one, count)
        return result.reshape((*sizes.values(), *result.shape[1:]))

    split_keys: NamedArrayBase = nmap(split)(keys)
    return split_keys.tag_prefix(*sizes)
