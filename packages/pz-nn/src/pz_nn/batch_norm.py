"""Batch normalisation, with running statistics as state variables that the caller can see and freeze.

norm = BatchNorm.from_config("norm", key, {"channels": 16})
norm(x)                            # uses the statistics of x and updates the running ones
set_training(norm, False)(x)       # uses the running ones
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_core.variables import StateVariable
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import axis_indices, broadcast_against, names_and_data, with_names
from pz_nn._dtypes import cast, upcast
from pz_nn.grouping import Sequential
from pz_nn.initializers import constant_initializer
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import AddBias, Linear
from pz_nn.parameters import ParameterLike

__all__ = ["BatchNorm", "InferenceBatchNorm", "TrainingBatchNorm"]


@pytree_dataclass
class TrainingBatchNorm(Layer):
    """Standardizes with the statistics of the batch and updates running ones.

    With mean m and variance v of x over all axes but `feature_axes`: y = (x - m) / √(v + ε). The running
    mean becomes (1 - r) · old + r · m, the running variance the same with v · n / (n - 1), n the number of
    entries averaged over.

    Attributes:
        running_mean: State variable with the feature axes.
        running_variance: State variable with the feature axes.
        feature_axes: Names of the axes that keep statistics of their own.
        update_rate: r.
        epsilon: ε.
        compute_dtype: Lowest dtype to compute in; the result has the dtype of the input.

    Reference: Ioffe and Szegedy, Batch Normalization (2015).
    """

    running_mean: ParameterLike[NamedArrayBase]
    running_variance: ParameterLike[NamedArrayBase]
    feature_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    update_rate: float = dataclasses.field(default=0.1, metadata={"pytree_node": False})
    epsilon: float = dataclasses.field(default=1e-5, metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Standardizes and updates the running statistics.

        Args:
            value: Array with the feature axes.

        Returns:
            Array in the order and dtype of the input; integers become float.

        Raises:
            ValueError: If a feature axis is missing.
            FrozenInstanceError: If the running statistics are frozen.
        """
        names, data = names_and_data(value, "TrainingBatchNorm")
        features = axis_indices(names, self.feature_axes, "TrainingBatchNorm")
        data, result_dtype = upcast(data, self.compute_dtype)
        averaged = tuple(axis for axis in range(data.ndim) if axis not in features)
        mean = jnp.mean(data, averaged, keepdims=True)
        variance = jnp.mean(jnp.square(data - mean), averaged, keepdims=True)
        count = math.prod(data.shape[axis] for axis in averaged)
        kept = tuple(name for name in names if name in self.feature_axes)
        unbiased = variance * (count / max(count - 1, 1))
        if count:  # an empty batch has no statistics: the running ones would become NaN
            self._update(self.running_mean, with_names(kept, jnp.squeeze(mean, averaged)))
            self._update(self.running_variance, with_names(kept, jnp.squeeze(unbiased, averaged)))
        result = (data - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return with_names(names, cast(result, result_dtype))

    def _update(self, variable: Any, fresh: NamedArray) -> None:
        old = variable.value
        mixed = (1 - self.update_rate) * old + self.update_rate * fresh
        variable.value = mixed.astype(old.dtype).order_like(old)

    def for_inference(self) -> InferenceBatchNorm:
        """The form that uses the running statistics and changes nothing."""
        return InferenceBatchNorm(**self.attributes_dict())


@pytree_dataclass
class InferenceBatchNorm(Layer):
    """Standardizes with running statistics: y = (x - m) / √(v + ε).

    Attributes:
        running_mean: m, with the feature axes.
        running_variance: v, with the feature axes.
        feature_axes: Names of the axes that have statistics of their own.
        update_rate: Rate once training again; not used here.
        epsilon: ε.
        compute_dtype: Lowest dtype to compute in; the result has the dtype of the input.
    """

    running_mean: ParameterLike[NamedArrayBase]
    running_variance: ParameterLike[NamedArrayBase]
    feature_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    update_rate: float = dataclasses.field(default=0.1, metadata={"pytree_node": False})
    epsilon: float = dataclasses.field(default=1e-5, metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Standardizes.

        Args:
            value: Array with the feature axes.

        Returns:
            Array in the order and dtype of the input; integers become float.

        Raises:
            ValueError: If a feature axis is missing.
        """
        user = "InferenceBatchNorm"
        names, data = names_and_data(value, user)
        axis_indices(names, self.feature_axes, user)
        data, result_dtype = upcast(data, self.compute_dtype)
        mean, variance = (
            broadcast_against(*names_and_data(statistic.value, user), names)
            for statistic in (self.running_mean, self.running_variance)
        )
        result = (data - mean) * jax.lax.rsqrt(variance.astype(data.dtype) + self.epsilon)
        return with_names(names, cast(result, result_dtype))

    def for_training(self) -> TrainingBatchNorm:
        """The form that uses the statistics of the batch and updates the running ones."""
        return TrainingBatchNorm(**self.attributes_dict())


@pytree_dataclass
class BatchNorm(Sequential):
    """Batch normalisation with a learned scale and shift.

    Attributes:
        sublayers: A `TrainingBatchNorm` or `InferenceBatchNorm`, the scale (a `Linear` without input and
            output axes) and the shift (an `AddBias`).
    """

    sublayers: list[Any]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        feature_axes: dict[str, int],
        update_rate: float = 0.1,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
    ) -> BatchNorm:
        """Builds a batch normalisation, in training mode.

        Args:
            name: Name of the layer; labels are `{name}.running_mean`, `{name}.running_variance` (state
                variables), `{name}/scale.weights` and `{name}/shift.bias`.
            init_base_rng: Key of the model, or None for parameter slots.
            feature_axes: Axes that keep statistics of their own, with sizes; all others are averaged.
            update_rate: How far one batch moves the running statistics (PyTorch's `momentum`; one minus
                Flax's).
            epsilon: ε.
            dtype: Dtype of scale and shift. Running statistics are float32.

        Returns:
            The layer.
        """
        names, shape = tuple(feature_axes), tuple(feature_axes.values())
        standardize = TrainingBatchNorm(
            StateVariable(with_names(names, jnp.zeros(shape)), label=f"{name}.running_mean"),
            StateVariable(with_names(names, jnp.ones(shape)), label=f"{name}.running_variance"),
            names,
            update_rate,
            epsilon,
        )
        scale = Linear.from_config(
            f"{name}/scale",
            init_base_rng,
            {},
            {},
            parallel_axes=feature_axes,
            initializer=constant_initializer(1.0),
            dtype=dtype,
        )
        shift = AddBias.from_config(f"{name}/shift", init_base_rng, feature_axes, dtype=dtype)
        return cls([standardize, scale, shift])
