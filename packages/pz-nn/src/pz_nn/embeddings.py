"""Token embeddings and rotary position embeddings.

    table = EmbeddingTable.from_config("embedder", key, vocab_size=1000, embedding_axes={"embedding": 64})
    EmbeddingLookup(table)(token_ids)  # {batch, seq} -> {embedding, batch, seq}
    EmbeddingDecode(table)(x)          # {batch, seq, embedding} -> {batch, seq, vocabulary}

Giving one table to both layers ties their weights. Other position embeddings stand in
`pz_nn.position_embeddings`, the scalings of rotary frequencies in `pz_nn.rope_scaling`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import Struct, pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase, is_namedarray, wrap
from pz_nn import _rope
from pz_nn._axes import axis_indices, names_and_data, with_names
from pz_nn.contraction import contract
from pz_nn.initializers import LinearOperatorWeightInitializer, variance_scaling_initializer
from pz_nn.layer import Layer
from pz_nn.parameters import ParameterLike, make_parameter
from pz_nn.rope_scaling import RoPEScaling

__all__ = [
    "ApplyRoPE",
    "ApplyRoPEToSubset",
    "EmbeddingDecode",
    "EmbeddingLookup",
    "EmbeddingTable",
]

# The vocabulary is a parallel axis, so each row has an expected squared norm of 1.
_unit_norm_initializer = functools.partial(
    variance_scaling_initializer, scale=1.0, mode="fan_out", distribution="normal"
)


@pytree_dataclass
class EmbeddingTable(Struct):
    """A table with one embedding for each entry of a vocabulary. Not a layer.

    Attributes:
        embeddings: Parameter with the vocabulary axis and the embedding axes.
        vocabulary_axis: Name of the vocabulary axis.
    """

    embeddings: ParameterLike[NamedArrayBase]
    vocabulary_axis: str = dataclasses.field(metadata={"pytree_node": False})

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        vocab_size: int,
        embedding_axes: dict[str, int],
        vocabulary_axis: str = "vocabulary",
        initializer: LinearOperatorWeightInitializer = _unit_norm_initializer,
        dtype: Any = np.float32,
    ) -> EmbeddingTable:
        """Builds a table.

        Args:
            name: Name of the table; the label is `{name}.embeddings`.
            init_base_rng: Key of the model, or None for a slot.
            vocab_size: Number of entries.
            embedding_axes: Axes of one embedding, with sizes.
            vocabulary_axis: Name of the vocabulary axis.
            initializer: Draws the table, with the vocabulary as parallel axis and the embedding axes as
                output axes; by default normal with variance 1 / (number of features).
            dtype: Dtype of the table.

        Returns:
            The table, stored vocabulary first.

        Raises:
            ValueError: If the vocabulary axis is an embedding axis as well.
        """
        if vocabulary_axis in embedding_axes:
            raise ValueError(
                f"EmbeddingTable.from_config({name!r}): the vocabulary axis must differ from the "
                f"embedding axes, but vocabulary_axis={vocabulary_axis!r} is one of embedding_axes="
                f"{embedding_axes}. Give one of them another name."
            )
        embeddings = make_parameter(
            f"{name}.embeddings",
            init_base_rng,
            initializer,
            input_axes={},
            output_axes=embedding_axes,
            parallel_axes={vocabulary_axis: vocab_size},
            convolution_spatial_axes={},
            dtype=dtype,
        )
        return cls(embeddings, vocabulary_axis)


@pytree_dataclass
class EmbeddingLookup(Layer):
    """Looks embeddings up: y[E, ...] = table[ids[...], E].

    An id outside the table is an error if it is known, and gives NaN in compiled code; it is never moved
    to a neighbour. Ids from -V to -1 count from the end, as in NumPy.

    Attributes:
        table: The table.
        embedding_axes_last: Whether the axes of the ids come first in the result, then the embedding
            axes: the layout in which the layers of a transformer need no transpose.

    Example:
        >>> table = EmbeddingTable.from_config("t", jax.random.key(0), 10, {"embedding": 4})
        >>> EmbeddingLookup(table)(wrap(jnp.array([3, 7]), "seq")).named_shape
        {'embedding': 4, 'seq': 2}
    """

    table: EmbeddingTable
    embedding_axes_last: bool = dataclasses.field(default=False, metadata={"pytree_node": False})

    def __call__(self, token_index: Any, /, **_side_inputs: Any) -> NamedArrayBase:
        """Looks up.

        Args:
            token_index: Integer named array, int or positional array.

        Returns:
            Array with the embedding axes, then the axes of the ids (or the other way round; see above).

        Raises:
            TypeError: If the ids are no integers.
            IndexError: If a known id lies outside the table.
            ValueError: If the ids have an embedding axis.
        """
        ids = token_index if is_namedarray(token_index) else wrap(token_index)
        names, table = names_and_data(self.table.embeddings.value, "EmbeddingLookup")
        (vocabulary,) = axis_indices(names, (self.table.vocabulary_axis,), "EmbeddingLookup")
        features = tuple(name for name in names if name != self.table.vocabulary_axis)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(
                f"EmbeddingLookup: ids must be integers, but have dtype {ids.dtype}. Cast them first: "
                "`ids.astype(jnp.int32)`."
            )
        shared = [name for name in ids.named_shape if name in features]
        if shared:
            raise ValueError(
                f"EmbeddingLookup: the ids must not have an embedding axis, but have {shared}: "
                f"ids.named_shape={ids.named_shape}, table {dict(zip(names, table.shape, strict=True))}. "
                "Rename that axis of the ids with RenameAxes."
            )
        flat = ids.with_positional_prefix()
        _check_known_ids(flat.data_array, table.shape[vocabulary])
        rows = _rows(table, flat.data_array, vocabulary)  # {positional ids, named ids, features}
        positional, named = len(flat.positional_shape), len(flat.named_axes)
        if self.embedding_axes_last:
            return with_names((*flat.named_axes, *features), rows)
        id_axes = range(positional, positional + named)
        order = (*range(positional), *range(positional + named, rows.ndim), *id_axes)
        return with_names((*features, *flat.named_axes), jnp.transpose(rows, order))


def _check_known_ids(ids: Any, size: int) -> None:
    """Raises if ids that are known (not traced) lie outside the table."""
    if isinstance(ids, jax.core.Tracer) or ids.size == 0:
        return
    known = np.asarray(ids)
    low, high = int(known.min()), int(known.max())
    if low < -size or high >= size:
        raise IndexError(
            f"EmbeddingLookup: ids must lie in [-{size}, {size - 1}] for a table of {size} entries, but "
            f"range from {low} to {high}. Check that tokenizer and model belong together."
        )


def _rows(table: jax.Array, ids: jax.Array, vocabulary: int) -> jax.Array:
    """Rows of the table, axes of the ids first; NaN (or the smallest integer) outside the table."""
    if vocabulary != 0:
        table = jnp.moveaxis(table, vocabulary, 0)
    return table.at[ids].get(mode="fill")


@pytree_dataclass
class EmbeddingDecode(Layer):
    """Scores each entry of the vocabulary: logits[B, V] = Σ_E x[B, E] · table[V, E].

    Attributes:
        table: The table.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`.
    """

    table: EmbeddingTable
    precision: Any = dataclasses.field(default=None, metadata={"pytree_node": False})
    preferred_element_type: Any = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __call__(self, out_embeddings: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Computes the logits.

        Args:
            out_embeddings: Array with all the embedding axes.

        Returns:
            Array with the batch axes, then the vocabulary.

        Raises:
            ValueError: If an embedding axis is missing or has the wrong size, or the input has the
                vocabulary axis.
        """
        table = self.table.embeddings.value
        vocabulary = self.table.vocabulary_axis
        if is_namedarray(out_embeddings) and vocabulary in out_embeddings.named_shape:
            raise ValueError(
                f"EmbeddingDecode: the input must not have the vocabulary axis {vocabulary!r}, but has "
                f"{out_embeddings.named_shape}. Give it embeddings, not logits, or rename the axis."
            )
        features = tuple(name for name in table.named_shape if name != vocabulary)
        return contract(
            features,
            out_embeddings,
            table,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )


@pytree_dataclass(post_init_may_rerun=True)
class ApplyRoPE(Layer):
    """Rotary position embedding: turns each pair of features by an angle proportional to the position.

    With d features, pair i turns by θ_i = p · f_i / scale_factor, f_i = w^(-2i/d):

        y₁ = x₁·cos θ - x₂·sin θ,  y₂ = x₂·cos θ + x₁·sin θ

    Attributes:
        embedding_axis: Axis of the features, of even size d.
        max_wavelength: w, the base of the wavelengths.
        positions_input_name: Name of the side input with the positions p: a named array whose axes the
            input has too.
        scale_factor: Divides all angles; at least 1.
        scaling: Rule that replaces f_i; see `pz_nn.rope_scaling`.
        pairing: `"halves"` pairs features i and i + d/2, `"interleaved"` pairs 2i and 2i + 1.
        angles_in_input_dtype: Whether cosines and sines, computed in float32, are cast to the dtype of
            the input before the products (as HuggingFace does) instead of the products afterwards.
        length_input_name: Side input with the current length of the sequence (an integer, a scalar
            array, or a named array with one for each row), which only scalings that depend on it need.
        frequencies: Replaces f_i by given ones: a named array whose one axis is `embedding_axis`, of
            size d/2. Inside a layer stack it may differ from layer to layer.
        attention_scale: Factor of cosines and sines instead of the scaling's, a number or a named array
            without axes; inside a layer stack it may differ from layer to layer.

    Reference: Su et al., RoFormer (2021).
    """

    embedding_axis: str = dataclasses.field(metadata={"pytree_node": False})
    max_wavelength: float = dataclasses.field(metadata={"pytree_node": False})
    positions_input_name: str = dataclasses.field(metadata={"pytree_node": False})
    scale_factor: float = dataclasses.field(default=1.0, metadata={"pytree_node": False})
    scaling: RoPEScaling | None = dataclasses.field(default=None, metadata={"pytree_node": False})
    pairing: Literal["halves", "interleaved"] = dataclasses.field(
        default="halves", metadata={"pytree_node": False}
    )
    angles_in_input_dtype: bool = dataclasses.field(default=False, metadata={"pytree_node": False})
    length_input_name: str = dataclasses.field(
        default="rope_length", metadata={"pytree_node": False}
    )
    frequencies: NamedArrayBase | None = None
    attention_scale: float | NamedArrayBase | None = dataclasses.field(
        default=None, metadata={"pytree_node": "unless_number"}
    )

    def __post_init__(self) -> None:
        _rope.check_settings(self)

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArray:
        """Rotates.

        Args:
            value: Array with the embedding axis.
            **side_inputs: The positions, and the length if the scaling needs it.

        Returns:
            Array of the same dtype, the other axes as they stand, the embedding axis last.

        Raises:
            KeyError: If a side input is missing.
            ValueError: If the positions have the embedding axis, positional axes, or an axis that the
                input lacks, or the number of features is odd.
        """
        return _rope.rotate(self, value, side_inputs, subset=None)


@pytree_dataclass(post_init_may_rerun=True)
class ApplyRoPEToSubset(Layer):
    """Rotary position embedding of the first r features; the others stay.

    Frequencies are those of r features, not of the whole axis.

    Attributes:
        embedding_axis: Axis of the features.
        max_wavelength: As in `ApplyRoPE`, like all that follow.
        rope_subset_size: r, even. As large as the axis or larger means all of it; 0 changes nothing.
        positions_input_name: Name of the side input with the positions.
        scale_factor: Divides all angles; at least 1.
        scaling: Rule that replaces f_i.
        pairing: `"halves"` or `"interleaved"`, within the first r features.
        angles_in_input_dtype: Whether cosines and sines are cast to the dtype of the input first.
        length_input_name: Side input with the current length.
        frequencies: Replaces f_i, with size r/2.
        attention_scale: Factor of cosines and sines instead of the scaling's.

    Reference: Black et al., GPT-NeoX-20B (2022), after Wang and Komatsuzaki's GPT-J.
    """

    embedding_axis: str = dataclasses.field(metadata={"pytree_node": False})
    max_wavelength: float = dataclasses.field(metadata={"pytree_node": False})
    rope_subset_size: int = dataclasses.field(metadata={"pytree_node": False})
    positions_input_name: str = dataclasses.field(metadata={"pytree_node": False})
    scale_factor: float = dataclasses.field(default=1.0, metadata={"pytree_node": False})
    scaling: RoPEScaling | None = dataclasses.field(default=None, metadata={"pytree_node": False})
    pairing: Literal["halves", "interleaved"] = dataclasses.field(
        default="halves", metadata={"pytree_node": False}
    )
    angles_in_input_dtype: bool = dataclasses.field(default=False, metadata={"pytree_node": False})
    length_input_name: str = dataclasses.field(
        default="rope_length", metadata={"pytree_node": False}
    )
    frequencies: NamedArrayBase | None = None
    attention_scale: float | NamedArrayBase | None = dataclasses.field(
        default=None, metadata={"pytree_node": "unless_number"}
    )

    def __post_init__(self) -> None:
        _rope.check_settings(self)

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArray:
        """Rotates the first features; arguments, result and errors as in `ApplyRoPE`."""
        return _rope.rotate(self, value, side_inputs, subset=self.rope_subset_size)
