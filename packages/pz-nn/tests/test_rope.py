import jax
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

from pz_named import named_axes as nx
from pz_nn.embeddings import ApplyRoPE, ApplyRoPEToSubset
from pz_nn.rope_scaling import (
    DefaultScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    YarnScaling,
)


def oracle(x, positions, wavelength=100.0, scale=1.0):
    """Half-split rotation of the last axis; positions broadcast against the others."""
    d = x.shape[-1]
    angles = np.asarray(positions)[..., None] / wavelength ** (2 * np.arange(d // 2) / d) / scale
    first, second = x[..., : d // 2], x[..., d // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


@pytest.mark.smoke
def test_vector():
    layer = ApplyRoPE("e", 100.0, "positions")
    x = nx.wrap(jnp.array([1.0, 2.0, 3.0, 4.0]), "e")
    assert_close(raw(layer(x, positions=nx.wrap(0))), [1, 2, 3, 4], 1e-7)
    expected = [-1.9841106, 1.5906747, 2.4623779, 4.1796835]
    assert_close(raw(layer(x, positions=nx.wrap(1))), expected, 1e-6)


@pytest.mark.parametrize(
    "axes, position_axes", [("bshe", "s"), ("bshe", "bs"), ("behs", "sb"), ("ehsb", "s")]
)
def test_axes_in_any_order(axes, position_axes):
    sizes = dict(b=2, s=3, h=2, e=6)
    x = named(0, {n: sizes[n] for n in axes})
    positions = nx.wrap(jnp.arange(6).reshape(2, 3) * 7, "b", "s")
    positions = (
        positions.order_as(*position_axes) if len(position_axes) == 2 else positions[{"b": 1}]
    )
    y = assert_jit_equals_eager(ApplyRoPE("e", 100.0, "p", scale_factor=2.0), x, 1e-5, p=positions)
    assert axis_order(y) == [*axes.replace("e", ""), "e"]
    p = raw(positions, *sorted(position_axes))
    p = p[:, :, None] if p.ndim == 2 else p[:, None]
    assert_close(raw(y, "b", "s", "h", "e"), oracle(raw(x, "b", "s", "h", "e"), p, scale=2.0), 1e-5)


def test_subset_rotates_the_first_features_with_their_own_frequencies():
    x = named(0, {"s": 3, "e": 10})
    p = nx.arange("s", 3)
    y = ApplyRoPEToSubset("e", 100.0, 4, "p")(x, p=p)
    expected = np.concatenate([oracle(raw(x)[:, :4], np.arange(3)), raw(x)[:, 4:]], -1)
    assert_close(raw(y), expected)
    assert (raw(ApplyRoPEToSubset("e", 100.0, 0, "p")(x, p=p)) == raw(x)).all()
    whole = ApplyRoPEToSubset("e", 100.0, 12, "p")(x, p=p)
    assert_close(raw(whole), raw(ApplyRoPE("e", 100.0, "p")(x, p=p)), 0)


def test_interleaved_pairs():
    x = named(0, {"s": 3, "e": 6})
    p = nx.arange("s", 3)
    y = ApplyRoPE("e", 100.0, "p", pairing="interleaved")(x, p=p)
    halves = np.concatenate([raw(x)[:, 0::2], raw(x)[:, 1::2]], -1)
    turned = oracle(halves, np.arange(3))
    assert_close(raw(y)[:, 0::2], turned[:, :3])
    assert_close(raw(y)[:, 1::2], turned[:, 3:])


def test_relative_positions_are_all_that_counts():
    q, k = named(0, {"e": 8}), named(1, {"e": 8})
    layer = ApplyRoPE("e", 100.0, "p")

    def score(a, b):
        return float(np.dot(raw(layer(q, p=nx.wrap(a))), raw(layer(k, p=nx.wrap(b)))))

    assert_close(score(3, 1), score(103, 101), 1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
def test_low_precision(dtype, tolerance):
    x = named(0, {"s": 3, "e": 6}, dtype)
    p = nx.arange("s", 3) * 1000
    y = ApplyRoPE("e", 100.0, "p")(x, p=p)
    assert y.dtype == dtype
    # Angles and products are in float32, so only the last rounding counts.
    assert (
        raw(y) == np.asarray(jnp.asarray(oracle(raw(x), raw(p)), dtype), np.float64)
    ).mean() > 0.9
    assert_close(raw(y), oracle(raw(x), raw(p)), tolerance)
    rounded = ApplyRoPE("e", 100.0, "p", angles_in_input_dtype=True)(x, p=p)
    assert rounded.dtype == dtype
    assert_close(raw(rounded), oracle(raw(x), raw(p)), 2 * tolerance)
    assert (raw(rounded) != raw(y)).any()


def test_given_frequencies_replace_the_formula():
    x, p = named(0, {"s": 3, "e": 4}), nx.arange("s", 3)
    plain = ApplyRoPE("e", 100.0, "p")
    given = ApplyRoPE("e", 1.0, "p", frequencies=nx.wrap(jnp.array([1.0, 0.1]), "e"))
    assert_close(raw(given(x, p=p)), raw(plain(x, p=p)), 1e-6)
    wrong = ApplyRoPE("e", 1.0, "p", frequencies=nx.ones({"e": 3}))
    with raises(ValueError, "size 2", "{'e': 3}"):
        wrong(x, p=p)


def test_zero_length_and_one_token():
    layer = ApplyRoPE("e", 100.0, "p")
    assert layer(nx.zeros({"s": 0, "e": 4}), p=nx.arange("s", 0)).named_shape == {"s": 0, "e": 4}
    assert layer(nx.ones({"s": 1, "e": 4}), p=nx.arange("s", 1)).named_shape == {"s": 1, "e": 4}


def test_errors():
    layer = ApplyRoPE("e", 100.0, "positions")
    x = named(0, {"s": 3, "e": 4})
    with raises(KeyError, "positions", "ApplyRoPE", "Did you mean 'position'?"):
        layer(x, position=nx.arange("s", 3))
    with raises(ValueError, "even", "3"):
        ApplyRoPEToSubset("e", 100.0, 3, "positions")(x, positions=nx.arange("s", 3))
    with raises(ValueError, "agree in size", "{'s': 1}", "{'s': 3, 'e': 4}"):
        layer(x, positions=nx.arange("s", 1))  # not broadcast
    for make in (ApplyRoPE, lambda *a, **k: ApplyRoPEToSubset(a[0], a[1], 2, a[2], **k)):
        with raises(ValueError, "at least 1.0", "0.5"):
            make("e", 100.0, "positions", scale_factor=0.5)
        with raises(ValueError, "pairing", "'quarters'"):
            make("e", 100.0, "positions", pairing="quarters")


DEFAULT = [1, 0.316228, 0.1, 0.0316228, 0.01, 0.00316228, 0.001, 0.000316228]
LONG = LongRoPEScaling((1.0,) * 8, (2.0,) * 8, 1024, 4.0)
SCALINGS = [
    (DefaultScaling(), None, DEFAULT, 1),
    (LinearScaling(4.0), None, [f / 4 for f in DEFAULT], 1),
    (DynamicScaling(2.0, 4096), 4096, DEFAULT, 1),
    (DynamicScaling(2.0, 4096), 17, DEFAULT, 1),
    (
        DynamicScaling(2.0, 4096),
        8192,
        [1, 0.270296, 0.07306, 0.0197478, 0.00533776, 0.00144278, 0.000389977, 0.000105409],
        1,
    ),
    (
        Llama3Scaling(8.0, 1.0, 4.0, 256),
        None,
        [1, 0.316228, 0.1, 0.00661311, 0.00125, 0.000395285, 0.000125, 3.95285e-05],
        1,
    ),
    (
        YarnScaling(4.0, 256),
        None,
        [1, 0.256935, 0.0625, 0.013835, 0.0025, 0.000790569, 0.00025, 7.90569e-05],
        1.1386294,
    ),
    (
        YarnScaling(4.0, 256, truncate=False),
        None,
        [1, 0.253972, 0.0553986, 0.00963994, 0.0025, 0.000790569, 0.00025, 7.90569e-05],
        1.1386294,
    ),
    (
        YarnScaling(16.0, 256, mscale=1.0, mscale_all_dim=0.5),
        None,
        [1, 0.242112, 0.053125, 0.00938801, 0.000625, 0.000197642, 6.25e-05, 1.97642e-05],
        1.1217511,
    ),
    (YarnScaling(1.0, 256, attention_factor=0.7), None, DEFAULT, 0.7),
    (YarnScaling(1.0, 256), None, DEFAULT, 1),
    (LONG, 2000, [f / 2 for f in DEFAULT], 1.0954451),
    (LONG, 1024, DEFAULT, 1.0954451),
    (LongRoPEScaling((1.0,) * 8, (2.0,) * 8, 1024, 1.0), 1, DEFAULT, 1),
    (LongRoPEScaling((1.0,) * 8, (2.0,) * 8, 1024, 4.0, attention_factor=2.0), 1, DEFAULT, 2),
]


@pytest.mark.smoke
@pytest.mark.parametrize("scaling, length, expected, factor", SCALINGS)
def test_scaling_vectors(scaling, length, expected, factor):
    assert scaling.needs_length == (length is not None)
    np.testing.assert_allclose(scaling.frequencies(16, 1e4, length), expected, rtol=5e-6)
    assert_close(scaling.attention_scale(), factor, 1e-7)


@pytest.mark.parametrize("scaling, length, expected, factor", SCALINGS)
def test_scaled_rotation(scaling, length, expected, factor):
    x, p = named(0, {"s": 3, "e": 16}), nx.arange("s", 3)
    layer = ApplyRoPE("e", 1e4, "p", scaling=scaling)
    sides = {} if length is None else {"rope_length": jnp.asarray(length)}
    y = jax.jit(lambda v, s: layer(v, p=p, **s))(x, sides)
    angles = np.arange(3)[:, None] * np.asarray(expected)
    cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
    first, second = raw(x)[:, :8], raw(x)[:, 8:]
    wanted = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    assert_close(raw(y), wanted, 1e-5)
    assert layer == ApplyRoPE("e", 1e4, "p", scaling=scaling)


def test_yarn_with_an_empty_ramp_steps_from_kept_to_interpolated():
    scaling = YarnScaling(4.0, 256, beta_fast=2.0, beta_slow=2.0, truncate=False)
    ratio = scaling.frequencies(16, 1e4) / np.asarray(DEFAULT)
    assert_close(np.sort(ratio)[::-1], ratio)
    assert_close(np.unique(np.round(ratio, 3)), [0.25, 1.0])


def test_scaling_errors():
    x, p = named(0, {"s": 3, "e": 16}), nx.arange("s", 3)
    with raises(KeyError, "rope_length", "ApplyRoPE"):
        ApplyRoPE("e", 1e4, "p", scaling=LONG)(x, p=p)
    short = LongRoPEScaling((1.0,) * 4, (2.0,) * 8, 1024, 4.0)
    with raises(ValueError, "short_factor", "8", "4"):
        ApplyRoPE("e", 1e4, "p", scaling=short)(x, p=p, rope_length=1)


def test_length_may_be_a_named_scalar_and_the_layer_lives_in_a_tree():
    x, p = named(0, {"s": 3, "e": 16}), nx.arange("s", 3)
    layer = ApplyRoPE("e", 1e4, "p", scaling=LONG)
    y = layer(x, p=p, rope_length=nx.wrap(2000))
    assert_close(raw(y), raw(layer(x, p=p, rope_length=2000)), 0)
    assert jax.tree.leaves(layer) == []


@pytest.mark.parametrize("scaling", [LONG, DynamicScaling(2.0, 64)], ids=["long", "dynamic"])
def test_each_row_may_have_its_own_length(scaling):
    x, p = named(0, {"s": 3, "row": 2, "e": 16}), nx.arange("s", 3)
    layer = ApplyRoPE("e", 1e4, "p", scaling=scaling)
    y = layer(x, p=p, rope_length=nx.wrap(jnp.array([3, 2000]), "row"))
    for row, length in enumerate((3, 2000)):
        alone = layer(x[{"row": row}], p=p, rope_length=length)
        assert_close(raw(y[{"row": row}], "s", "e"), raw(alone, "s", "e"), 1e-6)
    with raises(ValueError, "must have every axis of the length ('rope_length')", "['other']"):
        layer(x, p=p, rope_length=nx.wrap(jnp.array([3]), "other"))
