"""Masks between two axes of positions, such as queries and keys.

Example:
    >>> import pz_named as nx
    >>> nx.causal_mask({"query": 2, "key": 3}).unwrap("query", "key").tolist()
    [[True, False, False], [True, True, False]]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pz_named.axis_names import AxisName
from pz_named.creation import arange, checked_sizes, full

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["band_mask", "causal_mask"]


def _positions(
    what: str, named_shape: Mapping[AxisName, int], offset: Any
) -> tuple[NamedArrayBase, NamedArrayBase]:
    """The positions of queries and of keys."""
    sizes = checked_sizes(what, named_shape)
    if len(sizes) != 2:
        raise ValueError(
            f"{what}: named_shape needs two axes, of queries and of keys; it is {sizes!r}."
        )
    (query, query_size), (key, key_size) = sizes.items()
    queries: NamedArrayBase = arange(query, query_size)
    if not (isinstance(offset, int) and offset == 0):
        queries = queries + offset
    return queries, arange(key, key_size)


def causal_mask(named_shape: Mapping[AxisName, int], *, offset: Any = 0) -> NamedArrayBase:
    """True where the key is not later than the query.

    Args:
      named_shape: Two names with sizes: of queries, then of keys.
      offset: The position of the first query; it may be traced or named.

    Returns:
      A boolean array, true where `key <= query + offset`.

    Raises:
      ValueError: When there are not two names.
    """
    queries, keys = _positions("causal_mask", named_shape, offset)
    return queries >= keys


def band_mask(
    named_shape: Mapping[AxisName, int],
    *,
    before: Any = None,
    after: Any = None,
    offset: Any = 0,
) -> NamedArrayBase:
    """True where the key is near the query.

    Args:
      named_shape: Two names with sizes: of queries, then of keys.
      before: How many keys before the query's position it sees; None for all.
      after: How many keys after it; None for all. 0 makes the mask causal.
      offset: The position of the first query. All three may be traced or named.

    Returns:
      A boolean array, true where `query + offset - before <= key <= query + offset + after`.

    Raises:
      ValueError: When there are not two names.

    Example:
        >>> import pz_named as nx
        >>> nx.band_mask({"query": 2, "key": 3}, before=0, after=1).unwrap("query", "key").tolist()
        [[True, True, False], [False, True, True]]
    """
    queries, keys = _positions("band_mask", named_shape, offset)
    mask: NamedArrayBase = full(named_shape, True)
    if before is not None:
        mask = mask & (queries - before <= keys)
    if after is not None:
        mask = mask & (queries + after >= keys)
    return mask
