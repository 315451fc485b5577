import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, raises, raw

from pz_nn.initializers import (
    check_unique_axis_names_for_initializer,
    constant_initializer,
    initializer_by_name,
    variance_scaling_initializer,
)
from pz_nn.linear_and_affine import xavier_uniform_initializer

GROUPS = dict(
    input_axes={"i": 6, "j": 5},
    output_axes={"o": 20},
    parallel_axes={"p": 8},
    convolution_spatial_axes={"s": 3},
)
FANS = {"fan_in": 3 * 30, "fan_out": 3 * 20, "fan_avg": 3 * 25}


@pytest.mark.smoke
@pytest.mark.parametrize("mode", FANS)
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_variance_scaling(key, mode, distribution):
    weights = variance_scaling_initializer(
        key, scale=2.0, mode=mode, distribution=distribution, dtype=jnp.float32, **GROUPS
    )
    assert axis_order(weights) == ["p", "s", "i", "j", "o"]
    deviation = np.sqrt(2.0 / FANS[mode])
    values = raw(weights)
    # 14400 draws: the standard deviation is known to about 0.6 %.
    assert_close(values.std(), deviation, 0.03 * deviation)
    limit = {"normal": np.inf, "uniform": np.sqrt(3), "truncated_normal": 2 / 0.87962566}[
        distribution
    ]
    assert np.abs(values).max() <= limit * deviation * 1.00001


@pytest.mark.parametrize("sizes", [{}, {"o": 4}])
def test_weights_of_few_axes(key, sizes):
    groups = dict(input_axes={}, output_axes=sizes, parallel_axes={}, convolution_spatial_axes={})
    weights = xavier_uniform_initializer(key, dtype=jnp.float32, **groups)
    assert weights.named_shape == sizes
    expected = jax.random.uniform(key, tuple(sizes.values()), jnp.float32, -1)
    fan = 0.5 * (1 + np.prod(list(sizes.values()), initial=1))
    assert_close(raw(weights), np.asarray(expected) * np.sqrt(3 / fan), 1e-6)


def test_draws_in_the_dtype_asked_for(key):
    # Uniform, since releases of JAX differ in whether they round normal values before scaling them.
    weights = xavier_uniform_initializer(key, dtype=jnp.bfloat16, **GROUPS)
    shape = tuple(weights.named_shape.values())
    variance = jnp.asarray(1 / FANS["fan_avg"], jnp.bfloat16)
    expected = jax.random.uniform(key, shape, jnp.bfloat16, -1) * jnp.sqrt(3 * variance)
    assert (weights.data_array == expected).all()


def test_variance_scaling_errors(key):
    def call(**options):
        settings = dict(
            scale=1.0, mode="fan_in", distribution="normal", dtype=jnp.float32, **GROUPS
        )
        return variance_scaling_initializer(key, **{**settings, **options})

    with raises(ValueError, "mode", "'fan_im'", "Did you mean 'fan_in'?"):
        call(mode="fan_im")
    with raises(ValueError, "distribution", "'gauss'"):
        call(distribution="gauss")
    with raises(ValueError, "floating", "int32"):
        call(dtype=jnp.int32)
    for mode in ("fan_in", "fan_out", "fan_avg"):
        with raises(ZeroDivisionError, "input_axes={'i': 0}", "use zero_initializer"):
            call(mode=mode, input_axes={"i": 0})


def test_unique_names():
    check_unique_axis_names_for_initializer(**GROUPS)
    with raises(ValueError, "['i']", "input_axes={'i': 6, 'j': 5}", "parallel_axes={'i': 1}"):
        check_unique_axis_names_for_initializer(**{**GROUPS, "parallel_axes": {"i": 1}})


def test_constant_initializer_order(key):
    weights = constant_initializer(3)(key, dtype=jnp.float32, **GROUPS)
    assert axis_order(weights) == ["i", "j", "o", "p", "s"]
    assert (raw(weights) == 3).all()
    with raises(ValueError, "['i']"):
        constant_initializer(3)(key, dtype=jnp.float32, **{**GROUPS, "parallel_axes": {"i": 1}})


@pytest.mark.parametrize(
    "name, deviation",
    [
        ("he_normal", np.sqrt(2 / 90)),
        ("kaiming_uniform", np.sqrt(2 / 90)),
        ("lecun_normal", np.sqrt(1 / 90)),
        ("lecun_uniform", np.sqrt(1 / 90)),
        ("glorot_normal", np.sqrt(1 / 75)),
        ("xavier_uniform", np.sqrt(1 / 75)),
        ("normal", 0.02),
        ("truncated_normal", 0.02 * 0.87962566),
        ("orthogonal", np.sqrt(1 / 90)),
        ("zeros", 0.0),
        ("ones", 0.0),
    ],
)
def test_initializers_by_name(key, name, deviation):
    weights = initializer_by_name(name)(key, dtype=jnp.float32, **GROUPS)
    assert set(weights.named_shape) == {"p", "s", "i", "j", "o"}
    assert_close(raw(weights).std(), deviation, 0.03 * deviation)


def test_orthogonal_matrices_are_orthogonal(key):
    weights = initializer_by_name("orthogonal")(key, dtype=jnp.float32, **GROUPS)
    matrices = raw(weights, "p", "s", "i", "j", "o").reshape(8, 90, 20)
    assert_close(matrices.transpose(0, 2, 1) @ matrices, np.eye(20)[None].repeat(8, 0))
    assert np.abs(matrices[0] - matrices[1]).max() > 0.1
