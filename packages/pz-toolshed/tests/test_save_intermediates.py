import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import ScopedStateVarLabel, StateVariable, unbind_state_vars
from pz_named.shapecheck import ArraySpec
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import Residual
from pz_nn.grouping import Identity, NamedGroup, Sequential
from pz_nn.linear_and_affine import Linear
from pz_toolshed.jit_wrapper import Jitted
from pz_toolshed.save_intermediates import (
    CollectIntermediates,
    SaveIntermediate,
    SaveIntermediateShape,
    call_and_save,
    saved_intermediates,
    saving_all_intermediates,
    saving_outputs,
)

DOUBLE = Elementwise(lambda x: 2 * x)


def test_saver_stores_last_value_and_returns_it_unchanged():
    saver = SaveIntermediate()
    assert saver.saved.value is None
    for value in (1.0, 2.0):
        x = tm.wrap(jnp.full(3, value)).tag("a")
        assert saver(x, unknown_side_input=1) is x
    np.testing.assert_array_equal(saver.saved.value.unwrap("a"), [2, 2, 2])


def test_saver_takes_trees_and_refuses_what_is_no_array():
    saver = SaveIntermediate()
    saver((jnp.ones(2), {"x": 3}))
    assert saver.saved.value[1]["x"] == 3
    with pytest.raises(TypeError):
        saver("text")


def test_shape_saver_stores_structure_also_under_jit():
    saver = SaveIntermediateShape()
    Jitted(saver)(tm.random_input(a=2, b=3))
    assert saver.saved.value == ArraySpec(named_shape={"a": 2, "b": 3}, dtype=jnp.dtype("float32"))


def test_collector_keeps_every_call():
    collector = CollectIntermediates()
    model = Sequential([collector, DOUBLE, collector])
    model(jnp.ones(2))
    assert [float(v[0]) for v in collector.saved.value] == [1.0, 2.0]


@pytest.mark.smoke
@pytest.mark.parametrize("jit", [False, True])
def test_call_and_save_at_a_selection(jit):
    model = Sequential([DOUBLE, NamedGroup("g", [DOUBLE]), Residual(DOUBLE)])
    x = tm.random_input(a=4)
    sites = select(model).at_instances_of(Elementwise)
    if jit:
        probed = saving_outputs(sites)
        output, saved = Jitted(probed)(x), saved_intermediates(probed)
    else:
        output, saved = call_and_save(sites, x)
    assert list(saved) == [
        "Sequential.sublayers[0]",
        "Sequential.sublayers[1]/NamedGroup.sublayers[0]",
        "Sequential.sublayers[2]/Residual.delta",
    ]
    for factor, value in zip((2, 4, 8), saved.values(), strict=True):
        tm.assert_trees_close(value, x * factor)
    tm.assert_trees_close(output, model(x))


@pytest.mark.parametrize("jit", [False, True])
def test_saving_inside_a_layer_stack_equals_saving_in_the_unstacked_blocks(jit):
    stacked = tm.stack(3)
    x = tm.random_input(batch=2, embedding=4)
    probed = saving_outputs(select(stacked).at_instances_of(Linear | Elementwise))
    run = Jitted(probed) if jit else probed
    for _ in range(2):  # the second call overwrites the first
        output = run(x)
    saved = saved_intermediates(probed)
    tm.assert_trees_close(output, stacked(x), atol=1e-5)

    expected = {site: [] for site in saved}
    value = x
    for one in tm.unstacked(stacked):
        value, seen = call_and_save(select(one).at_instances_of(Linear | Elementwise), value)
        for site, there in zip(expected, seen.values(), strict=True):
            expected[site].append(there)
    for site, values in expected.items():
        assert saved[site].named_shape["blocks"] == 3
        for i, one in enumerate(values):
            tm.assert_trees_close(saved[site][{"blocks": i}], one, atol=1e-5)


@pytest.mark.smoke
def test_shapes_inside_a_layer_stack():
    probed = saving_outputs(
        select(tm.stack(2)).at_instances_of(Elementwise), saver_class=SaveIntermediateShape
    )
    probed(tm.random_input(batch=2, embedding=4))
    (spec,) = saved_intermediates(probed).values()
    assert spec.named_shape["neurons"] == 6


def test_second_run_of_a_probed_stack_does_not_compile_again():
    traces = []

    def traced(x):
        traces.append(1)
        return x * 2

    model = Jitted(
        saving_outputs(select(Sequential([Elementwise(traced)])).at_instances_of(Elementwise))
    )
    for _ in range(4):
        model(jnp.ones(2))
    assert len(traces) == 2  # the saved value goes from None to an array once


def test_model_is_not_changed_and_variables_are_shared():
    model = tm.mlp([2, 3])
    before = jax.tree_util.tree_structure(model)
    probed = saving_outputs(select(model).at_instances_of(Linear))
    assert jax.tree_util.tree_structure(model) == before
    assert (
        select(probed).at_instances_of(Linear).get() is select(model).at_instances_of(Linear).get()
    )


def test_saving_all_intermediates_in_an_mlp():
    model = tm.mlp([8, 16, 64, 32])
    probed = saving_all_intermediates(model)
    savers = select(probed).at_instances_of(SaveIntermediate)
    assert savers.count() == 12
    labels = [v.label for v in unbind_state_vars(probed)[1]]
    assert labels == [ScopedStateVarLabel("intermediates", i) for i in range(12)]
    assert all(s.saved.value is None for s in savers.get_sequence())
    output = probed(tm.random_input(batch=3, features=8))
    shapes = [dict(s.saved.value.named_shape) for s in savers.get_sequence()]
    assert [set(s) - {"batch"} for s in shapes] == [
        {"features"},
        {"features_out"},
        *[{"features"}] * 3,
        {"features_out"},
        *[{"features"}] * 3,
        {"features_out"},
        *[{"features"}] * 2,
    ]
    sizes = [next(v for k, v in s.items() if k != "batch") for s in shapes]
    assert sizes == [8, 16, 16, 16, 16, 64, 64, 64, 64, 32, 32, 32]
    last = list(saved_intermediates(probed).values())[-1]
    tm.assert_trees_close(last, output)


@pytest.mark.smoke
def test_saving_all_intermediates_rules_for_identities_and_other_layers():
    def pattern(layer):
        if isinstance(layer, SaveIntermediate):
            return "S"
        if isinstance(layer, Sequential | NamedGroup):
            return [pattern(child) for child in layer.sublayers]
        return pattern(layer.delta) if isinstance(layer, Residual) else type(layer).__name__

    def check(model, expected):
        assert pattern(saving_all_intermediates(model)) == expected

    check(Sequential([]), ["S"])
    check(DOUBLE, ["S", "Elementwise", "S"])
    check(Identity(), ["S", "Identity"])
    check(
        Sequential([DOUBLE, Identity(), DOUBLE]),
        ["S", "Elementwise", "S", "Identity", "Elementwise", "S"],
    )
    check(
        Sequential([NamedGroup("g", [DOUBLE, DOUBLE]), DOUBLE]),
        ["S", ["Elementwise", "S", "Elementwise"], "S", "Elementwise", "S"],
    )
    check(Residual(DOUBLE), ["S", ["S", "Elementwise", "S"], "S"])


def test_saving_all_intermediates_in_a_stack_and_with_a_filter():
    stacked = tm.stack(2)
    x = tm.random_input(batch=2, embedding=4)
    tm.assert_trees_close(saving_all_intermediates(stacked)(x), stacked(x), atol=1e-5)
    probed = saving_all_intermediates(stacked, where=lambda layer: isinstance(layer, Elementwise))
    probed(x)
    saved = saved_intermediates(probed)
    assert len(saved) == 1
    assert next(iter(saved.values())).named_shape["neurons"] == 6


def test_two_groups_can_be_read_apart_and_automatic_labels_work():
    model = Sequential([DOUBLE])
    one = saving_outputs(select(model).at_instances_of(Elementwise), intermediates_group="one")
    two = saving_outputs(select(one).at_instances_of(Elementwise), intermediates_group=None)
    two(jnp.ones(1))
    assert len(saved_intermediates(two, "one")) == len(saved_intermediates(two, None)) == 1


def test_errors_name_the_rule_and_the_repair():
    model = tm.mlp([2, 3])
    with pytest.raises(ValueError, match=r"nothing is selected.*at_instances_of"):
        saving_outputs(select(model).at_instances_of(SaveIntermediate))
    with pytest.raises(ValueError, match=r"only layers have outputs.*is a Parameter"):
        saving_outputs(select(model).at_instances_of(Linear).at(lambda linear: linear.weights))
    with pytest.raises(ValueError, match=r"no savers of group 'intermediates'"):
        saved_intermediates(model)
    # The repair: read from the model that was returned.
    probed = saving_outputs(select(model).at_instances_of(Linear))
    assert list(saved_intermediates(probed).values()) == [None]


def test_savers_keep_their_own_variables():
    assert SaveIntermediate().saved is not SaveIntermediate().saved
    assert isinstance(SaveIntermediate().saved, StateVariable)
