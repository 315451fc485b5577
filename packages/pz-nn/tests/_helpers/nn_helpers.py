"""Small helpers for the tests of pz-nn."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

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


def check_gradients(function, *arguments, step=1e-5, tolerance=1e-6):
    """Gradients against central differences in a random direction; needs 64-bit floats.

    One compiled program computes both: <c, (f(x + hv) - f(x - hv)) / 2h> and <f'(x)ᵀ c, v> for random c, v.
    """
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arguments)
    start, unravel = ravel_pytree(leaves)

    @jax.jit
    def both(start, direction):
        def flat(vector):
            outputs = jax.tree.leaves(function(*unravel(vector)))
            return jnp.concatenate([jnp.ravel(output) for output in outputs])

        output, pullback = jax.vjp(flat, start)
        weights = jnp.cos(1.7 * jnp.arange(output.size))
        difference = flat(start + step * direction) - flat(start - step * direction)
        return jnp.vdot(weights, difference) / (2 * step), jnp.vdot(*pullback(weights), direction)

    direction = np.random.default_rng(0).normal(size=start.shape)
    numerical, analytical = both(start, direction)
    # Central differences err by about step² times the third derivative, and by rounding / step.
    np.testing.assert_allclose(analytical, numerical, rtol=tolerance, atol=tolerance / 10)


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
