"""Group normalisation, and instance normalisation as its finest case.

GroupNorm.from_config("norm", key, "channels", 32, groups=8, across=("height", "width"))
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import as_names, axis_indices, names_and_data, with_names
from pz_nn._dtypes import cast, upcast
from pz_nn.grouping import Sequential
from pz_nn.initializers import constant_initializer
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import AddBias, Linear

__all__ = ["GroupNorm", "GroupStandardize"]


@pytree_dataclass
class GroupStandardize(Layer):
    """Standardizes within groups of neighbouring features: y = (x - m) / √(v + ε).

    Attributes:
        feature_axis: Axis that is cut into groups.
        groups: Number of groups; it divides the size of that axis. As many groups as features make it
            instance normalisation.
        across: Other axes that statistics are taken over, such as the spatial ones.
        epsilon: ε.
        compute_dtype: Lowest dtype to compute in; the result has the dtype of the input.

    Reference: Wu and He, Group Normalization (2018).
    """

    feature_axis: str = dataclasses.field(metadata={"pytree_node": False})
    groups: int = dataclasses.field(metadata={"pytree_node": False})
    across: str | tuple[str, ...] = dataclasses.field(default=(), metadata={"pytree_node": False})
    epsilon: float = dataclasses.field(default=1e-5, metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Standardizes.

        Args:
            value: Array with the feature axis and the axes `across`.

        Returns:
            Array in the order and dtype of the input; integers become float.

        Raises:
            ValueError: If an axis is missing or the groups do not divide the features.
        """
        names, data = names_and_data(value, "GroupStandardize")
        wanted = (self.feature_axis, *as_names(self.across))
        feature, *others = axis_indices(names, wanted, "GroupStandardize")
        size = data.shape[feature]
        if size % self.groups:
            raise ValueError(
                f"GroupStandardize: the number of groups must divide the features, but axis "
                f"{self.feature_axis!r} has size {size} and groups={self.groups}. Choose a divisor."
            )
        data, result_dtype = upcast(data, self.compute_dtype)
        # {…, groups, features of a group, …}; axes after the feature axis move by one.
        split = (
            *data.shape[:feature],
            self.groups,
            size // self.groups,
            *data.shape[feature + 1 :],
        )
        grouped = data.reshape(split)
        averaged = (feature + 1, *(axis + (axis > feature) for axis in others))
        centred = grouped - jnp.mean(grouped, averaged, keepdims=True)
        variance = jnp.mean(jnp.square(centred), averaged, keepdims=True)
        result = centred * jax.lax.rsqrt(variance + self.epsilon)
        return with_names(names, cast(result.reshape(data.shape), result_dtype))


@pytree_dataclass
class GroupNorm(Sequential):
    """Group normalisation with a learned scale and shift.

    Attributes:
        sublayers: A `GroupStandardize`, the scale (a `Linear` without input and output axes) and the shift
            (an `AddBias`).
    """

    sublayers: list[Any]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        feature_axis: str,
        features: int,
        groups: int,
        across: str | tuple[str, ...] = (),
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
    ) -> GroupNorm:
        """Builds a group normalisation.

        Args:
            name: Name of the layer; labels are `{name}/scale.weights` and `{name}/shift.bias`.
            init_base_rng: Key of the model, or None for slots.
            feature_axis: Axis that is cut into groups.
            features: Its size.
            groups: Number of groups.
            across: Other axes that statistics are taken over.
            epsilon: ε.
            dtype: Dtype of scale and shift.

        Returns:
            The layer.
        """
        axes = {feature_axis: features}
        scale = Linear.from_config(
            f"{name}/scale",
            init_base_rng,
            {},
            {},
            parallel_axes=axes,
            initializer=constant_initializer(1.0),
            dtype=dtype,
        )
        shift = AddBias.from_config(f"{name}/shift", init_base_rng, axes, dtype=dtype)
        return cls([GroupStandardize(feature_axis, groups, across, epsilon), scale, shift])
