"""What changes attention logits or weights besides masks: linear biases and learned sinks.

Sequential([einsum, ApplyALiBi(alibi_slopes({"heads": 8})), mask, Softmax("kv_seq")])
Sequential([einsum, mask, SoftmaxWithSink("kv_seq", sink_logits)])
"""

from __future__ import annotations

import abc
import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn._attention_positions import query_and_key_positions
from pz_nn._axes import axis_indices, broadcast_against, move_to_end, names_and_data
from pz_nn._dtypes import upcast
from pz_nn.initializers import zero_initializer
from pz_nn.layer import Layer
from pz_nn.parameters import ParameterLike, make_parameter

__all__ = ["ApplyALiBi", "ApplyAttentionBias", "SoftmaxWithSink", "alibi_slopes"]


def alibi_slopes(head_axes: dict[str, int]) -> nx.NamedArray:
    """The slopes of ALiBi: a geometric sequence over the heads.

    For n heads, n a power of two, head i has the slope 2^(-8 (i + 1) / n). For other n the slopes of the
    next smaller power of two are followed by every second slope of the next larger one.

    Args:
        head_axes: Axes of the heads and their sizes; heads are counted with the last axis fastest.

    Returns:
        The slopes, a named array with these axes, float32.

    Raises:
        ValueError: If there is no head.

    >>> alibi_slopes({"heads": 4}).unwrap("heads").tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    heads = math.prod(head_axes.values())
    if heads < 1:
        raise ValueError(
            f"alibi_slopes: there must be at least one head, but head_axes={head_axes}. Give each axis a "
            "size of at least 1."
        )
    base = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / base) for i in range(base)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / base) for i in range(heads - base)]
    return nx.wrap(jnp.array(slopes).reshape(tuple(head_axes.values())), *head_axes)


class ApplyAttentionBias(Layer):
    """Base of the layers that add to attention logits what does not depend on them: y = logits + bias.

    A subclass says in `bias` what is added.
    """

    @abc.abstractmethod
    def bias(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """What is added.

        Args:
            side_inputs: The side inputs of the call.

        Returns:
            A floating named array; axes it lacks are broadcast.
        """

    @typing.final
    def __call__(self, logits: Any, /, **side_inputs: Any) -> nx.NamedArrayBase:
        """Adds the bias.

        Args:
            logits: Named array with the axes of the heads, of queries and of keys.
            **side_inputs: What `bias` reads.

        Returns:
            The logits with the bias, in their dtype and order.

        Raises:
            KeyError: If a side input that the bias reads is missing.
        """
        biased: nx.NamedArrayBase = logits + self.bias(side_inputs).astype(logits.dtype)
        return biased


@pytree_dataclass
class ApplyALiBi(ApplyAttentionBias):
    """Attention with linear biases: y = logits - slope · (q - k), q and k the positions.

    The further back a key, the lower its logit; nothing else tells the model about positions. Mask
    afterwards.

    Attributes:
        slopes: One slope for each head, a named array; see `alibi_slopes`.
        query_positions_input_name: Side input with the queries' positions, with the axis `seq_axis`.
        kv_positions_input_name: Side input with the keys' positions, also with the axis `seq_axis`.
        seq_axis: The axis of tokens.
        kv_seq_axis: The name that this axis has on the side of the keys, in the logits.

    Reference: Press et al., "Train Short, Test Long" (2022).
    """

    slopes: Any
    query_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    kv_positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    seq_axis: str = dataclasses.field(default="seq", metadata={"pytree_node": False})
    kv_seq_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def bias(self, side_inputs: Mapping[str, Any]) -> nx.NamedArrayBase:
        """-slope · (q - k), {..., heads, seq, kv_seq}, float32."""
        query, key = query_and_key_positions(self, side_inputs)
        biases: nx.NamedArrayBase = -self.slopes * (query - key).astype(jnp.float32)
        return biases


@pytree_dataclass
class SoftmaxWithSink(Layer):
    """Softmax with a learned extra logit s that takes part in the sum and is then dropped.

        y_j = exp(x_j) / (exp(s) + sum_k exp(x_k))

    A head can so attend to nothing: the weights of a row sum to less than one.

    Attributes:
        axis: The axis of the keys.
        sink_logits: Parameter with s, a named array with axes of the heads.
        compute_dtype: Lowest dtype to compute in; the result has the dtype of the input again.

    Reference: OpenAI, "gpt-oss model card" (2025); Miller, "Attention Is Off By One" (2023).
    """

    axis: str = dataclasses.field(metadata={"pytree_node": False})
    sink_logits: ParameterLike[nx.NamedArrayBase]
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __call__(self, logits: Any, /, **_side_inputs: Any) -> nx.NamedArray:
        """Computes the weights.

        Args:
            logits: Named array with `axis` and the axes of the sinks.

        Returns:
            Array of the same named shape and dtype, `axis` last.

        Raises:
            ValueError: If an axis is missing.
        """
        user = "SoftmaxWithSink"
        names, data = names_and_data(logits, user)
        (axis,) = axis_indices(names, (self.axis,), user)
        sink_names, sink = names_and_data(self.sink_logits.value, user)
        axis_indices(names, sink_names, user)
        data, result_dtype = upcast(data, self.compute_dtype)
        sink = broadcast_against(sink_names, sink.astype(data.dtype), names)
        highest = jax.lax.stop_gradient(jnp.maximum(data.max(axis, keepdims=True), sink))
        shifted = jnp.exp(data - highest)
        total = shifted.sum(axis, keepdims=True) + jnp.exp(sink - highest)
        return move_to_end(names, (shifted / total).astype(result_dtype), (self.axis,))

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        head_axes: dict[str, int],
        axis: str = "kv_seq",
        dtype: Any = jnp.float32,
    ) -> SoftmaxWithSink:
        """Builds the layer with sinks at 0.

        Args:
            name: Name of the layer; the parameter's label is `{name}.sink_logits`.
            init_base_rng: Key, or None for a slot.
            head_axes: Axes of the heads and their sizes.
            axis: The axis of the keys.
            dtype: Dtype of the parameter.

        Returns:
            The layer.
        """
        sinks = make_parameter(
            f"{name}.sink_logits",
            init_base_rng,
            zero_initializer,
            input_axes={},
            output_axes=head_axes,
            parallel_axes={},
            convolution_spatial_axes={},
            dtype=dtype,
        )
        return cls(axis, sinks)
