"""Side inputs of attention masks: positions of queries and keys, with their axes named apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pz_named import named_axes as nx
from pz_nn._side_inputs import required


def named_side_input(
    layer: Any, side_inputs: Mapping[str, Any], name: str, axis: str | None = None
) -> Any:
    """A side input that must be a named array, and have `axis` if one is given.

    Raises:
        KeyError: If it is missing.
        TypeError: If it is no named array.
        ValueError: If it lacks the axis.
    """
    user = type(layer).__name__
    value = required(dict(side_inputs), name, user)
    if not nx.is_namedarray(value):
        raise TypeError(
            f"{user}: side input {name!r} must be a named array, but is a {type(value).__name__}. Name "
            "its axes: wrap(array, 'seq', ...)."
        )
    if axis is not None and axis not in value.named_shape:
        raise ValueError(
            f"{user}: side input {name!r} must have the axis {axis!r}, but has "
            f"named_shape={value.named_shape}. Name its token axis {axis!r}, or give the mask another "
            "seq_axis."
        )
    return value


def key_positions(mask: Any, side_inputs: Mapping[str, Any]) -> Any:
    """Positions of the keys, `mask.seq_axis` renamed `mask.kv_seq_axis`."""
    key = named_side_input(mask, side_inputs, mask.kv_positions_input_name, mask.seq_axis)
    return key.untag(mask.seq_axis).tag(mask.kv_seq_axis)


def query_and_key_positions(mask: Any, side_inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Positions of the queries, along `mask.seq_axis`, and of the keys, along `mask.kv_seq_axis`."""
    query = named_side_input(mask, side_inputs, mask.query_positions_input_name, mask.seq_axis)
    return query, key_positions(mask, side_inputs)
