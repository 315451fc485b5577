"""Normalising layers: mean and variance, root mean square, and their learned forms.

Statistics are computed in float32 (or wider) and the result has the dtype of the input again, as the
reference implementations of language models do; `compute_dtype=None` turns that off.

    RMSLayerNorm.from_config("norm", key, {"embedding": 64})
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import (
    as_names,
    axis_indices,
    broadcast_against,
    move_to_end,
    names_and_data,
    with_names,
)
from pz_nn._dtypes import cast, upcast
from pz_nn.grouping import Sequential
from pz_nn.initializers import constant_initializer
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import AddBias, Linear
from pz_nn.parameters import ParameterLike, make_parameter

__all__ = [
    "ComputeInDType",
    "LayerNorm",
    "RMSLayerNorm",
    "RMSStandardize",
    "ScaleWithOffset",
    "Standardize",
]


def _as_number(epsilon: Any, layer: str) -> float:
    """ε as a Python number, which keeps the dtype of what it is added to."""
    if type(epsilon) in (int, float):
        return float(epsilon)
    is_array = isinstance(epsilon, jax.Array | np.ndarray | np.generic)
    if not is_array or isinstance(epsilon, jax.core.Tracer) or epsilon.ndim:
        raise TypeError(
            f"{layer}: epsilon must be a number that is known when the layer is built, but is {epsilon!r}. "
            "Pass a Python number; it is part of the structure of the layer, not one of its leaves."
        )
    return float(epsilon)


@pytree_dataclass(post_init_may_rerun=True)
class Standardize(Layer):
    """Shifts and scales to mean 0 and variance 1: y = (x - m) / √(v + ε).

    m is the mean of x and v the mean of (x - m)², jointly over all the axes. The second pass over the
    data for v avoids the cancellation of mean(x²) - m² where the mean is large.

    Attributes:
        across: Name or names of the axes.
        epsilon: ε, static; an array without axes counts as the number it holds.
        compute_dtype: Lowest dtype to compute in; None computes in the dtype of the input.
    """

    across: str | tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    epsilon: float = dataclasses.field(default=1e-6, metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _as_number(self.epsilon, type(self).__name__))

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Standardizes.

        Args:
            value: Named array that has the axes.

        Returns:
            Array of the same named shape, order: the other axes, then `across`. Integers become float.

        Raises:
            ValueError: If an axis is missing, or the input has positional axes.
        """
        across = as_names(self.across)
        names, data = names_and_data(value, "Standardize")
        indices = axis_indices(names, across, "Standardize")
        data, result_dtype = upcast(data, self.compute_dtype)
        centred = data - jnp.mean(data, axis=indices, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=indices, keepdims=True)
        result = centred * jax.lax.rsqrt(variance + self.epsilon)
        return move_to_end(names, cast(result, result_dtype), across)


@pytree_dataclass(post_init_may_rerun=True)
class RMSStandardize(Layer):
    """Scales to root mean square 1: y = x / √(mean(x²) + ε).

    Attributes:
        across: Name or names of the axes, over which the mean is taken jointly.
        epsilon: ε, inside the root; static; an array without axes counts as the number it holds.
        compute_dtype: Lowest dtype to compute in; None computes in the dtype of the input.

    Reference: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
    """

    across: str | tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    epsilon: float = dataclasses.field(default=1e-6, metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _as_number(self.epsilon, type(self).__name__))

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Divides by the root mean square.

        Args:
            value: Named array that has the axes.

        Returns:
            Array of the same named shape, order: the other axes, then `across`. Integers become float.

        Raises:
            ValueError: If an axis is missing, or the input has positional axes.
        """
        across = as_names(self.across)
        names, data = names_and_data(value, "RMSStandardize")
        indices = axis_indices(names, across, "RMSStandardize")
        data, result_dtype = upcast(data, self.compute_dtype)
        mean_square = jnp.mean(jnp.square(data), axis=indices, keepdims=True)
        result = data * jax.lax.rsqrt(mean_square + self.epsilon)
        return move_to_end(names, cast(result, result_dtype), across)


@pytree_dataclass
class ComputeInDType(Layer):
    """Runs its sublayers in another dtype and casts the result back to the dtype of the input.

    Attributes:
        dtype: The input is cast to the promotion of its own dtype and this one.
        sublayers: The layers, run in order.
    """

    dtype: Any = dataclasses.field(metadata={"pytree_node": False})
    sublayers: list[Any]

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> Any:
        """Casts, runs the sublayers, casts back."""
        floating = jnp.issubdtype(value.dtype, jnp.inexact)
        result_dtype = value.dtype if floating else jnp.result_type(float)
        wide = value.astype(jnp.promote_types(result_dtype, self.dtype))
        return Sequential(self.sublayers)(wide, **side_inputs).astype(result_dtype)


@pytree_dataclass
class ScaleWithOffset(Layer):
    """Multiplies by a learned scale stored as its distance from an offset: y = x · (offset + w).

    Attributes:
        weights: Parameter w; each of its axes is an axis of the input.
        offset: The offset. The sum is taken in float32 (or wider), then cast to the dtype of the input
            if that is narrower, so that w near zero keeps its digits.
    """

    weights: ParameterLike[NamedArrayBase]
    offset: float = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Scales the input; the result has its order and dtype.

        Raises:
            ValueError: If the input lacks an axis of the weights or has another size there.
        """
        names, data = names_and_data(value, "ScaleWithOffset")
        weight_names, weights = names_and_data(self.weights.value, "ScaleWithOffset")
        axis_indices(names, weight_names, "ScaleWithOffset")
        if any(value.named_shape[n] != s for n, s in self.weights.value.named_shape.items()):
            raise ValueError(
                "ScaleWithOffset: axes of one name must agree in size, but the input has "
                f"{value.named_shape} and the weights have {self.weights.value.named_shape}. Make the "
                "layer for the sizes of the input."
            )
        wide, _ = upcast(weights, jnp.float32)
        scale = cast(wide + self.offset, data.dtype)
        return with_names(names, data * broadcast_against(weight_names, scale, names))


@pytree_dataclass
class LayerNorm(Sequential):
    """Layer normalisation: y = (x - m) / √(v + ε) · scale + shift.

    Attributes:
        sublayers: A `Standardize`, the scale (a `Linear` without input and output axes), and the shift
            (an `AddBias`) unless it was built without one.

    Reference: Ba, Kiros and Hinton, Layer Normalization (2016).
    """

    sublayers: list[Any]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        across_axes: dict[str, int],
        epsilon: float = 1e-6,
        dtype: Any = jnp.float32,
        *,
        use_bias: bool = True,
        compute_dtype: Any = jnp.float32,
        scale_before_cast: bool = False,
    ) -> LayerNorm:
        """Builds a layer normalisation.

        Args:
            name: Name of the layer; labels are `{name}/scale.weights` and `{name}/shift.bias`.
            init_base_rng: Key of the model, or None for slots.
            across_axes: Axes to normalise over jointly, with sizes.
            epsilon: ε, static; an array without axes counts as the number it holds.
            dtype: Dtype of the parameters.
            use_bias: Whether there is a shift.
            compute_dtype: Lowest dtype of the statistics; None means the dtype of the input.
            scale_before_cast: Whether scale and shift too are applied in `compute_dtype`, before the
                cast back to the dtype of the input (PyTorch's fused layer norm does that).

        Returns:
            The layer.
        """
        sublayers: list[Any] = [
            Standardize(tuple(across_axes), epsilon, compute_dtype),
            _scale(name, init_base_rng, across_axes, dtype),
        ]
        if use_bias:
            sublayers.append(
                AddBias.from_config(f"{name}/shift", init_base_rng, across_axes, dtype=dtype)
            )
        return cls(_in_dtype(sublayers, compute_dtype, scale_before_cast, cls.__name__))


@pytree_dataclass
class RMSLayerNorm(Sequential):
    """Root-mean-square normalisation with a learned scale: y = x / √(mean(x²) + ε) · (offset + w).

    Attributes:
        sublayers: An `RMSStandardize` and the scale, possibly inside a `ComputeInDType`.

    Reference: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
    """

    sublayers: list[Any]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        across_axes: dict[str, int],
        epsilon: float = 1e-6,
        dtype: Any = jnp.float32,
        *,
        offset: float = 0.0,
        compute_dtype: Any = jnp.float32,
        scale_before_cast: bool = False,
    ) -> RMSLayerNorm:
        """Builds a root-mean-square normalisation.

        Published models differ in details that show in low precision. Llama: the defaults. OLMo 2:
        `scale_before_cast=True`. Gemma: `offset=1.0, scale_before_cast=True`.

        Args:
            name: Name of the layer; the label is `{name}/scale.weights`.
            init_base_rng: Key of the model, or None for slots.
            across_axes: Axes to normalise over jointly, with sizes.
            epsilon: ε, kept as it is whatever the dtype of the parameters.
            dtype: Dtype of the parameters.
            offset: Added to the weights in float32. The weights start at `1 - offset`.
            compute_dtype: Lowest dtype of the computation; None means the dtype of the input.
            scale_before_cast: Whether the scale too is applied in `compute_dtype`, before the cast back
                to the dtype of the input; by default the cast comes first.

        Returns:
            The layer.
        """
        sublayers = [
            RMSStandardize(tuple(across_axes), epsilon, compute_dtype),
            _scale(name, init_base_rng, across_axes, dtype, offset),
        ]
        return cls(_in_dtype(sublayers, compute_dtype, scale_before_cast, cls.__name__))


def _scale(
    name: str,
    init_base_rng: jax.Array | None,
    axes: dict[str, int],
    dtype: Any,
    offset: float = 0.0,
) -> Linear | ScaleWithOffset:
    initializer = constant_initializer(1.0 - offset)
    if offset == 0.0:
        scale = Linear.from_config(
            f"{name}/scale",
            init_base_rng,
            input_axes={},
            output_axes={},
            parallel_axes=axes,
            initializer=initializer,
            dtype=dtype,
        )
        assert isinstance(scale, Linear)
        return scale
    weights = make_parameter(
        f"{name}/scale.weights",
        init_base_rng,
        initializer,
        input_axes={},
        output_axes={},
        parallel_axes=axes,
        convolution_spatial_axes={},
        dtype=dtype,
    )
    return ScaleWithOffset(weights, offset)


def _in_dtype(
    sublayers: list[Any], compute_dtype: Any, scale_before_cast: bool, user: str
) -> list[Any]:
    if not scale_before_cast:
        return sublayers
    if compute_dtype is None:
        raise ValueError(
            f"{user}.from_config: scale_before_cast=True needs a dtype to compute in, but "
            "compute_dtype is None. Give compute_dtype=jnp.float32, or leave scale_before_cast out."
        )
    return [ComputeInDType(compute_dtype, sublayers)]
