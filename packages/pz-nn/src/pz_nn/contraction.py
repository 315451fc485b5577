"""Sums of products over named axes: `contract` for two arrays, `NamedEinsum` for any number.

    contract("embedding", x, weights)   # {batch, embedding} and {embedding, heads} -> {batch, heads}

A contraction of two arrays becomes one `dot_general`, in compiled programs for CPUs of matrices: reshapes around
it are free, and nothing is transposed but paired axes, which XLA would bring to the front itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn import _einsum
from pz_nn._axes import as_names, names_and_data, with_names
from pz_nn._contraction import contract_data
from pz_nn._linear_axes import contracted_names
from pz_nn.layer import Layer

__all__ = ["NamedEinsum", "contract"]


def contract(
    names: str | Sequence[Hashable],
    left: NamedArrayBase,
    right: NamedArrayBase,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> NamedArray:
    """Sums the product of two arrays over some of their common axes.

    out = Σ_names left · right. Other common axes are paired, the rest are kept.

    Args:
        names: Axes to sum over, which both arrays have; none gives the broadcast product.
        left: Named array.
        right: Named array.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`.

    Returns:
        Array with the remaining axes of `left`, then the new ones of `right`.

    Raises:
        ValueError: If a name is missing in either array, the sizes of a common axis differ, or there are
            positional axes.

    Example:
        >>> from pz_named import named_axes as nx
        >>> left, right = nx.ones({"a": 2, "b": 3}), nx.ones({"b": 3, "c": 4})
        >>> contract("b", left, right).named_shape
        {'a': 2, 'c': 4}
    """
    left_names, left_data = names_and_data(left, "contract")
    right_names, right_data = names_and_data(right, "contract")
    result_names = contracted_names(
        as_names(names), left_names, left_data.shape, right_names, right_data.shape
    )
    data = contract_data(
        left_data,
        left_names,
        right_data,
        right_names,
        result_names,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return with_names(result_names, data)


@pytree_dataclass(post_init_may_rerun=True)
class NamedEinsum(Layer):
    """Einstein summation in which every axis of every array is an index, by name.

    Attributes:
        input_axes: One spec for each input: a tuple of names (each its own index), or a dict from axis
            name to index name. Axes with one index have one size; an index that the output lacks is
            summed over; one that occurs twice in an input takes its diagonal. Axes of the inputs that
            stand in no spec are batch axes: every input has the same ones.
        output_axes: The spec of the output. Its axes come last, in the order of the spec.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`.

    Example:
        Attention logits; queries and keys both carry the axis `seq`:

        >>> from pz_named import named_axes as nx
        >>> logits = NamedEinsum(
        ...     ({"seq": "query", "features": "f"}, {"seq": "key", "features": "f"}),
        ...     {"seq": "query", "kv_seq": "key"},
        ... )
        >>> queries, keys = nx.ones({"seq": 2, "features": 4}), nx.ones({"seq": 3, "features": 4})
        >>> logits((queries, keys)).named_shape
        {'seq': 2, 'kv_seq': 3}
    """

    input_axes: tuple[_einsum.Spec, ...] = dataclasses.field(metadata={"pytree_node": False})
    output_axes: _einsum.Spec = dataclasses.field(metadata={"pytree_node": False})
    precision: Any = dataclasses.field(default=None, metadata={"pytree_node": False})
    preferred_element_type: Any = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __post_init__(self) -> None:
        input_axes, output_axes = _einsum.checked_specs(self.input_axes, self.output_axes)
        object.__setattr__(self, "input_axes", input_axes)
        object.__setattr__(self, "output_axes", output_axes)

    def __call__(self, inputs: tuple[NamedArrayBase, ...], /, **_side_inputs: Any) -> NamedArray:
        """Contracts.

        Args:
            inputs: Tuple of floating named arrays, one for each spec.

        Returns:
            Array with the batch axes in the order of the first input, then the axes of the output spec.

        Raises:
            ValueError: If `inputs` is no tuple or has another length, or a batch axis has the name of an
                output axis.
            StructureMismatchError: If axes are missing, sizes disagree or an input is not floating.
        """
        specs = [_einsum.as_mapping(spec) for spec in self.input_axes]
        output_spec = _einsum.as_mapping(self.output_axes)
        batch_names = _einsum.check_inputs(inputs, specs, output_spec)
        operands = [names_and_data(array, "NamedEinsum") for array in inputs]
        # Indices and batch axes are told apart by their position in the pair.
        labels = [
            [(spec[name], None) if name in spec else (None, name) for name in names]
            for (names, _), spec in zip(operands, specs, strict=True)
        ]
        result_labels = [
            *((None, name) for name in batch_names),
            *((index, None) for index in output_spec.values()),
        ]
        data = _einsum.contract_labelled(
            [data for _, data in operands],
            labels,
            result_labels,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        return with_names((*batch_names, *output_spec), data)
