"""Rows of unequal length in one array: padding, and the positions that make it harmless.

One idea: padding never takes a position. A real token's position counts the real tokens before
it, padding has position -1, and masks and position embeddings look at positions only; so a row
gives the same results padded on either side, or not at all.

    tokens, positions = pad_rows([[5, 6, 7], [8]], side="left")
    logits = model(tokens, token_positions=positions)     # {batch, seq, vocabulary}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from pz_named import named_axes as nx

__all__ = ["pad_rows", "positions_of"]


def positions_of(is_real: nx.NamedArrayBase) -> nx.NamedArrayBase:
    """Position of every token among the real ones of its row; -1 at padding.

    Args:
      is_real: Booleans, {seq} and any batch axes; False at padding, wherever it stands.

    Returns:
      int32 of the same named shape.
    """

    def of_row(real: jax.Array) -> jax.Array:
        return jnp.where(real, jnp.cumsum(real, dtype=jnp.int32) - 1, -1)

    positions: nx.NamedArrayBase = nx.nmap(of_row)(is_real.untag("seq")).tag("seq")
    return positions


def pad_rows(
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int = -1,
    side: Literal["left", "right"] = "right",
    length: int | None = None,
) -> tuple[nx.NamedArray, nx.NamedArray]:
    """Puts rows of token ids into one array.

    Args:
      rows: The rows; at least one, and none longer than `length`.
      pad_id: What stands at padding; by default -1, which is no token. It may be a real one as
        well: positions mark padding, not ids.
      side: Where padding goes.
      length: Length of the padded rows; by default that of the longest.

    Returns:
      Tokens and their positions, int32 {batch, seq}.

    Raises:
      ValueError: There are no rows, one does not fit, or the side is unknown.
    """
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if not rows or longest > length or side not in ("left", "right"):
        raise ValueError(
            "pad_rows: needs one row at least, none longer than length, and side 'left' or"
            f" 'right'; received {len(rows)} rows, the longest of {longest} tokens,"
            f" length={length}, side={side!r}."
        )
    tokens = np.full((len(rows), length), pad_id, np.int32)
    positions = np.full((len(rows), length), -1, np.int32)
    for index, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        tokens[index, start : start + len(row)] = row
        positions[index, start : start + len(row)] = np.arange(len(row))
    axes = ("batch", "seq")
    return nx.wrap(jnp.asarray(tokens), *axes), nx.wrap(jnp.asarray(positions), *axes)
