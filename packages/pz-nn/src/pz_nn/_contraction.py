"""Contraction of two arrays whose axes carry labels, as one `dot_general`.

Every label stands once in each array that has it. A label in both arrays is summed over unless the result
has it, in which case the arrays are paired along it; any other label must be in the result. Operands are
never transposed, and the result only if no order of the operands gives it as wanted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_nn._axis_folding import fold_groups, folded_shape

Labels = Sequence[Hashable]


def contract_data(
    left: jax.Array,
    left_labels: Labels,
    right: jax.Array,
    right_labels: Labels,
    result_labels: Labels,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Contracts two arrays.

    Args:
        left: First array.
        left_labels: Its labels, one for each axis, distinct.
        right: Second array; sizes of common labels agree.
        right_labels: Its labels, distinct.
        result_labels: Labels of the result, in order.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`.

    Returns:
        Array with the axes `result_labels`, dtype: JAX's promotion of the two, or
        `preferred_element_type`.
    """
    common = [label for label in left_labels if label in right_labels]
    summed = [label for label in common if label not in result_labels]
    paired = [label for label in result_labels if label in common]
    dtype = jnp.result_type(left, right)
    left, right = left.astype(dtype), right.astype(dtype)
    if not summed:
        aligned_left = _align(left, left_labels, result_labels)
        aligned_right = _align(right, right_labels, result_labels)
        product = aligned_left * aligned_right
        return product if preferred_element_type is None else product.astype(preferred_element_type)
    left_free = [label for label in left_labels if label not in common]
    right_free = [label for label in right_labels if label not in common]
    wanted = list(result_labels)
    if wanted == [*paired, *right_free, *left_free] != [*paired, *left_free, *right_free]:
        left, right = right, left
        left_labels, right_labels = right_labels, left_labels
        left_free, right_free = right_free, left_free
    groups = fold_groups(left_labels, right_labels, summed)
    if groups is not None:
        folded = contract_data(
            left.reshape(folded_shape(left.shape, left_labels, groups[0])),
            groups[0],
            right.reshape(folded_shape(right.shape, right_labels, groups[1])),
            groups[1],
            [
                *((p,) for p in paired),
                *((f,) for f in left_free),
                *(g for g in groups[1] if g[0] in right_free),
            ],
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
        sizes = {
            **dict(zip(left_labels, left.shape, strict=True)),
            **dict(zip(right_labels, right.shape, strict=True)),
        }
        order = [*paired, *left_free, *right_free]
        return _transpose(folded.reshape([sizes[label] for label in order]), order, wanted)
    dimension_numbers = (
        (_positions(summed, left_labels), _positions(summed, right_labels)),
        (_positions(paired, left_labels), _positions(paired, right_labels)),
    )
    result = jax.lax.dot_general(
        left,
        right,
        dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _transpose(result, [*paired, *left_free, *right_free], wanted)


def _positions(labels: Labels, within: Labels) -> tuple[int, ...]:
    index = {label: position for position, label in enumerate(within)}
    return tuple(index[label] for label in labels)


def _transpose(data: jax.Array, labels: Labels, wanted: Labels) -> jax.Array:
    permutation = _positions(wanted, labels)
    if permutation == tuple(range(data.ndim)):
        return data
    return jnp.transpose(data, permutation)


def _align(data: jax.Array, labels: Labels, result_labels: Labels) -> jax.Array:
    present = [label for label in result_labels if label in labels]
    data = _transpose(data, labels, present)
    absent = [axis for axis, label in enumerate(result_labels) if label not in labels]
    return jnp.expand_dims(data, absent) if absent else data
