"""Contraction of two arrays whose axes carry labels, as one `dot_general`.

Every label stands once in each array that has it. A label in both arrays is summed over unless the result
has it, in which case the arrays are paired along it; any other label must be in the result. Operands are
not transposed (but where `_axis_folding` brings paired axes to the front, as XLA would), and the result only
if no order of the operands gives it as wanted.

What to do depends on the labels alone, so it is planned once for each set of labels.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pz_nn._axis_folding import Groups, fold, fold_groups, should_fold
from pz_nn._dtypes import cast

Labels = tuple[Hashable, ...]


class _Plan(NamedTuple):
    """How to contract; `dimension_numbers` is None where nothing is summed over.

    Attributes:
        swapped: Whether the right operand comes first.
        dimension_numbers: As in `jax.lax.dot_general`, for the operands in their final order.
        permutation: Order of the result's axes, or None to leave it.
        folds: Groups of axes that are folded together before, or None; see `_axis_folding`.
        unfolded: Labels of the operands and of the unpermuted result, where there are folds.
    """

    swapped: bool
    dimension_numbers: Any
    permutation: tuple[int, ...] | None
    folds: tuple[Groups, Groups] | None = None
    unfolded: tuple[Labels, Labels, Labels] | None = None


@functools.lru_cache(maxsize=4096)
def _plan(left: Labels, right: Labels, result: Labels, folds_axes: bool) -> _Plan:
    common = [label for label in left if label in right]
    summed = [label for label in common if label not in result]
    paired = [label for label in result if label in common]
    if not summed:
        return _Plan(False, None, None)
    left_free = [label for label in left if label not in common]
    right_free = [label for label in right if label not in common]
    made = [*paired, *left_free, *right_free]
    swapped = list(result) != made and list(result) == [*paired, *right_free, *left_free]
    if swapped:
        left, right, made = right, left, list(result)
    folds = fold_groups(left, right, summed) if folds_axes else None
    left_axes: Labels = left if folds is None else tuple(group[0] for group in folds[0])
    right_axes: Labels = right if folds is None else tuple(group[0] for group in folds[1])
    summed = [label for label in summed if label in right_axes]
    dimension_numbers = (
        (_positions(summed, left_axes), _positions(summed, right_axes)),
        (_positions(paired, left_axes), _positions(paired, right_axes)),
    )
    permutation = None if list(result) == made else _positions(result, made)
    unfolded = None if folds is None else (left, right, tuple(made))
    return _Plan(swapped, dimension_numbers, permutation, folds, unfolded)


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
    plan = _plan(left_labels, right_labels, result_labels, should_fold(left, right))
    if left.dtype != right.dtype:
        dtype = jnp.result_type(left, right)
        left, right = left.astype(dtype), right.astype(dtype)
    if plan.dimension_numbers is None:
        aligned_left = _align(left, left_labels, result_labels)
        aligned_right = _align(right, right_labels, result_labels)
        product = aligned_left * aligned_right
        return product if preferred_element_type is None else cast(product, preferred_element_type)
    operands = (right, left) if plan.swapped else (left, right)
    shape = None
    if plan.folds is not None and plan.unfolded is not None:
        operands, shape = fold(operands, plan.folds, plan.unfolded)
    result = jax.lax.dot_general(
        *operands,
        plan.dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if shape is not None:
        result = result.reshape(shape)
    return result if plan.permutation is None else jnp.transpose(result, plan.permutation)


def _positions(labels: Any, within: Any) -> tuple[int, ...]:
    index = {label: position for position, label in enumerate(within)}
    return tuple(index[label] for label in labels)


def _align(data: jax.Array, labels: Labels, result_labels: Labels) -> jax.Array:
    present = tuple(label for label in result_labels if label in labels)
    if present != labels:
        data = jnp.transpose(data, _positions(present, labels))
    absent = [axis for axis, label in enumerate(result_labels) if label not in labels]
    return jnp.expand_dims(data, absent) if absent else data
