"""Embeddings of positions that are added to those of tokens.

    AddLearnedPositions.from_config("positions", key, max_positions=1024, embedding_axes={"embedding": 64})
    AddSinusoidalPositions("embedding")

Rotary embeddings, which act inside attention, are `pz_nn.embeddings.ApplyRoPE`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn import _rope
from pz_nn._axes import axis_indices, broadcast_against, names_and_data, with_names
from pz_nn._side_inputs import required
from pz_nn.embeddings import EmbeddingLookup, EmbeddingTable
from pz_nn.initializers import LinearOperatorWeightInitializer, normal_initializer
from pz_nn.layer import Layer

__all__ = ["AddLearnedPositions", "AddSinusoidalPositions"]


@pytree_dataclass
class AddLearnedPositions(Layer):
    """Adds a learned embedding of each position: y = x + table[position].

    A position outside the table is an `IndexError` if it is known and gives NaN in compiled code.

    Attributes:
        table: One embedding for each position.
        positions_input_name: Name of the side input with the positions.
    """

    table: EmbeddingTable
    positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> Any:
        """Adds the embeddings.

        Args:
            value: Array with the embedding axes and the axes of the positions.
            **side_inputs: The positions.

        Returns:
            The sum, in the order of the input.

        Raises:
            KeyError: If the positions are missing.
        """
        positions = required(side_inputs, self.positions_input_name, "AddLearnedPositions")
        return value + EmbeddingLookup(self.table)(positions)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        max_positions: int,
        embedding_axes: dict[str, int],
        positions_input_name: str = "token_positions",
        initializer: LinearOperatorWeightInitializer = normal_initializer,
        dtype: Any = jnp.float32,
    ) -> AddLearnedPositions:
        """Builds the layer.

        Args:
            name: Name of the layer; the label is `{name}.embeddings`.
            init_base_rng: Key of the model, or None for a slot.
            max_positions: Number of positions.
            embedding_axes: Axes of one embedding, with sizes.
            positions_input_name: Name of the side input with the positions.
            initializer: Draws the table; by default normal with standard deviation 0.02.
            dtype: Dtype of the table.

        Returns:
            The layer.
        """
        table = EmbeddingTable.from_config(
            name, init_base_rng, max_positions, embedding_axes, "position", initializer, dtype
        )
        return cls(table, positions_input_name)


@pytree_dataclass(post_init_may_rerun=True)
class AddSinusoidalPositions(Layer):
    """Adds sines and cosines of each position, with wavelengths from 2π to 2π · max_wavelength.

    With d features, feature pair i gets sin(p · w^(-2i/d)) and cos(p · w^(-2i/d)).

    Attributes:
        embedding_axis: Axis of the features, of even size d.
        positions_input_name: Name of the side input with the positions p.
        max_wavelength: w.
        pairing: `"interleaved"` puts pair i at features 2i and 2i + 1 (the paper), `"halves"` at i and
            i + d/2 (tensor2tensor).

    Reference: Vaswani et al., Attention Is All You Need (2017).
    """

    embedding_axis: str = dataclasses.field(metadata={"pytree_node": False})
    positions_input_name: str = dataclasses.field(
        default="token_positions", metadata={"pytree_node": False}
    )
    max_wavelength: float = dataclasses.field(default=10_000.0, metadata={"pytree_node": False})
    pairing: Literal["halves", "interleaved"] = dataclasses.field(
        default="interleaved", metadata={"pytree_node": False}
    )

    def __post_init__(self) -> None:
        _rope.check_pairing(self.pairing, "AddSinusoidalPositions")

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArray:
        """Adds the embeddings.

        Args:
            value: Array with the embedding axis and the axes of the positions.
            **side_inputs: The positions.

        Returns:
            The sum, in the order and dtype of the input.

        Raises:
            KeyError: If the positions are missing.
            ValueError: If the positions do not fit the input, or the number of features is odd.
        """
        user = "AddSinusoidalPositions"
        positions = required(side_inputs, self.positions_input_name, user)
        names, data = names_and_data(value, user)
        (axis,) = axis_indices(names, (self.embedding_axis,), user)
        _rope.check_positions(
            user, self.positions_input_name, self.embedding_axis, positions, value
        )
        size = data.shape[axis]
        if size % 2:
            raise ValueError(
                f"{user}: the number of features must be even, but axis {self.embedding_axis!r} has size "
                f"{size}. Give it one feature more."
            )
        frequencies = self.max_wavelength ** (-np.arange(0, size, 2) / max(size, 1))
        position_names, position_data = names_and_data(positions, user)
        dtype = jnp.promote_types(data.dtype, jnp.float32)
        angles = position_data[..., None].astype(dtype) * frequencies.astype(dtype)
        sines, cosines = jnp.sin(angles), jnp.cos(angles)
        if self.pairing == "halves":
            embeddings = jnp.concatenate([sines, cosines], axis=-1)
        else:
            embeddings = jnp.stack([sines, cosines], axis=-1).reshape(*position_data.shape, size)
        aligned = broadcast_against((*position_names, self.embedding_axis), embeddings, names)
        return with_names(names, (data + aligned).astype(data.dtype))
