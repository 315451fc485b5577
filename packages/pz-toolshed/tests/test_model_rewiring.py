import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_named.named_axes import wrap
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import Residual
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import Identity, Sequential
from pz_nn.standardization import RMSLayerNorm
from pz_toolshed.jit_wrapper import Jitted
from pz_toolshed.model_rewiring import (
    From,
    KnockOutAttentionHeads,
    LinearizeAndAdjust,
    RewireComputationPaths,
)


def named(values, *names):
    return wrap(jnp.asarray(values)).tag(*names)


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_knock_out_redirects_to_the_first_key_and_interpolates():
    attention = named([[0.5, 0.5], [0.2, 0.8]], "heads", "kv_seq")
    out = KnockOutAttentionHeads(named([0.5, 0.0], "heads"))(attention, unknown=1)
    np.testing.assert_allclose(out.unwrap("heads", "kv_seq"), [[0.75, 0.25], [1, 0]])
    assert list(out.named_shape) == ["heads", "kv_seq"]


def test_knock_out_with_new_axes_another_name_and_a_key_per_batch_entry():
    attention = named([[0.5, 0.5], [0.2, 0.8]], "batch", "keys")
    layer = KnockOutAttentionHeads(
        named([0.0, 1.0], "worlds"), redirect_to=named([0, 1], "batch"), kv_axis="keys"
    )
    out = layer(attention)
    np.testing.assert_allclose(
        out.unwrap("worlds", "batch", "keys"), [[[1, 0], [0, 1]], [[0.5, 0.5], [0.2, 0.8]]]
    )
    np.testing.assert_array_equal(
        Jitted(layer)(attention).unwrap("worlds", "batch", "keys"),
        out.unwrap("worlds", "batch", "keys"),
    )


def test_knock_out_mask_is_differentiable():
    attention = named([[0.5, 0.5], [0.2, 0.8]], "heads", "kv_seq")
    gradient = jax.grad(
        lambda mask: KnockOutAttentionHeads(mask)(attention).unwrap("heads", "kv_seq")[:, 1].sum()
    )(named([1.0, 1.0], "heads"))
    np.testing.assert_allclose(gradient.unwrap("heads"), [0.5, 0.8], rtol=1e-6)


def test_knock_out_needs_the_key_axis():
    with pytest.raises(KeyError, match=r"no axis 'kv_seq'.*'heads'"):
        KnockOutAttentionHeads(named([1.0], "heads"))(named([1.0], "heads"))
    other_axis = KnockOutAttentionHeads(named([1.0], "heads"), kv_axis="keys")
    assert other_axis(named([[1.0, 2.0]], "heads", "keys")).unwrap("heads", "keys").tolist() == [
        [1, 2]
    ]


# --- worlds --------------------------------------------------------------------------------------


def two_worlds(b):
    return RewireComputationPaths("worlds", ("a", "b"), {"a": From("a"), "b": b})


@pytest.mark.smoke
def test_rewiring_adds_weighted_sources():
    x = named([[0.0, 1.0], [2.0, 3.0]], "worlds", "f")
    out = two_worlds((From("a"), From("a", 2.0)))(x, unknown=1)
    np.testing.assert_allclose(out.unwrap("worlds", "f"), [[0, 1], [0, 3]])
    assert list(out.named_shape) == ["f", "worlds"]
    np.testing.assert_allclose(two_worlds(())(x).unwrap("worlds", "f"), [[0, 1], [0, 0]])
    np.testing.assert_allclose(
        two_worlds((From("a"), From("a", 2.0))).path_matrix().unwrap(), [[1, 0], [3, 0]]
    )


def test_rewiring_with_named_weights_per_head():
    keep = named([1.0, 0.0, 1.0], "heads")
    x = named(np.arange(6.0).reshape(2, 3), "worlds", "heads")
    layer = two_worlds((From("a", 1.0 - keep), From("b", keep)))
    want = [[0, 1, 2], [3, 1, 5]]
    np.testing.assert_allclose(layer(x).unwrap("worlds", "heads"), want)
    np.testing.assert_allclose(Jitted(layer)(x).unwrap("worlds", "heads"), want)
    switched = two_worlds(From("a", named([0.0, 1.0], "switch")))(x)
    assert switched.named_shape == {"switch": 2, "heads": 3, "worlds": 2}
    assert layer.path_matrix().named_shape == {"heads": 3}


def test_a_new_weight_does_not_trace_again_and_weights_are_differentiable():
    traces = []

    def traced(x):
        traces.append(1)
        return x

    x = named([[0.0, 1.0], [2.0, 3.0]], "worlds", "f")
    for weight in (0.5, 0.7, 0.9):
        model = Jitted(Sequential([two_worlds(From("a", weight)), Elementwise(traced)]))
        assert float(model(x)[{"worlds": 1, "f": 1}].unwrap()) == pytest.approx(weight)
    assert len(traces) == 1
    gradient = jax.grad(lambda layer: layer(x)[{"worlds": 1}].unwrap("f").sum())(
        two_worlds(From("a", jnp.float32(0.5)))
    )
    assert float(gradient.taking["b"].weight) == 1.0


def test_rewiring_inside_a_stack():
    stacked = tm.stack(2)
    x = tm.random_input(worlds=2, embedding=4)
    rewired = (
        select(stacked)
        .at_instances_of(Residual)
        .apply(lambda x: Sequential([x, two_worlds(From("a"))]))
    )
    out = rewired(x)
    tm.assert_trees_close(out[{"worlds": 0}], stacked(x)[{"worlds": 0}], atol=1e-5)
    tm.assert_trees_close(out[{"worlds": 1}], out[{"worlds": 0}])


def test_dtypes():
    layer = two_worlds(From("a", 0.5))
    half = named(np.ones((2, 2)), "worlds", "f").astype(jnp.bfloat16)
    assert layer(half).dtype == jnp.bfloat16
    tokens = named([[1, 2], [3, 4]], "worlds", "f")
    assert two_worlds(From("a"))(tokens).unwrap("worlds", "f").tolist() == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match=r"integer dtype int32.*0.5.*Convert"):
        layer(tokens)
    assert layer(tokens.astype(jnp.float32))[{"worlds": 1}].unwrap("f").tolist() == [0.5, 1.0]


def test_rewiring_errors():
    with pytest.raises(ValueError, match=r"world_ordering=\('a', 'b'\), taking has \('a',\)"):
        RewireComputationPaths("worlds", ("a", "b"), {"a": From("a")})
    RewireComputationPaths("worlds", ("a", "b"), {"a": From("a"), "b": From("b")})
    with pytest.raises(ValueError, match=r"'b' takes from 'c', which is no world"):
        two_worlds(From("c"))
    with pytest.raises(ValueError, match=r"positional axes \(1,\).*tag"):
        two_worlds(From("a", wrap(jnp.ones(1))))
    for wrong in (named([1.0], "f"), named([1.0], "worlds")):
        with pytest.raises(ValueError, match=r"needs the axis 'worlds' of size 2"):
            two_worlds(From("a"))(wrong)


# --- linearising ---------------------------------------------------------------------------------


def constant(value):
    return Elementwise(lambda x: jnp.full_like(x, value))


@pytest.mark.smoke
def test_linearised_cube():
    out = LinearizeAndAdjust(constant(1.0), Identity(), Elementwise(lambda x: x**3))(
        named([2.0, 3.0], "a")
    )
    np.testing.assert_allclose(out.unwrap("a"), [4, 7])


def test_leaves_are_aligned_by_name_and_plain_arrays_stay_plain():
    x = named([1.0, 2.0], "foo")
    y = named([3.0, 4.0, 5.0], "bar")
    out = LinearizeAndAdjust(
        lambda _, **__: {"a": x, "b": x},
        lambda _, **__: {"a": y, "b": y},
        lambda t, **__: t["a"] ** 2 + t["b"] ** 3,
    )(None)
    for i, p in enumerate([1.0, 2.0]):
        for j, q in enumerate([3.0, 4.0, 5.0]):
            want = p**2 + 2 * p * (q - p) + p**3 + 3 * p**2 * (q - p)
            assert float(out[{"foo": i, "bar": j}].unwrap()) == pytest.approx(want)
    plain = LinearizeAndAdjust(lambda x, **_: jnp.ones(()), lambda x, **_: x, lambda x, **_: x**3)(
        jnp.array([2.0, 3.0])
    )
    assert isinstance(plain, jax.Array)
    np.testing.assert_allclose(plain, [4, 7])


def test_equal_points_give_the_target_and_state_advances_once():
    counter, stream = tm.counter(), tm.stream()
    target = Sequential([StochasticDropout(0.5), counter])
    x = tm.random_input(a=8)
    out = LinearizeAndAdjust(Identity(), Identity(), target)(x, random_stream=stream)
    other_counter, other_stream = tm.counter(), tm.stream()
    want = Sequential([StochasticDropout(0.5), other_counter])(x, random_stream=other_stream)
    tm.assert_trees_close(out, want)
    assert (int(counter.count.value), int(stream.offset.value)) == (1, 1)


@pytest.mark.parametrize("jit", [False, True])
def test_linearising_a_norm_inside_a_stack_equals_doing_so_in_the_unstacked_blocks(jit):
    def linearised(tree):
        return (
            select(tree)
            .at_instances_of(RMSLayerNorm)
            .apply(lambda norm: LinearizeAndAdjust(Elementwise(jnp.sin), Identity(), norm))
        )

    stacked = tm.stack(3)
    x = want = tm.random_input(embedding=4)
    for block in tm.unstacked(stacked):
        want = linearised(block)(want)
    wrapped = linearised(stacked)
    tm.assert_trees_close((Jitted(wrapped) if jit else wrapped)(x), want, atol=1e-5)
    assert not np.allclose(want.unwrap("embedding"), stacked(x).unwrap("embedding"), atol=1e-2)


def test_linearising_errors():
    with pytest.raises(ValueError, match=r"must return the same structure"):
        LinearizeAndAdjust(Identity(), lambda x, **_: (x, x), Identity())(jnp.ones(2))
    with pytest.raises(TypeError):
        LinearizeAndAdjust(Identity(), Identity(), Identity())(jnp.ones(2, jnp.int32))
