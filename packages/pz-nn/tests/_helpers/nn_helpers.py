"""Small helpers for the tests of pz-nn."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_named import named_axes as nx


def named(seed, sizes, dtype=jnp.float32):
    """A named array of normal entries."""
    rng = np.random.default_rng(seed)
    return nx.wrap(jnp.asarray(rng.normal(size=tuple(sizes.values())), dtype), *sizes)


def raw(array, *order):
    """The data of a named array as NumPy in float64, axes in the given order (or as stored)."""
    prefix = array.with_positional_prefix()
    data = np.asarray(prefix.data_array).astype(np.float64)
    if not order:
        return data
    # In NumPy: a transpose in JAX would compile a program for each shape.
    names = list(prefix.named_axes)
    assert data.ndim == len(names) == len(order)
    return data.transpose([names.index(name) for name in order])


def axis_order(array):
    """Names as stored."""
    return list(array.named_shape)


@contextlib.contextmanager
def raises(error, *fragments):
    """Expects an error whose text holds every fragment, in any order."""
    with pytest.raises(error) as caught:
        yield caught
    text = str(caught.value)
    for fragment in fragments:
        assert re.search(re.escape(fragment), text), f"{fragment!r} not in:\n{text}"


def assert_close(actual, expected, tolerance=1e-5):
    """Compares values; the tolerance is relative and absolute."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def check_gradients(function, *arguments, order=1):
    """Gradients against finite differences; call with 64-bit floats enabled."""
    from jax.test_util import check_grads

    # Compiled: one program instead of one for each small operation.
    compiled = jax.jit(function)
    check_grads(compiled, arguments, order=order, modes=["rev"], atol=1e-6, rtol=1e-6)


def assert_jit_equals_eager(layer, value, tolerance=1e-6, **side_inputs):
    """Runs a layer without variables eagerly and compiled; returns the eager result."""
    eager = layer(value, **side_inputs)
    compiled = jax.jit(lambda la, v, s: la(v, **s))(layer, value, side_inputs)
    assert axis_order(eager) == axis_order(compiled)
    assert eager.dtype == compiled.dtype
    assert_close(raw(eager), raw(compiled), tolerance)
    return eager


def draw(key, *, input_axes, output_axes, parallel_axes, convolution_spatial_axes, dtype):
    """An initializer without compilation; for tests that ask what a layer does with its weights."""
    del key
    sizes = {**parallel_axes, **convolution_spatial_axes, **input_axes, **output_axes}
    return named(len(str(sizes)), sizes, dtype)
