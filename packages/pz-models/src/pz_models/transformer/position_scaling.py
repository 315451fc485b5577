"""Queries that grow with their position, so that attention over long contexts stays sharp.

    y[p] = x[p] · (1 + β · ln(1 + ⌊p / O⌋))

leaves the first O positions alone and grows with the logarithm of the number of such stretches.

    ScaleByPosition(beta=0.1, stretch=16384)

References: Llama 4's model card (2025), after Nakanishi, Scalable-Softmax (2025).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn.layer import Layer

__all__ = ["ScaleByPosition"]


@pytree_dataclass
class ScaleByPosition(Layer):
    """Multiplies each token by 1 + β · ln(1 + ⌊p / O⌋), p its position.

    Attributes:
      beta: β.
      stretch: O, how many positions are left alone.
      positions_input_name: Side input with the positions.
    """

    beta: float = dataclasses.field(metadata={"pytree_node": False})
    stretch: int = dataclasses.field(metadata={"pytree_node": False})
    positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )

    def __call__(self, value: nx.NamedArrayBase, /, **side_inputs: Any) -> nx.NamedArrayBase:
        """Scales the array, in its own dtype.

        Raises:
          KeyError: The positions are not among the side inputs.
        """
        if self.positions_input_name not in side_inputs:
            raise KeyError(
                f"ScaleByPosition: the side input {self.positions_input_name!r} is missing; given"
                f" were {sorted(side_inputs)}. Call the whole model, which provides it."
            )

        def factor(position: Any) -> Any:
            stretches = jnp.maximum(position, 0) // self.stretch  # padding has the position -1
            return (1 + self.beta * jnp.log1p(stretches.astype(jnp.float32))).astype(value.dtype)

        scaled: nx.NamedArrayBase = value * nx.nmap(factor)(side_inputs[self.positions_input_name])
        return scaled
