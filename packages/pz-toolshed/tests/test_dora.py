import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    bind_variables,
    freeze_params,
    unbind_params,
)
from pz_named.named_axes import wrap
from pz_nn.combinators import BranchAndAddTogether
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import Identity
from pz_nn.linear_and_affine import AddBias, Linear
from pz_nn.training_mode import set_training
from pz_toolshed import saving
from pz_toolshed.dora import WeightDecomposedSum, feature_norms
from pz_toolshed.jit_wrapper import Jitted
from pz_toolshed.lora import (
    LowRankAdapter,
    MergedAdapter,
    loraify_linears_in_selection,
    merge_adapters,
    unmerge_adapters,
)


def adapted(model, **options):
    options = {"rank": 2, "use_dora": True, **options}
    return loraify_linears_in_selection(
        select(freeze_params(model)), init_base_rng=tm.key(1), **options
    )


def one_layer(weight_dtype=jnp.float32, **options):
    linear = Linear.from_config("l", tm.key(), {"a": 3}, {"b": 2}, dtype=weight_dtype)
    return adapted(linear, **options)


def with_value(model, ending, change):
    """The model with one of its parameters changed."""
    slots, params = unbind_params(model)
    new = [
        Parameter(label=p.label, value=change(p.value) if p.label.endswith(ending) else p.value)
        for p in params
    ]
    return bind_variables(slots, new)


@pytest.mark.smoke
def test_values_and_gradients_are_those_of_the_equation():
    linear = Linear.from_config(
        "l", tm.key(), {"a": 2, "c": 3}, {"b": 3, "d": 2}, parallel_axes={"heads": 2}
    )
    model = tm.with_random_parameters(adapted(linear, alpha=6.0))
    x = tm.random_input(batch=2, heads=2, a=2, c=3)
    w = linear.weights.value.unwrap("heads", "a", "c", "b", "d")
    slots, params = unbind_params(model, freeze=True)
    order = ("heads", "a", "c", "lowrank", "b", "d")
    arrays = [p.value.unwrap(*(n for n in order if n in p.value.named_shape)) for p in params]
    assert [a.shape for a in arrays] == [(2, 2, 3, 2), (2, 2, 3, 2), (2, 3, 2)]

    def by_hand(arrays):
        a, b, m = arrays
        direction = w + 3.0 * jnp.einsum("hacr,hrbd->hacbd", a, b)
        norm = jax.lax.stop_gradient(jnp.sqrt((direction**2).sum((1, 2))))
        y = jnp.einsum("nhac,hacbd->nhbd", x.unwrap("batch", "heads", "a", "c"), direction)
        return m / norm * y

    def ours(params):
        y = Jitted(bind_variables(slots, params))(x)
        return y.unwrap("batch", "heads", "b", "d")

    np.testing.assert_allclose(ours(params), by_hand(arrays), rtol=1e-4, atol=1e-5)
    got = jax.grad(lambda p: jnp.sin(ours(p)).sum())(params)
    want = jax.grad(lambda a: jnp.sin(by_hand(a)).sum())(arrays)
    for parameter, there in zip(got, want, strict=True):
        here = parameter.value.unwrap(*(n for n in order if n in parameter.value.named_shape))
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5, err_msg=parameter.label)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("adapter_dtype", [None, jnp.float32])
def test_a_fresh_adapter_changes_nothing(dtype, adapter_dtype):
    x = tm.random_input(batch=3, a=3).astype(dtype)
    linear = Linear.from_config("l", tm.key(), {"a": 3}, {"b": 2}, dtype=dtype)
    model = one_layer(dtype, dtype=adapter_dtype)
    assert model(x).dtype == dtype
    tm.assert_trees_close(model(x), linear(x), atol=0)
    norms = np.linalg.norm(np.asarray(linear.weights.value.unwrap("a", "b"), np.float32), axis=0)
    np.testing.assert_allclose(feature_norms(linear).unwrap("b"), norms, rtol=1e-6)
    magnitude = unbind_params(model)[1][2]
    assert magnitude.label == "LoRA:/LoRA_magnitude"
    assert magnitude.value.dtype == (adapter_dtype or dtype)
    assert magnitude is model.magnitude


def test_structure():
    linear = Linear.from_config("l", tm.key(), {"a": 3}, {"b": 2})
    adapter = LowRankAdapter.from_linear(linear, "x", None, 1, use_dora=True)
    assert isinstance(adapter.sublayers[0], WeightDecomposedSum)
    assert adapter.pretrained is linear
    assert adapter.magnitude == ParameterSlot("x/LoRA_magnitude")
    plain = LowRankAdapter.from_linear(linear, "x", None, 1)
    assert isinstance(plain.sublayers[0], BranchAndAddTogether)
    assert plain.magnitude is None


def test_biases_are_not_scaled():
    bias = Parameter(label="bias", value=tm.random_input(features=3))
    affine = select(tm.mlp([2, 3])).at_instances_of(AddBias).at(lambda layer: layer.bias).set(bias)
    model = with_value(adapted(affine), "LoRA_magnitude", lambda m: m * 0)
    tm.assert_trees_close(model(tm.random_input(features=2)), bias.value)


def test_in_a_stack_adapters_equal_the_unstacked_ones():
    model = tm.with_random_parameters(adapted(tm.stack(3)))
    params = unbind_params(model)[1]
    assert len(params) == 6
    # In front, so that the loop over the stack need not move it.
    assert {next(iter(p.value.named_shape.items())) for p in params} == {("blocks", 3)}
    x = want = tm.random_input(embedding=4)
    for block in tm.unstacked(model):
        want = block(want)
    tm.assert_trees_close(Jitted(model)(x), want, atol=1e-4)
    kept = merge_adapters(model, keep=True)
    tm.assert_trees_close(Jitted(kept)(x), want, atol=1e-4)
    tm.assert_trees_close(freeze_params(unmerge_adapters(kept)), freeze_params(model), atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merge_and_unmerge(alpha, dtype):
    model = tm.with_random_parameters(adapted(tm.mlp([2, 3, 2]), alpha=alpha, dtype=dtype))
    x = tm.random_input(batch=3, features=2)
    merged = merge_adapters(model)
    tm.assert_trees_close(merged(x), model(x), atol=1e-4)
    assert jax.tree.structure(freeze_params(merged)) == jax.tree.structure(
        freeze_params(tm.mlp([2, 3, 2]))
    )
    kept = merge_adapters(model, keep=True)
    assert select(kept).at_instances_of(MergedAdapter).count() == 2
    tm.assert_trees_close(kept(x), merged(x))
    tm.assert_trees_close(freeze_params(unmerge_adapters(kept)), freeze_params(model), atol=1e-4)


def test_dropout_acts_on_all_but_the_pretrained_output():
    model = tm.with_random_parameters(one_layer(dropout=0.5))
    x = tm.random_input(batch=8, a=3)
    dropped = StochasticDropout(0.5)(x, random_stream=tm.stream())
    stream = tm.stream()
    got = model(x, random_stream=stream)
    assert int(stream.offset.value) == 1
    without = set_training(model, False)
    tm.assert_trees_close(got, model.pretrained(x) + without(dropped) - model.pretrained(dropped))
    tm.assert_trees_close(without(x), merge_adapters(model)(x), atol=1e-5)


def test_features_whose_weights_are_zero_stay_finite():
    first = jnp.array([0.0, 1.0])
    linear = Linear.from_config("l", tm.key(), {"a": 3}, {"b": 2})
    weights = Parameter(label="l.weights", value=linear.weights.value * wrap(first).tag("b"))
    fresh = adapted(select(linear).at(lambda layer: layer.weights).set(weights))
    x = tm.random_input(a=3)
    for model in (fresh, with_value(fresh, "LoRA_B.weights", lambda b: b + 1.0)):
        slots, params = unbind_params(model, freeze=True)
        y, grads = jax.value_and_grad(
            lambda p, slots=slots: jnp.square(bind_variables(slots, p)(x).unwrap("b") - 1).sum()
        )(params)
        assert jnp.isfinite(y)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads[1:]))
        tm.assert_trees_close(model(x)[{"b": 0}], jnp.float32(0))
        again = unmerge_adapters(merge_adapters(model, keep=True))
        tm.assert_trees_close(again(x), model(x))


def test_errors():
    model = one_layer()
    kept = merge_adapters(model, keep=True)
    with pytest.raises(ValueError, match=r"merge_adapters.*no LowRankAdapter"):
        merge_adapters(kept)
    merge_adapters(unmerge_adapters(kept))
    with pytest.raises(ValueError, match=r"unmerge_adapters.*no MergedAdapter"):
        unmerge_adapters(model)

    x = tm.random_input(a=3)
    twice = loraify_linears_in_selection(select(model), 1, tm.key())
    with pytest.raises(ValueError, match=r"'Pretrained' has \['LowRankAdapter'\].*merge_adapters"):
        twice(x)
    no_matrix = select(model).at_instances_of(LowRankAdapter).at(lambda a: a.update.sublayers[0])
    with pytest.raises(ValueError, match=r"'Update' has \['Identity', 'Linear'\]"):
        merge_adapters(no_matrix.set(Identity()))
    plain_twice = one_layer(use_dora=False)
    plain_twice = loraify_linears_in_selection(select(plain_twice), 1, tm.key())
    with pytest.raises(ValueError, match=r"'Pretrained' has \['LowRankAdapter'\]"):
        merge_adapters(plain_twice)
    for first in (model, one_layer(use_dora=False)):  # the repair
        again = adapted(merge_adapters(first))
        tm.assert_trees_close(merge_adapters(again)(x), first(x))


def test_checkpoints_of_one_kind_do_not_load_into_the_other(tmp_path):
    dora, plain = one_layer(), one_layer(use_dora=False)
    for folder, source, like, kind in (
        ("dora", dora, plain, "surplus"),
        ("plain", plain, dora, "missing"),
    ):
        saving.save(tmp_path / folder, source)
        with pytest.raises(saving.CheckpointMismatchError) as caught:
            saving.load(tmp_path / folder, like=like)
        assert [("LoRA_magnitude" in name) for name in getattr(caught.value, kind)] == [True]
        tm.assert_trees_close(
            freeze_params(saving.load(tmp_path / folder, like=source)), freeze_params(source)
        )
