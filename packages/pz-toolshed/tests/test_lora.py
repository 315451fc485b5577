import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    UnboundVariableError,
    freeze_params,
    unbind_params,
)
from pz_nn.combinators import BranchAndAddTogether
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.linear_and_affine import Linear
from pz_nn.standardization import RMSLayerNorm
from pz_toolshed.jit_wrapper import Jitted
from pz_toolshed.lora import (
    LowRankAdapter,
    MergedAdapter,
    loraify_linears_in_selection,
    merge_adapters,
    unmerge_adapters,
)


def adapted_mlp(sizes=(2, 3, 4, 2), **options):
    frozen = freeze_params(tm.mlp(list(sizes)))
    options = {"rank": 2, **options}
    return loraify_linears_in_selection(select(frozen), init_base_rng=tm.key(1), **options)


@pytest.mark.smoke
def test_reference_values():
    (a,) = [p for p in unbind_params(adapted_mlp((2, 3)))[1] if p.label.endswith("LoRA_A.weights")]
    assert a.label == "LoRA:Sequential.sublayers[0]/Affine.sublayers[0]/LoRA_A.weights"
    layer = LowRankAdapter.from_linear(
        select(tm.mlp([2, 3])).at_instances_of(Linear).get(),
        "LoRA:MLP.sublayers[0]/Affine.sublayers[0]",
        tm.key(1),
        2,
    )
    a, b = (linear.weights.value for linear in layer.update.sublayers)
    np.testing.assert_allclose(
        a.unwrap("features", "lowrank"),
        [[0.04291553, 0.24229942], [-0.43320882, 0.02631667]],
        atol=1e-7,
    )
    assert not b.data_array.any()


@pytest.mark.smoke
def test_structure_and_initial_output():
    model = adapted_mlp()
    adapters = select(model).at_instances_of(LowRankAdapter)
    assert adapters.count() == 3
    adapter = adapters.get_sequence()[0]
    assert isinstance(adapter.sublayers[0], BranchAndAddTogether)
    assert [b.name for b in adapter.sublayers[0].branches] == ["Pretrained", "Update"]
    updates = select(model).at_instances_of(NamedGroup).where(lambda g: g.name == "Update")
    parameters = updates.at_instances_of(Parameter).get_sequence()
    assert len(parameters) == 6
    assert all(p.value.named_shape["lowrank"] == 2 for p in parameters)
    x = tm.random_input(features=2)
    tm.assert_trees_close(model(x), tm.mlp([2, 3, 4, 2])(x), atol=0)
    assert len(unbind_params(model)[1]) == 6


def test_the_pretrained_layer_is_used_by_reference_and_slots_are_made_without_a_key():
    linear = Linear.from_config("l", tm.key(), {"a": 2}, {"b": 3})
    adapter = LowRankAdapter.from_linear(linear, "x", None, 1)
    assert adapter.pretrained is linear
    assert [x.weights for x in adapter.update.sublayers] == [
        ParameterSlot("x/LoRA_A.weights"),
        ParameterSlot("x/LoRA_B.weights"),
    ]


def test_parallel_axes_and_layers_in_place():
    linear = Linear.from_config(
        "l", tm.key(), {"a": 2, "c": 3}, {"b": 3}, parallel_axes={"heads": 2}
    )
    a, b = LowRankAdapter.from_linear(linear, "x", tm.key(), 1).update.sublayers
    assert a.weights.value.named_shape == {"heads": 2, "a": 2, "c": 3, "lowrank": 1}
    assert set(b.weights.value.named_shape) == {"heads", "lowrank", "b"}
    assert (
        "features_out"
        in select(adapted_mlp((2, 2)))
        .at_instances_of(LowRankAdapter)
        .get()
        .update.sublayers[1]
        .out_axis_names
    )


def test_in_a_stack_adapters_are_stacked_and_equal_the_unstacked_ones():
    stacked = freeze_params(tm.stack(3))
    adapted = tm.with_random_parameters(
        loraify_linears_in_selection(select(stacked), rank=2, init_base_rng=tm.key(1))
    )
    labels = [p.label for p in unbind_params(adapted)[1]]
    assert len(labels) == 4
    assert labels[0].startswith("LoRA:LayerStack.stacked_sublayers/Residual.delta/NamedGroup")
    # In front, so that the loop over the stack need not move it.
    assert all(
        next(iter(p.value.named_shape.items())) == ("blocks", 3) for p in unbind_params(adapted)[1]
    )
    x = want = tm.random_input(embedding=4)
    for block in tm.unstacked(adapted):
        want = block(want)
    tm.assert_trees_close(Jitted(adapted)(x), want, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merge_and_unmerge(alpha, dtype):
    model = tm.with_random_parameters(adapted_mlp(alpha=alpha, dtype=dtype))
    x = tm.random_input(batch=3, features=2)
    merged = merge_adapters(model)
    assert select(merged).at_instances_of(LowRankAdapter).is_empty()
    tm.assert_trees_close(merged(x), model(x), atol=1e-4 if dtype == jnp.float32 else 0.5)
    assert jax.tree.structure(freeze_params(merged)) == jax.tree.structure(
        freeze_params(tm.mlp([2, 3, 4, 2]))
    )
    kept = merge_adapters(model, keep=True)
    assert select(kept).at_instances_of(MergedAdapter).count() == 3
    tm.assert_trees_close(kept(x), merged(x))
    tm.assert_trees_close(freeze_params(unmerge_adapters(kept)), freeze_params(model), atol=1e-5)


def test_merging_in_a_stack():
    model = tm.with_random_parameters(
        loraify_linears_in_selection(
            select(freeze_params(tm.stack(2))), rank=2, init_base_rng=tm.key(1)
        )
    )
    x = tm.random_input(embedding=4)
    tm.assert_trees_close(merge_adapters(model)(x), model(x), atol=1e-4)


def test_alpha_scales_the_correction_by_alpha_over_rank():
    x = tm.random_input(features=2)
    base = tm.mlp([2, 3])(x)
    plain = tm.with_random_parameters(adapted_mlp((2, 3)))(x) - base
    scaled = tm.with_random_parameters(adapted_mlp((2, 3), alpha=6.0))(x) - base
    tm.assert_trees_close(scaled, plain * 3.0, atol=1e-5)


def test_dropout_draws_from_the_random_stream_for_the_correction_alone():
    untrained = adapted_mlp((2, 3), dropout=0.5)
    stream = tm.stream()
    x = tm.random_input(batch=16, features=2)
    # With B = 0 the correction is 0, so whatever dropout does there, the layer is the pretrained one.
    got, want = untrained(x, random_stream=stream), tm.mlp([2, 3])(x)
    assert jnp.array_equal(*(y.unwrap("batch", "features") for y in (got, want)))
    assert int(stream.offset.value) == 1
    model = tm.with_random_parameters(untrained)
    one, two = (model(x, random_stream=stream) for _ in range(2))
    assert not np.allclose(one.unwrap("batch", "features"), two.unwrap("batch", "features"))
    assert int(stream.offset.value) == 3


@pytest.mark.parametrize("adapter_dtype", [None, jnp.float32])
def test_half_precision_models_stay_half_precision(adapter_dtype):
    half = Linear.from_config("l", tm.key(), {"a": 2}, {"b": 3}, dtype=jnp.bfloat16)
    adapter = LowRankAdapter.from_linear(half, "x", tm.key(), 1, dtype=adapter_dtype)
    wanted = jnp.bfloat16 if adapter_dtype is None else jnp.float32
    assert {
        x.weights.value.dtype for x in select(adapter.update).at_instances_of(Linear).get_sequence()
    } == {jnp.dtype(wanted)}
    assert adapter(tm.random_input(a=2).astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_scales_of_norms_are_adapted_on_request_only():
    norm = RMSLayerNorm.from_config("n", tm.key(), {"a": 2})
    model = freeze_params(Sequential([norm, Linear.from_config("l", tm.key(), {"a": 2}, {"b": 2})]))
    for adapt_scales, count in ((False, 1), (True, 2)):
        adapted = loraify_linears_in_selection(
            select(model), 2, tm.key(), adapt_scales=adapt_scales
        )
        assert select(adapted).at_instances_of(LowRankAdapter).count() == count


def test_names_ranks_and_shared_layers():
    by_weight = adapted_mlp((2, 3), naming="weight")
    assert [p.label for p in unbind_params(by_weight)[1]] == [
        "LoRA:mlp/Affine_0/Linear/LoRA_A.weights",
        "LoRA:mlp/Affine_0/Linear/LoRA_B.weights",
    ]
    some = adapted_mlp(
        rank=lambda path, linear: 3 if path.startswith("Sequential.sublayers[0]") else None
    )
    assert select(some).at_instances_of(LowRankAdapter).count() == 1
    linear = Linear.from_config("l", tm.key(), {"a": 2}, {"a": 2})
    shared = BranchAndAddTogether([linear.sublayers[0], linear.sublayers[0]])
    labels = [
        p.label
        for p in unbind_params(
            loraify_linears_in_selection(select(freeze_params(shared)), 1, tm.key())
        )[1]
    ]
    assert labels[0::2] == [
        f"LoRA:BranchAndAddTogether.branches[{i}]/LoRA_A.weights" for i in (0, 1)
    ]
    root = loraify_linears_in_selection(select(freeze_params(linear.sublayers[0])), 1, tm.key())
    assert unbind_params(root)[1][0].label == "LoRA:/LoRA_A.weights"


def test_errors():
    linear = Linear.from_config("l", None, {"a": 2}, {"b": 2})
    with pytest.raises(UnboundVariableError):
        LowRankAdapter.from_linear(linear, "x", tm.key(), 1)
    with pytest.raises(ValueError, match=r"no linear layer.*\(1 parts are selected\)"):
        loraify_linears_in_selection(select(Sequential([])), 1, tm.key())
    with pytest.raises(ValueError, match=r"merge_adapters.*no LowRankAdapter.*loraify"):
        merge_adapters(tm.mlp([2, 2]))
    with pytest.raises(ValueError, match=r"unmerge_adapters.*no MergedAdapter"):
        unmerge_adapters(adapted_mlp())
    unlabelled = Linear(Parameter(label=("a", 1), value=tm.random_input(a=2, b=2)), ("a",), ("b",))
    with pytest.raises(ValueError, match=r"needs a text label; one has \('a', 1\)"):
        loraify_linears_in_selection(select(unlabelled), 1, tm.key(), naming="weight")


@pytest.mark.parametrize(
    ("error", "options", "text"),
    [
        (ValueError, {"rank": 0}, r"rank must be at least 1, got 0\. Leave the layer"),
        (TypeError, {"rank": 2.5}, r"rank must be a whole number, got 2\.5 of type float"),
        (TypeError, {"rank": "2"}, r"rank must be a whole number, got '2' of type str"),
        (TypeError, {"rank": True}, r"rank must be a whole number, got True of type bool"),
        (TypeError, {"alpha": "8"}, r"alpha must be a number or None, got '8' of type str"),
        (TypeError, {"dropout": True}, r"dropout must be a number or None, got True of type bool"),
        (ValueError, {"alpha": np.nan}, r"alpha must be a finite number other than 0, got nan"),
        (ValueError, {"alpha": np.inf}, r"got inf; the correction is scaled by alpha / rank"),
        (ValueError, {"alpha": 0.0}, r"got 0\.0; .* Give alpha=2, or None"),
        (ValueError, {"dropout": 1.5}, r"must be from 0 to 1, got 1\.5"),
        (ValueError, {"dropout": -1}, r"must be from 0 to 1, got -1"),
        (ValueError, {"naming": "label"}, r'naming must be "path" or "weight", got \'label\''),
    ],
)
def test_bad_options(error, options, text):
    with pytest.raises(error, match=text):
        adapted_mlp((2, 3), **options)


def test_repairs_of_bad_options():
    model = tm.mlp([2, 3])
    with pytest.raises(TypeError, match=r"must be a selection.*got Sequential.*select\(model\)"):
        loraify_linears_in_selection(model, 2, tm.key())
    adapted = loraify_linears_in_selection(
        select(model), np.int64(2), tm.key(), alpha=2, dropout=0.5, naming="path"
    )
    assert select(adapted).at_instances_of(LowRankAdapter).count() == 1
    x, plain = tm.random_input(features=2), adapted_mlp((2, 3))
    scaled = adapted_mlp((2, 3), alpha=2)  # by alpha / rank = 1
    outputs = [tm.with_random_parameters(m)(x) for m in (plain, scaled)]
    tm.assert_trees_close(*outputs, atol=0)
