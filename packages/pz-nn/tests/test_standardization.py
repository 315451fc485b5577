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

from pz_core.variables import Parameter
from pz_named import named_axes as nx
from pz_nn.linear_and_affine import AddBias, Linear
from pz_nn.standardization import (
    ComputeInDType,
    LayerNorm,
    RMSLayerNorm,
    RMSStandardize,
    ScaleWithOffset,
    Standardize,
)


def standardize(x, axis, eps=1e-6):
    centred = x - x.mean(axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis, keepdims=True) + eps)


def rms(x, axis, eps=1e-6):
    return x / np.sqrt((x**2).mean(axis, keepdims=True) + eps)


@pytest.mark.parametrize("layer, oracle", [(Standardize, standardize), (RMSStandardize, rms)])
@pytest.mark.parametrize("across", ["b", ("c", "a"), ()])
def test_statistics(layer, oracle, across):
    x = named(0, {"a": 2, "b": 5, "c": 3})
    y = assert_jit_equals_eager(layer(across), x)
    names = (across,) if isinstance(across, str) else across
    rest = [n for n in "abc" if n not in names]
    assert axis_order(y) == [*rest, *names]
    axes = tuple(range(len(rest), 3))
    if names == () and layer is Standardize:
        assert (raw(y) == 0).all()
    else:
        assert_close(raw(y), oracle(raw(x, *rest, *names), axes))


def test_variance_does_not_cancel_for_large_means():
    x = named(0, {"a": 64}) + 1e4
    # Input of this size carries a rounding of 5e-4 itself.
    assert_close(raw(Standardize("a")(x)), standardize(raw(x), 0), 1e-3)


@pytest.mark.parametrize("layer, oracle", [(Standardize, standardize), (RMSStandardize, rms)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_computes_in_float32(layer, oracle, dtype):
    x = named(0, {"n": 3, "a": 64}, dtype)
    y = layer("a")(x)
    assert y.dtype == dtype
    exact = np.asarray(jnp.asarray(oracle(raw(x), 1), dtype), np.float64)
    assert (raw(y) == exact).mean() > 0.99
    switched_off = layer("a", compute_dtype=None)(x)
    assert switched_off.dtype == dtype
    assert (raw(switched_off) != exact).any()
    assert_close(raw(switched_off), oracle(raw(x), 1), 5e-2)


def test_epsilon_is_not_rounded_away_in_float16():
    x = nx.zeros({"a": 4}, jnp.float16)
    assert (raw(RMSStandardize("a", 1e-8)(x)) == 0).all()
    assert RMSStandardize("a")(nx.arange("a", 4)).dtype == jnp.float32


def test_axis_errors():
    with raises(ValueError, "RMSStandardize", "'feature'", "Did you mean 'features'?"):
        RMSStandardize("feature")(named(0, {"features": 3}))
    with raises(ValueError, "Standardize", "positional", "(3,)"):
        Standardize("a")(nx.wrap(jnp.ones(3)))


@pytest.mark.smoke
def test_layer_norm(key):
    layer = LayerNorm.from_config("N", key, {"a": 4, "b": 3}, epsilon=1e-3)
    first, scale, shift = layer.sublayers
    assert first == Standardize(("a", "b"), 1e-3)
    assert isinstance(scale, Linear)
    assert isinstance(shift, AddBias)
    assert [scale.weights.label, shift.bias.label] == ["N/scale.weights", "N/shift.bias"]
    assert (scale.in_axis_names, scale.out_axis_names) == ((), ())
    assert (raw(scale.weights.value) == 1).all()
    scale.weights.value, shift.bias.value = named(1, {"a": 4, "b": 3}), named(2, {"a": 4, "b": 3})
    x = named(0, {"a": 4, "n": 2, "b": 3})
    y = layer(x)
    assert axis_order(y) == ["n", "a", "b"]
    expected = standardize(raw(x, "n", "a", "b"), (1, 2), 1e-3) * raw(scale.weights.value)
    assert_close(raw(y), expected + raw(shift.bias.value))
    assert len(LayerNorm.from_config("N", key, {"a": 4}, use_bias=False).sublayers) == 2


@pytest.mark.smoke
def test_rms_layer_norm(key):
    layer = RMSLayerNorm.from_config("N", key, {"a": 4}, epsilon=1e-3)
    first, scale = layer.sublayers
    assert first == RMSStandardize(("a",), 1e-3)
    assert scale.weights.label == "N/scale.weights"
    scale.weights.value = named(1, {"a": 4})
    x = named(0, {"n": 2, "a": 4})
    assert_close(raw(layer(x)), rms(raw(x), 1, 1e-3) * raw(scale.weights.value))


def weighted(layer, dtype):
    w = named(3, {"a": 64}, dtype)
    values = [Parameter(label="N/scale.weights", value=w)]
    return layer.bind_variables(values), w


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rms_layer_norm_variants_follow_published_arithmetic(dtype):
    x = named(0, {"n": 3, "a": 64}, dtype)
    data = x.unwrap("n", "a").astype(jnp.float32)
    plain = data * jax.lax.rsqrt(jnp.mean(data**2, -1, keepdims=True) + 1e-6)

    def build(**options):
        layer = RMSLayerNorm.from_config("N", None, {"a": 64}, **options)
        bound, weights = weighted(layer, dtype)
        return bound(x), weights.unwrap("a")

    y, w = build()  # Llama: cast, then multiply in the input's dtype
    assert y.dtype == dtype
    assert (y.unwrap("n", "a") == plain.astype(dtype) * w).all()
    y, w = build(scale_before_cast=True)  # OLMo 2: multiply in float32, then cast
    assert y.dtype == dtype
    assert (y.unwrap("n", "a") == (plain * w.astype(jnp.float32)).astype(dtype)).all()
    y, w = build(scale_before_cast=True, offset=1.0)  # Gemma
    assert y.dtype == dtype
    assert (y.unwrap("n", "a") == (plain * (1 + w.astype(jnp.float32))).astype(dtype)).all()


def test_offset_weights_start_as_the_identity(key):
    layer = RMSLayerNorm.from_config("N", key, {"a": 4}, offset=1.0)
    x = named(0, {"n": 2, "a": 4})
    assert (raw(layer.sublayers[1].weights.value) == 0).all()
    assert_close(raw(layer(x)), rms(raw(x), 1))


def test_mixed_dtypes_promote_only_where_the_scale_is_wider(key):
    x = named(0, {"n": 2, "a": 4}, jnp.bfloat16)
    assert RMSLayerNorm.from_config("N", key, {"a": 4})(x).dtype == jnp.float32
    before = RMSLayerNorm.from_config("N", key, {"a": 4}, scale_before_cast=True)
    assert before(x).dtype == jnp.bfloat16
    assert LayerNorm.from_config("N", key, {"a": 4}, scale_before_cast=True)(x).dtype == x.dtype


def test_scale_before_cast_needs_a_dtype():
    for cls in (LayerNorm, RMSLayerNorm):
        with raises(ValueError, cls.__name__, "compute_dtype is None"):
            cls.from_config("N", None, {"a": 4}, compute_dtype=None, scale_before_cast=True)
        assert cls.from_config("N", None, {"a": 4}, scale_before_cast=True)


def test_scale_with_offset_errors():
    layer = ScaleWithOffset(Parameter(label="w", value=nx.ones({"a": 4})), 1.0)
    assert (raw(layer(nx.ones({"n": 2, "a": 4}))) == 2).all()
    with raises(ValueError, "ScaleWithOffset", "'a'"):
        layer(nx.ones({"n": 2}))
    with raises(ValueError, "{'a': 3}", "{'a': 4}"):
        layer(nx.ones({"a": 3}))


def test_compute_in_dtype():
    seen = []

    def spy(x, /, **side_inputs):
        seen.append((x.dtype, side_inputs))
        return x

    layer = ComputeInDType(jnp.float32, [spy])
    assert layer(nx.ones({"a": 2}, jnp.bfloat16), value=1).dtype == jnp.bfloat16
    assert layer(nx.arange("a", 2)).dtype == jnp.float32
    assert seen == [(jnp.float32, {"value": 1}), (jnp.float32, {})]


@pytest.mark.parametrize("cls", [LayerNorm, RMSLayerNorm])
def test_empty_and_single(key, cls):
    layer = cls.from_config("N", key, {"a": 4})
    assert layer(nx.zeros({"seq": 0, "a": 4})).named_shape == {"seq": 0, "a": 4}
    assert layer(nx.ones({"a": 4})).named_shape == {"a": 4}


@pytest.mark.parametrize("cls", [Standardize, RMSStandardize])
def test_epsilon_is_a_number(cls):
    for number in (jnp.float32(0.25), np.float64(0.25), np.array(0.25)):
        layer = cls("a", number)
        assert layer == cls("a", 0.25)
        assert type(layer.epsilon) is float  # a np.float64, a float too, would promote bfloat16
        assert jax.tree.leaves(layer) == []
    for wrong in (jnp.ones(2), "1e-6"):
        with pytest.raises(TypeError, match="epsilon must be a number"):
            cls("a", wrong)
    with pytest.raises(TypeError, match="known when the layer is built"):
        jax.jit(lambda epsilon: cls("a", epsilon)(named(0, {"a": 3})))(1e-6)
