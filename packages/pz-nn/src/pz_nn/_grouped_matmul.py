"""Products of groups of rows with one matrix for each group, without padding a group or dropping a row.

On accelerators this is `jax.lax.ragged_dot`. XLA for CPUs lowers that to a product of every row with every
matrix, masked afterwards; there, short blocks of rows are multiplied one after another instead, each with
the one matrix that it needs:

    for group, start in blocks:
        result[start : start + length] = rows[start : start + length] @ matrices[group]

The last block of a group may reach into the next group, whose own blocks come later and overwrite what it
wrote there: nothing needs to be masked or moved.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

__all__ = ["grouped_matmul", "multiply_by_blocks"]

# Longer blocks waste more rows at the ends of groups; shorter ones read the matrices more often.
_LONGEST_BLOCK = 64


def grouped_matmul(
    rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """Multiplies rows {n, i}, sorted by group, by matrices {g, i, o} of the same dtype.

    Args:
        rows: The first `group_sizes[0]` rows belong to group 0, the next to group 1, and so on.
        matrices: One matrix for each group.
        group_sizes: Integers {g} that add up to n.
        transposed: Whether the matrices are given as {g, o, i}.

    Returns:
        Array {n, o}.
    """
    product = functools.partial(
        jax.lax.platform_dependent,
        cpu=functools.partial(multiply_by_blocks, transposed=transposed),
        default=functools.partial(_ragged_dot, transposed=transposed),
    )
    # The gradient needs the arguments alone, not what either of the two would keep for it.
    result: jax.Array = jax.checkpoint(product)(rows, matrices, group_sizes)
    return result


def _ragged_dot(
    rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array, *, transposed: bool
) -> jax.Array:
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    return jax.lax.ragged_dot(rows, matrices, group_sizes)


def multiply_by_blocks(
    rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """What `grouped_matmul` does on CPUs."""
    count, groups = len(rows), len(matrices)
    contracted, made = (2, 1) if transposed else (1, 2)
    length = min(max(count // groups, 1), _LONGEST_BLOCK)
    padded = jnp.pad(rows, ((0, length), (0, 0)))

    @jax.checkpoint  # or each block keeps a copy of its matrix for the gradient
    def multiply(result: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        group, start = block
        some = jax.lax.dynamic_slice_in_dim(padded, start, length, allow_negative_indices=False)
        matrix = jax.lax.dynamic_index_in_dim(
            matrices, group, keepdims=False, allow_negative_indices=False
        )
        product = jax.lax.dot_general(some, matrix, (((1,), (contracted - 1,)), ((), ())))
        result = jax.lax.dynamic_update_slice_in_dim(
            result, product, start, axis=0, allow_negative_indices=False
        )
        return result, None

    empty = jnp.zeros((count + length, matrices.shape[made]), rows.dtype)
    result, _ = jax.lax.scan(multiply, empty, _blocks(group_sizes, count, length))
    return result[:count]


def _blocks(group_sizes: jax.Array, count: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Group and first row of every block, in the order of the rows.

    There are as many blocks as any sizes could need; those too many start at `count`.
    """
    groups = len(group_sizes)
    blocks = -(-group_sizes // length)  # of each group
    index = jnp.arange((count + groups * (length - 1)) // length)
    ends = jnp.cumsum(blocks)
    group = jnp.sum(index[:, None] >= ends[:-1], axis=1)
    start = (jnp.cumsum(group_sizes) - group_sizes - (ends - blocks) * length)[group]
    return group, jnp.minimum(start + index * length, count)
