import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import (
    assert_close,
    assert_jit_equals_eager,
    axis_order,
    named,
    raises,
    raw,
)

from pz_nn.group_norm import GroupNorm, GroupStandardize


def oracle(x, groups, eps=1e-5):
    """x (batch, channels, space)."""
    n, c, s = x.shape
    x = x.reshape(n, groups, c // groups * s)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x.reshape(n, c, s)


@pytest.mark.parametrize("groups, order", [(1, "ncs"), (2, "snc"), (6, "csn")])
def test_group_norm(key, groups, order):
    sizes = dict(n=2, c=6, s=4)
    layer = GroupNorm.from_config("g", key, "c", 6, groups, across="s")
    standardize, scale, shift = layer.sublayers
    assert [scale.weights.label, shift.bias.label] == ["g/scale.weights", "g/shift.bias"]
    x = named(0, {n: sizes[n] for n in order})
    y = assert_jit_equals_eager(standardize, x)
    assert axis_order(y) == list(order)
    assert_close(raw(y, "n", "c", "s"), oracle(raw(x, "n", "c", "s"), groups))
    scale.weights.value, shift.bias.value = named(1, {"c": 6}), named(2, {"c": 6})
    expected = raw(y, "n", "s", "c") * raw(scale.weights.value) + raw(shift.bias.value)
    assert_close(raw(layer(x), "n", "s", "c"), expected)


def test_dtypes_and_errors():
    x = named(0, {"n": 2, "c": 6}, jnp.bfloat16)
    assert GroupStandardize("c", 2)(x).dtype == jnp.bfloat16
    with raises(ValueError, "'c'", "6", "groups=4"):
        GroupStandardize("c", 4)(x)
    with raises(ValueError, "GroupStandardize", "'s'"):
        GroupStandardize("c", 2, "s")(x)
