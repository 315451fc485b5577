"""Convolutions over named spatial axes, in any number of dimensions, and their transposes.

The window has the names of the axes it slides over, so no layout such as NHWC is ever stated:

    Conv.from_config("conv", key, {"channels": 3}, {"channels": 16}, window={"height": 3, "width": 3})
    # {batch, height, width, channels} -> the same axes, in any order, with any batch axes

Parallel axes of the weights make grouped convolutions: a depthwise one has the channels as parallel axis
and no input or output axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn import _windows
from pz_nn._axes import names_and_data, reordered, with_names
from pz_nn._linear_axes import label_prefix, primed_output_names
from pz_nn._windows import AxisSettings, Padding, per_axis
from pz_nn.grouping import Sequential
from pz_nn.initializers import (
    LinearOperatorWeightInitializer,
    xavier_uniform_initializer,
    zero_initializer,
)
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import AddBias, RenameAxes
from pz_nn.parameters import ParameterLike, make_parameter

__all__ = ["Conv", "ConvOperator", "ConvTranspose", "ConvTransposeOperator"]

AxisSizes = dict[str, int]


@pytree_dataclass
class ConvOperator(Layer):
    """Convolution without bias, in the sense of neural networks (the window is not flipped).

    y[B, P, s, out] = Σ_{k, in} x[B, P, s · stride + k · dilation - low, in] · W[P, k, in, out], where x is 0
    outside its range and low the padding before the first entry.

    Attributes:
        weights: Parameter W. Of its axes, `window_axes` are k, `in_axis_names` are summed over,
            `out_axis_names` are new in the output, all others are parallel.
        in_axis_names: Names of input axes.
        out_axis_names: Names of output axes.
        window_axes: Names of the axes slid over, which input, weights and output have.
        strides: One for each window axis.
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, or (low, high) for each window axis.
        dilation: One for each window axis.
        precision: As in `jax.lax.conv_general_dilated`.
    """

    weights: ParameterLike[NamedArrayBase]
    in_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    out_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    window_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    strides: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    padding: Padding = dataclasses.field(metadata={"pytree_node": False})
    dilation: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    precision: Any = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Convolves.

        Args:
            value: Floating named array with the window, input and parallel axes; others are batch axes.

        Returns:
            Array with the batch axes, then the window axes, the parallel axes and the output axes.

        Raises:
            ValueError: If an axis is missing, has the wrong size, or an output axis is in the input.
        """
        folded = _fold(self, value)
        sizes = folded.data.shape[1:-1]
        window = folded.window_sizes
        padding = _windows.paddings(self.padding, sizes, window, self.strides, self.dilation)
        result = jax.lax.conv_general_dilated(
            folded.data,
            folded.weights,
            window_strides=self.strides,
            padding=padding,
            rhs_dilation=self.dilation,
            dimension_numbers=_dimension_numbers(len(sizes)),
            feature_group_count=folded.groups,
            precision=self.precision,
        )
        return folded.unfold(result)


@pytree_dataclass
class ConvTransposeOperator(Layer):
    """Transposed convolution without bias: the adjoint of a convolution with the same settings.

    y[B, P, s, out] = Σ x[B, P, t, in] · W[P, k, in, out] over t, k with s = t · stride + k · dilation - low.

    Attributes:
        weights: Parameter W; axes as in `ConvOperator`.
        in_axis_names: Names of input axes.
        out_axis_names: Names of output axes.
        window_axes: Names of the axes slid over.
        strides: One for each window axis: how far the entries of the input lie apart in the output.
        padding: (low, high) for each window axis: what is cut off the full result; `"VALID"` cuts
            nothing; `"SAME"` cuts so that the output is `stride` times as long as the input.
        dilation: One for each window axis.
        precision: As in `jax.lax.conv_general_dilated`.
    """

    weights: ParameterLike[NamedArrayBase]
    in_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    out_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    window_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    strides: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    padding: Padding = dataclasses.field(metadata={"pytree_node": False})
    dilation: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    precision: Any = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Convolves; arguments, result and errors as in `ConvOperator`."""
        folded = _fold(self, value)
        window = folded.window_sizes
        cuts = _windows.transpose_cuts(self.padding, window, self.strides, self.dilation)
        spans = [(size - 1) * step for size, step in zip(window, self.dilation, strict=True)]
        window_axes = tuple(range(len(window)))
        result = jax.lax.conv_general_dilated(
            folded.data,
            jnp.flip(folded.weights, window_axes),
            window_strides=(1,) * len(window),
            padding=[
                (span - low, span - high) for span, (low, high) in zip(spans, cuts, strict=True)
            ],
            lhs_dilation=self.strides,
            rhs_dilation=self.dilation,
            dimension_numbers=_dimension_numbers(len(window)),
            feature_group_count=folded.groups,
            precision=self.precision,
        )
        return folded.unfold(result)


@dataclasses.dataclass(frozen=True)
class _Folded:
    """Operands in the layout of XLA: (batch, spatial…, groups · in), (spatial…, in, groups · out)."""

    data: jax.Array
    weights: jax.Array
    window_sizes: tuple[int, ...]
    groups: int
    batch: dict[Hashable, int]
    window_axes: tuple[str, ...]
    channels: dict[Hashable, int]  # parallel axes, then output axes

    def unfold(self, result: jax.Array) -> NamedArray:
        spatial = result.shape[1:-1]
        shape = (*self.batch.values(), *spatial, *self.channels.values())
        return with_names((*self.batch, *self.window_axes, *self.channels), result.reshape(shape))


def _fold(layer: ConvOperator | ConvTransposeOperator, value: NamedArrayBase) -> _Folded:
    user = f"{label_prefix(layer.weights)}{type(layer).__name__}"
    names, data = names_and_data(value, user)
    weight_names, weights = names_and_data(layer.weights.value, user)
    weight_sizes = dict(zip(weight_names, weights.shape, strict=True))
    sizes = dict(zip(names, data.shape, strict=True))
    known = (*layer.window_axes, *layer.in_axis_names, *layer.out_axis_names)
    parallel = tuple(name for name in weight_names if name not in known)
    contracted = (*parallel, *layer.in_axis_names)
    wrong: list[Hashable] = [n for n in layer.window_axes if n not in sizes]
    wrong += [n for n in contracted if sizes.get(n) != weight_sizes[n]]
    wrong += [n for n in layer.out_axis_names if n in sizes]
    if wrong:
        raise ValueError(
            f"{user}: the input must have the window axes {layer.window_axes}, the axes "
            f"{ {n: weight_sizes[n] for n in contracted} } and none of the output axes "
            f"{layer.out_axis_names}; it does not fit in {wrong}: named_shape={sizes}. Rename axes of the "
            "input with RenameAxes, or make the layer for these sizes."
        )
    used = (*layer.window_axes, *contracted)
    batch = {name: size for name, size in sizes.items() if name not in used}
    groups = math.prod(weight_sizes[name] for name in parallel)
    inputs = math.prod(weight_sizes[name] for name in layer.in_axis_names)
    outputs = tuple(name for name in weight_names if name in layer.out_axis_names)
    lhs = reordered(names, data, (*batch, *layer.window_axes, *contracted))
    spatial = tuple(sizes[name] for name in layer.window_axes)
    lhs = lhs.reshape(math.prod(batch.values()), *spatial, groups * inputs)
    rhs = reordered(
        weight_names, weights, (*layer.window_axes, *layer.in_axis_names, *parallel, *outputs)
    )
    window_sizes = tuple(weight_sizes[name] for name in layer.window_axes)
    count = groups * math.prod(weight_sizes[name] for name in outputs)
    rhs = rhs.reshape(*window_sizes, inputs, count)
    dtype = jnp.result_type(lhs, rhs)
    channels: dict[Hashable, int] = {name: weight_sizes[name] for name in (*parallel, *outputs)}
    return _Folded(
        lhs.astype(dtype),
        rhs.astype(dtype),
        window_sizes,
        groups,
        batch,
        layer.window_axes,
        channels,
    )


def _dimension_numbers(dimensions: int) -> jax.lax.ConvDimensionNumbers:
    spatial = tuple(range(1, dimensions + 1))
    features_last = (0, dimensions + 1, *spatial)
    kernel = (dimensions + 1, dimensions, *range(dimensions))
    return jax.lax.ConvDimensionNumbers(features_last, kernel, features_last)


class _Convolution(Sequential):
    """What `Conv` and `ConvTranspose` share: their builder."""

    sublayers: list[Any]
    _operator: ClassVar[type[ConvOperator] | type[ConvTransposeOperator]]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        window: AxisSizes,
        parallel_axes: AxisSizes | None = None,
        strides: AxisSettings = 1,
        padding: str | dict[str, tuple[int, int]] = "SAME",
        dilation: AxisSettings = 1,
        use_bias: bool = True,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        bias_initializer: LinearOperatorWeightInitializer = zero_initializer,
        dtype: Any = jnp.float32,
    ) -> Self:
        """Builds a convolution.

        Args:
            name: Name of the layer; labels are `{name}/Conv.weights` and `{name}/AddBias.bias`.
            init_base_rng: Key of the model, or None for slots.
            input_axes: Axes to sum over, with sizes.
            output_axes: Axes to make; one that is an input axis too is renamed as in `Linear`.
            window: Axes to slide over, with the size of the window.
            parallel_axes: Axes with an operator for each index (groups).
            strides: A number, or one for each window axis by name.
            padding: Of a `Conv`: `"SAME"` (the output has size ⌈input / stride⌉), `"VALID"` (no padding),
                `"CAUSAL"` (only before, so no output sees what comes after it), or (low, high) by axis.
                Of a `ConvTranspose`: `"SAME"` (the output is `stride` times as long), `"VALID"`
                (everything), or what to cut off, (low, high) by axis.
            dilation: A number, or one for each window axis by name.
            use_bias: Whether there is a bias.
            initializer: Draws the weights.
            bias_initializer: Draws the bias.
            dtype: Dtype of both.

        Returns:
            The layer.

        Raises:
            ValueError: If groups of axes overlap or a setting names no window axis.
        """
        user, parallel = f"{cls.__name__}.from_config({name!r})", parallel_axes or {}
        primed = primed_output_names(
            user, input_axes, output_axes, {**parallel, **window}, {}, may_rename=True
        )
        weight_output_axes = {primed.get(n, n): size for n, size in output_axes.items()}
        weights = make_parameter(
            f"{name}/Conv.weights",
            init_base_rng,
            initializer,
            input_axes=input_axes,
            output_axes=weight_output_axes,
            parallel_axes=parallel,
            convolution_spatial_axes=window,
            dtype=dtype,
        )
        operator = cls._operator(
            weights,
            tuple(input_axes),
            tuple(weight_output_axes),
            tuple(window),
            per_axis(strides, window, "strides", user),
            _windows.checked_padding(padding, window, user),
            per_axis(dilation, window, "dilation", user),
        )
        sublayers: list[Any] = [operator]
        if primed:
            sublayers.append(RenameAxes(tuple(primed.values()), tuple(primed)))
        if use_bias:
            bias = AddBias.from_config(
                f"{name}/AddBias",
                init_base_rng,
                {**parallel, **output_axes},
                initializer=bias_initializer,
                dtype=dtype,
            )
            sublayers.append(bias)
        return cls(sublayers)


@pytree_dataclass
class Conv(_Convolution):
    """Convolution, with a bias unless built without one.

    Attributes:
        sublayers: A `ConvOperator`, the renaming of its outputs (if any) and an `AddBias` (if any).
    """

    sublayers: list[Any]
    _operator: ClassVar[Any] = ConvOperator


@pytree_dataclass
class ConvTranspose(_Convolution):
    """Transposed convolution, with a bias unless built without one.

    Attributes:
        sublayers: A `ConvTransposeOperator`, the renaming of its outputs (if any) and an `AddBias`.
    """

    sublayers: list[Any]
    _operator: ClassVar[Any] = ConvTransposeOperator
