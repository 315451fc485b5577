"""Linear layers with 8-bit integer weights, made from ordinary ones by an explicit conversion.

    small = quantize_linears(model)     # every Linear, or
    small = quantize_linears(select(model).at_instances_of(MLP))

Each column of the weights (one index of the output and parallel axes) has a scale of its own:
W ≈ q · s with q = round(W / s) in -127…127 and s = max|W| / 127. The product runs in the dtype of the input.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from pz_core.selectors import Selection, select
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, ParameterValue
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import axis_indices, broadcast_against, names_and_data, with_names
from pz_nn._linear_axes import OperatorAxes
from pz_nn.contraction import contract
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Linear
from pz_nn.parameters import ParameterLike

__all__ = ["Int8Linear", "quantize_linear", "quantize_linears"]


@pytree_dataclass
class Int8Linear(OperatorAxes, Layer):
    """Linear operator with 8-bit weights: y[B, P, out] = s[P, out] · Σ_in x[B, P, in] · q[P, in, out].

    Attributes:
        weights: Parameter q, int8; axes as in `Linear`.
        scales: Parameter s, with the output and parallel axes.
        in_axis_names: Names of input axes.
        out_axis_names: Names of output axes.
    """

    weights: ParameterLike[NamedArrayBase]
    scales: ParameterLike[NamedArrayBase]
    in_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    out_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Applies the operator.

        Args:
            value: Floating named array with the input and parallel axes.

        Returns:
            Array with the remaining axes of the input, then the new axes; dtype of the input.

        Raises:
            ValueError: If an axis is missing, has the wrong size, or an output axis is in the input.
        """
        clashing = [name for name in self.out_axis_names if name in value.named_shape]
        if clashing:
            raise ValueError(
                f"Int8Linear: the input must not have an output axis of the layer, but has {clashing}: "
                f"named_shape={value.named_shape}. Rename that axis first, for example with RenameAxes."
            )
        needed = (*self.in_axis_names, *self.parallel_axes)
        axis_indices(tuple(value.named_shape), needed, "Int8Linear")
        product = contract(self.in_axis_names, value, self.weights.value.astype(value.dtype))
        scales = names_and_data(self.scales.value, "Int8Linear")
        names, data = names_and_data(product, "Int8Linear")
        scaled = data * broadcast_against(*scales, names).astype(jnp.float32)
        return with_names(names, scaled.astype(value.dtype))


def quantize_linear(layer: Linear) -> Int8Linear:
    """Rounds the weights of one linear layer to 8 bits.

    Args:
        layer: The layer, with floating weights. It is not changed. Inside a layer stack, the axis of the
            stack is a parallel axis, so each block has scales of its own.

    Returns:
        A layer whose weights differ from the original ones by at most half a scale; its variables are of the
        kind of the original's (parameter or frozen value), labelled like them with `_int8` and `_scale`
        added.

    Raises:
        TypeError: If the weights are no labelled variable, or not floating.
    """
    parameter: Any = layer.weights
    weights = parameter.value
    labelled = isinstance(parameter, Parameter | ParameterValue)
    if not labelled or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(
            "quantize_linear: the weights must be a parameter with floating entries, not "
            f"{type(parameter).__name__} of dtype {weights.dtype}. Bind or merge the weights first."
        )
    label, metadata = parameter.label, dict(parameter.metadata)
    names, data = names_and_data(weights, "quantize_linear")
    summed = axis_indices(names, layer.in_axis_names, "quantize_linear")
    wide = data.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=summed, keepdims=True, initial=0.0)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    rounded = jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8)
    scale_names = tuple(name for name in names if name not in layer.in_axis_names)
    integers = Parameter(label=f"{label}_int8", value=with_names(names, rounded), metadata=metadata)
    scales = Parameter(
        label=f"{label}_scale",
        value=with_names(scale_names, jnp.squeeze(scale, summed)),
        metadata=metadata,
    )
    if isinstance(parameter, Parameter):
        return Int8Linear(integers, scales, layer.in_axis_names, layer.out_axis_names)
    return Int8Linear(integers.freeze(), scales.freeze(), layer.in_axis_names, layer.out_axis_names)


def quantize_linears(model: Any) -> Any:
    """Rounds the weights of linear layers to 8 bits.

    Args:
        model: A model, or a selection of parts of one: only linear layers in those parts are converted. Layers
            without input axes (the scales of norms) stay as they are.

    Returns:
        The model with `Int8Linear` in place of `Linear`; layers that share weights share them afterwards.
    """
    selection = model if isinstance(model, Selection) else select(model)
    converted: dict[Any, Int8Linear] = {}

    def convert(layer: Linear) -> Int8Linear | Linear:
        if not layer.in_axis_names:
            return layer
        identity = (id(layer.weights), layer.in_axis_names, layer.out_axis_names)
        if identity not in converted:
            converted[identity] = quantize_linear(layer)
        return converted[identity]

    return selection.at_instances_of(Linear).apply(convert)
