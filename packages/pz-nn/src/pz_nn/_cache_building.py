"""Building the caching form of an attention layer: its parts, and empty caches beside them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from pz_core.variables import StateVariable
from pz_named import named_axes as nx
from pz_nn.layer_stack import LayerStackVarBehavior


def cached_fields(
    user: str,
    original: Any,
    sequence: tuple[str, int],
    cached_axes: Mapping[Any, int],
    value_axes: Mapping[Any, int] | None,
    layerstack_axes: Mapping[Any, int] | None,
    cache_end_index_key: Hashable,
    dtype: Any,
    label: Hashable | None,
) -> dict[str, Any]:
    """The fields that all caching forms of an attention layer have: its parts and empty caches.

    Args:
        user: The call that builds the layer, for messages.
        original: The layer without a cache.
        sequence: Name of the token axis and capacity.
        cached_axes: Other axes of the keys.
        value_axes: Other axes of the values; None for those of the keys.
        layerstack_axes: Axes of layer stacks, outermost first.
        cache_end_index_key: Name of the side input with the index of the end.
        dtype: Dtype of keys and values.
        label: Label of the variable; None for one made up.

    Raises:
        ValueError: If an axis is given twice.
    """
    values = cached_axes if value_axes is None else value_axes
    return {
        "input_to_query": original.input_to_query,
        "input_to_key": original.input_to_key,
        "input_to_value": original.input_to_value,
        "query_key_to_attn": original.query_key_to_attn,
        "attn_value_to_output": original.attn_value_to_output,
        "sequence_axis": sequence[0],
        "kv_cache_end_index_key": cache_end_index_key,
        "kv_cache": empty_cache(
            user, sequence, cached_axes, values, layerstack_axes or {}, dtype, label
        ),
    }


def empty_cache(
    user: str,
    sequence: tuple[str, int],
    key_axes: Mapping[Any, int],
    value_axes: Mapping[Any, int],
    stack_axes: Mapping[Any, int],
    dtype: Any,
    label: Hashable | None,
) -> StateVariable[Any]:
    """A state variable with caches of zeros.

    Axes of layer stacks come first, so that the part of a layer is contiguous. The token axis is the
    last in the keys and the one before the last in the values: laid out like this, both products of
    attention read the caches without a copy.

    Args:
        user: The call that builds the layer, for messages.
        sequence: Name of the token axis and capacity.
        key_axes: Other axes of the keys.
        value_axes: Other axes of the values.
        stack_axes: Axes of layer stacks, outermost first.
        dtype: Dtype of both.
        label: Label of the variable; None for one made up.

    Raises:
        ValueError: If an axis is given twice.
    """
    axis, capacity = sequence
    for given in (key_axes, value_axes):
        if both := (set(stack_axes) & set(given)) | ({axis} & {*stack_axes, *given}):
            raise ValueError(
                f"{user}: each axis may be given once, but {sorted(both)} are "
                f"given twice: sequence_axis={axis!r}, cached axes={dict(given)}, layerstack_axes="
                f"{dict(stack_axes)}. Leave token axis and stack axes out of cached_axes."
            )
    metadata: dict[Any, Any] = {}
    if stack_axes:
        metadata["layerstack_axes"] = dict.fromkeys(stack_axes, LayerStackVarBehavior.PER_LAYER)
    key_shape = {**stack_axes, **key_axes, axis: capacity}
    value_shape = {**stack_axes, **_before_last(value_axes, axis, capacity)}
    caches = (nx.zeros(key_shape, dtype), nx.zeros(value_shape, dtype))
    return StateVariable(caches, label=label, metadata=metadata)


def _before_last(axes: Mapping[Any, int], axis: str, size: int) -> dict[Any, int]:
    items = list(axes.items())
    return dict([*items[:-1], (axis, size), *items[-1:]])
