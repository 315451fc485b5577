"""Gated linear units, the feed-forward networks of most language models.

GatedMLP.from_config("mlp", key, {"embedding": 64}, {"neurons": 256})                  # SwiGLU
GatedMLP.from_config("mlp", key, {"embedding": 64}, {"neurons": 256}, jax.nn.gelu)     # GEGLU
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import BranchAndMultiplyTogether
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.initializers import LinearOperatorWeightInitializer, xavier_uniform_initializer
from pz_nn.linear_and_affine import Affine, Linear

__all__ = ["GatedMLP"]


@pytree_dataclass
class GatedMLP(Sequential):
    """Gated feed-forward network: y = (f(x · G) ⊙ (x · U)) · D.

    Attributes:
        sublayers: The gated product of two linear layers, then a linear layer.

    Reference: Shazeer, GLU Variants Improve Transformer (2020).
    """

    sublayers: list[Any]

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: dict[str, int],
        neuron_axes: dict[str, int],
        activation_fn: Callable[[Any], Any] = jax.nn.silu,
        use_bias: bool = False,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        dtype: Any = jnp.float32,
    ) -> GatedMLP:
        """Builds a gated network.

        Args:
            name: Name of the layer; its parts are called `{name}/gating_linear`, `{name}/value_linear` and
                `{name}/out_linear`.
            init_base_rng: Key of the model, or None for slots.
            input_axes: Axes of input and output, with sizes.
            neuron_axes: Axes in between, with sizes.
            activation_fn: f: `jax.nn.silu` makes it SwiGLU, `jax.nn.gelu` GEGLU, `jax.nn.relu` ReGLU,
                `jax.nn.sigmoid` the original GLU.
            use_bias: Whether the three linear layers have a bias.
            initializer: Draws the weights.
            dtype: Dtype of the parameters.

        Returns:
            The layer.
        """

        def linear(part: str, inputs: dict[str, int], outputs: dict[str, int]) -> Any:
            full_name = f"{name}/{part}"
            if use_bias:
                return Affine.from_config(
                    full_name,
                    init_base_rng,
                    inputs,
                    outputs,
                    linear_initializer=initializer,
                    dtype=dtype,
                )
            return Linear.from_config(
                full_name, init_base_rng, inputs, outputs, initializer=initializer, dtype=dtype
            )

        gate = [linear("gating_linear", input_axes, neuron_axes), Elementwise(activation_fn)]
        value = linear("value_linear", input_axes, neuron_axes)
        return cls(
            [
                BranchAndMultiplyTogether([NamedGroup("gate_with_activation", gate), value]),
                linear("out_linear", neuron_axes, input_axes),
            ]
        )
