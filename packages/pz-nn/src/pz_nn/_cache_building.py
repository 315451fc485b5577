"""Building the caching form of an attention layer: its parts, and empty caches beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from pz_core.variables import StateVariable
from pz_named import named_axes as nx
from pz_nn.layer_stack import LayerStackVarBehavior


def attention_parts(layer: Any) -> dict[str, Any]:
    """The five parts of an attention layer, by field."""
    return {
        "input_to_query": layer.input_to_query,
        "input_to_key": layer.input_to_key,
        "input_to_value": layer.input_to_value,
        "query_key_to_attn": layer.query_key_to_attn,
        "attn_value_to_output": layer.attn_value_to_output,
    }


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Names and sizes of the axes of a key/value cache.

    Axes of layer stacks come first, so that the part of a layer is contiguous. The token axis is the
    last in the keys and the one before the last in the values: laid out like this, both products of
    attention read the caches without a copy.

    Attributes:
        axis: The token axis.
        capacity: Its size.
        key_axes: Other axes of the keys.
        value_axes: Other axes of the values; None for those of the keys.
        stack_axes: Axes of layer stacks, outermost first; None for none.
        dtype: Dtype of keys and values.
    """

    axis: str
    capacity: int
    key_axes: Mapping[Any, int]
    value_axes: Mapping[Any, int] | None
    stack_axes: Mapping[Any, int] | None
    dtype: Any

    def empty(self, user: str, label: Hashable | None) -> StateVariable[Any]:
        """A state variable with caches of zeros.

        Args:
            user: The call that builds the layer, for messages.
            label: Label of the variable; None for one made up.

        Raises:
            ValueError: If an axis is given twice.
        """
        key_axes, stack_axes = dict(self.key_axes), dict(self.stack_axes or {})
        value_axes = key_axes if self.value_axes is None else dict(self.value_axes)
        for given in (key_axes, value_axes):
            if both := (set(stack_axes) & set(given)) | ({self.axis} & {*stack_axes, *given}):
                raise ValueError(
                    f"{user}: each axis may be given once, but {sorted(both)} are given twice: "
                    f"sequence_axis={self.axis!r}, cached axes={given}, layerstack_axes={stack_axes}. "
                    "Leave token axis and stack axes out of cached_axes."
                )
        metadata: dict[Any, Any] = {}
        if stack_axes:
            metadata["layerstack_axes"] = dict.fromkeys(stack_axes, LayerStackVarBehavior.PER_LAYER)
        key_shape = {**stack_axes, **key_axes, self.axis: self.capacity}
        values = list(value_axes.items())
        value_shape = {
            **stack_axes,
            **dict(values[:-1]),
            self.axis: self.capacity,
            **dict(values[-1:]),
        }
        caches = (nx.zeros(key_shape, self.dtype), nx.zeros(value_shape, self.dtype))
        return StateVariable(caches, label=label, metadata=metadata)
