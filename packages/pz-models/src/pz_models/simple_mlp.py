"""Multilayer perceptrons: affine layers with an activation between them.

mlp = MLP.from_config(jax.random.key(0), [2, 32, 1])
y = mlp(pz_named.wrap(x, "batch", "features"))        # {batch, features: 1}
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Self

import jax

from pz_core.struct import pytree_dataclass
from pz_nn.basic_ops import Elementwise
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Affine

__all__ = ["MLP", "DropoutMLP"]


def _layers(
    name: str,
    init_base_rng: jax.Array | None,
    feature_sizes: Sequence[int],
    feature_axis: str,
    between: Callable[[], list[Layer]],
) -> list[Layer]:
    """Affine layers from each size to the next, with `between()` before all but the first."""
    if len(feature_sizes) < 2:
        raise ValueError(
            f"{name}: feature_sizes should name an input and an output size at least; received"
            f" {list(feature_sizes)}."
        )
    layers: list[Layer] = []
    for index, (size, next_size) in enumerate(itertools.pairwise(feature_sizes)):
        if index:
            layers += between()
        layers.append(
            Affine.from_config(
                f"{name}/Affine_{index}",
                init_base_rng,
                input_axes={feature_axis: size},
                output_axes={feature_axis: next_size},
            )
        )
    return layers


@pytree_dataclass(has_implicitly_inherited_fields=True)
class MLP(Sequential):
    """A multilayer perceptron over one axis; the last layer has no activation."""

    @classmethod
    def from_config(
        cls,
        init_base_rng: jax.Array | None,
        feature_sizes: Sequence[int],
        name: str = "mlp",
        activation_fn: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        feature_axis: str = "features",
    ) -> Self:
        """Builds the layers.

        Args:
          init_base_rng: Key of the model, or None for parameter slots.
          feature_sizes: Sizes of input, hidden layers and output; two at least.
          name: Prefix of the labels `{name}/Affine_{i}/Linear.weights` and so on.
          activation_fn: Applied between the layers.
          feature_axis: The axis that the layers work on.

        Raises:
          ValueError: There are fewer than two sizes.
        """

        def between() -> list[Layer]:
            return [Elementwise(activation_fn)]

        return cls(_layers(name, init_base_rng, feature_sizes, feature_axis, between))


@pytree_dataclass(has_implicitly_inherited_fields=True)
class DropoutMLP(Sequential):
    """A multilayer perceptron with dropout before each activation; reads `random_stream`."""

    @classmethod
    def from_config(
        cls,
        init_base_rng: jax.Array | None,
        feature_sizes: Sequence[int],
        drop_rate: float,
        name: str = "dropout_mlp",
        activation_fn: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        feature_axis: str = "features",
    ) -> Self:
        """Builds the layers; arguments as in `MLP.from_config`.

        Args:
          init_base_rng: Key of the model, or None for parameter slots.
          feature_sizes: Sizes of input, hidden layers and output; two at least.
          drop_rate: Probability that an activation is dropped.
          name: Prefix of the labels.
          activation_fn: Applied between the layers, after dropout.
          feature_axis: The axis that the layers work on.

        Raises:
          ValueError: There are fewer than two sizes.
        """

        def between() -> list[Layer]:
            return [StochasticDropout(drop_rate), Elementwise(activation_fn)]

        return cls(_layers(name, init_base_rng, feature_sizes, feature_axis, between))
