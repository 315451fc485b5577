import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, check_gradients

from pz_nn._grouped_matmul import grouped_matmul, multiply_by_blocks

# Groups that are empty, alone, longer than a block, one row each, and fewer rows than groups.
SIZES = [[3, 0, 5, 2], [0, 140, 1, 3], [1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [7]]


def operands(sizes, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(sum(sizes), 3)).astype(dtype)
    matrices = random.normal(size=(len(sizes), 3, 2)).astype(dtype)
    return rows, matrices


def oracle(rows, matrices, sizes):
    starts = np.cumsum([0, *sizes])
    parts = [rows[a:b] @ m for a, b, m in zip(starts, starts[1:], matrices, strict=False)]
    return np.concatenate(parts)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes, transposed", [(s, False) for s in SIZES] + [(SIZES[0], True)])
def test_each_row_meets_the_matrix_of_its_group(sizes, transposed):
    rows, matrices = operands(sizes)
    given = matrices.swapaxes(1, 2) if transposed else matrices
    result = grouped_matmul(rows, given, jnp.array(sizes), transposed=transposed)
    assert_close(result, oracle(rows, matrices, sizes))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes(float64, dtype):
    sizes = SIZES[0]
    rows, matrices = operands(sizes)
    result = grouped_matmul(rows.astype(dtype), matrices.astype(dtype), jnp.array(sizes))
    assert result.dtype == dtype
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    rounded = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in (rows, matrices)]
    assert_close(np.asarray(result, np.float64), oracle(*rounded, sizes), tolerance)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(float64, transposed):
    sizes = jnp.array([3, 0, 5, 2])
    rows, matrices = operands([3, 0, 5, 2], np.float64)
    given = matrices.swapaxes(1, 2) if transposed else matrices
    check_gradients(
        lambda rows, matrices: grouped_matmul(rows, matrices, sizes, transposed=transposed),
        rows,
        given,
    )


def test_mapped_over_rows_and_sizes():
    all_sizes = [[3, 0, 5, 2], [0, 9, 0, 1]]
    rows, matrices = operands(all_sizes[0])
    batch = np.stack([rows, 2 * rows])
    result = jax.vmap(multiply_by_blocks, (0, None, 0))(batch, matrices, jnp.array(all_sizes))
    for got, given, sizes in zip(result, batch, all_sizes, strict=True):
        assert_close(got, oracle(given, matrices, sizes))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_accelerators_run_ragged_dot(platform):
    rows, matrices = operands([3, 0, 5, 2])
    traced = jax.jit(grouped_matmul).trace(rows, matrices, jnp.array([3, 0, 5, 2]))
    program = traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
    assert ("stablehlo.while" in program) == (platform == "cpu")
    assert platform == "cpu" or "ragged_dot" in program


def test_the_gradient_keeps_no_copy_of_a_matrix_for_each_block():
    def peak(length):
        sizes = jnp.full(4, length)
        rows, matrices = jnp.ones((4 * length, 512)), jnp.ones((4, 512, 512))
        loss = jax.grad(lambda rows, m: jnp.sum(grouped_matmul(rows, m, sizes) ** 2), (0, 1))
        return jax.jit(loss).lower(rows, matrices).compile().memory_analysis().temp_size_in_bytes

    # From 8 to 16 blocks: the rows must be held, and their products, but not 8 more matrices.
    rows_and_products = 4 * (192 - 64) * (512 + 512) * 4
    assert peak(192) - peak(64) < 2 * rows_and_products < 8 * 512 * 512 * 4
