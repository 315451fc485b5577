"""Variables, values, slots, labels; taking them out of trees and putting them back."""

import contextlib
import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pz_core_trees import Box, Empty, same_objects, static, trees

import pz_core
from pz_core import (
    AutoStateVarLabel,
    LabeledVariable,
    LabeledVariableValue,
    Parameter,
    ParameterSlot,
    ParameterValue,
    ScopedStateVarLabel,
    StateVariable,
    StateVariableSlot,
    StateVariableValue,
    UnboundVariableError,
    VariableConflictError,
    bind_variables,
    freeze_params,
    freeze_state_vars,
    freeze_variables,
    pytree_dataclass,
    scoped_auto_state_var_labels,
    unbind_params,
    unbind_state_vars,
    unbind_variables,
)
from pz_core.labeled_variables import DistinctLabel

KINDS = [
    (Parameter, ParameterValue, ParameterSlot),
    (StateVariable, StateVariableValue, StateVariableSlot),
]


@pytest.mark.smoke
@pytest.mark.parametrize("variable_type, value_type, slot_type", KINDS)
class TestThreeRoles:
    def test_freeze_and_slot(self, variable_type, value_type, slot_type):
        variable = variable_type(label="v", value=1.0, metadata={"m": 1})
        frozen = variable.freeze()
        assert type(frozen) is value_type
        assert (frozen.label, float(frozen.value), frozen.metadata) == ("v", 1.0, {"m": 1})
        assert frozen.get_slot() == variable.get_slot() == slot_type("v")
        thawed = frozen.unfreeze_as_copy()
        assert type(thawed) is variable_type
        assert thawed.freeze() == frozen
        assert variable.__get_state_as_jax_pytree__() == frozen
        assert frozen.__jax_pytree_state_to_new_variable__().get_slot() == slot_type("v")
        assert list(
            value_type.from_attributes(label=1, value=2, metadata={}).attributes_dict()
        ) == [
            "label",
            "value",
            "metadata",
        ]
        assert value_type("v", 1.0).metadata == {}

    def test_slots_are_leafless_hashable_and_have_no_value(
        self, variable_type, value_type, slot_type
    ):
        slot = slot_type(("a", 1))
        assert jax.tree.leaves(slot) == []
        assert hash(slot) == hash(slot_type(("a", 1)))
        assert not hasattr(slot, "value")
        with pytest.raises(UnboundVariableError, match=rf"{slot_type.__name__}.*bind_variables"):
            slot.value
        variable = variable_type(label=("a", 1), value=1.0)
        assert float(bind_variables(slot, [variable]).value) == 1.0  # the repair

    def test_identity(self, variable_type, value_type, slot_type):
        a, b = (variable_type(label="v", value=1.0) for _ in range(2))
        assert a == a
        assert a != b
        assert len({a, b}) == 2
        assert jax.tree.leaves([a]) == [a]
        assert all((slot("v") == slot_type("v")) == (slot is slot_type) for _, _, slot in KINDS)

    def test_update(self, variable_type, value_type, slot_type):
        variable = variable_type(label="v", value=1.0, metadata={"m": 1})
        variable.update(value_type("v", {"now": jnp.ones(2)}, {"other": 2}))
        assert variable.value["now"].shape == (2,)
        assert variable.metadata == {"m": 1}
        variable.__set_state_from_jax_pytree__(value_type("v", 3.0))
        with pytest.raises(ValueError, match=r"'v'.*'w'.*assign `.value`"):
            variable.update(value_type("w", 1.0))
        variable.value = value_type("w", 5.0).value  # the repair
        assert float(variable.value) == 5.0

    def test_snapshots_are_immune_to_later_changes(self, variable_type, value_type, slot_type):
        metadata = {"m": 1, "nested": {"axes": [1]}}
        variable = variable_type(label="v", value={"a": [1.0]}, metadata=metadata)
        assert variable.metadata is metadata
        frozen = variable.freeze()
        variable.value["a"].append(2.0)
        variable.metadata["m"] = 2
        variable.metadata["nested"]["axes"].append(2)
        assert len(frozen.value["a"]) == 1
        assert frozen.metadata == {"m": 1, "nested": {"axes": [1]}}
        thawed = frozen.unfreeze_as_copy()
        thawed.metadata["nested"]["axes"].append(3)
        thawed.value["a"].append(3.0)
        assert frozen.metadata == {"m": 1, "nested": {"axes": [1]}}
        assert len(frozen.value["a"]) == 1
        assert all(isinstance(x, jax.Array) for x in variable.freeze().value["a"])

    def test_colors_and_repr(self, variable_type, value_type, slot_type):
        variable = variable_type(label="v", value=jnp.ones((2, 3)))
        assert repr(variable) == (
            f"{variable_type.__name__}(label='v', value=<float32[2,3]>, metadata={{}})"
        )
        assert variable.get_slot().treescope_color() == (variable.treescope_color(), "#cdcdcd")
        assert variable.freeze().treescope_color().startswith("#")

    def test_passing_one_to_jit_is_an_error(self, variable_type, value_type, slot_type):
        with pytest.raises(TypeError, match=variable_type.__name__):
            jax.jit(lambda v: 1)(variable_type(label="v", value=1.0))


@pytest.mark.smoke
class TestValues:
    @pytest.mark.parametrize(
        "value",
        [1, 2.0, True, np.ones(2), [1, (2.0, None)], None, Empty(), jax.random.key(0), {"a": []}],
    )
    def test_leaves_become_arrays_in_fresh_containers(self, value):
        variable = Parameter(label="v", value=value)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variable.value))
        assert jax.tree.structure(variable.value) == jax.tree.structure(value)
        assert variable.value is not value or not isinstance(value, list | dict)

    def test_arrays_keep_identity_and_scalars_stay_weak(self):
        array = jnp.ones(2)
        assert Parameter(label="v", value=[array]).value[0] is array
        assert Parameter(label="v", value=2.0).value.weak_type
        variable = Parameter(label="v", value=array)
        assert variable.freeze().value is array
        variable.set_value(3)
        assert isinstance(variable.value, jax.Array)

    @pytest.mark.parametrize(
        "leaf",
        ["text", object(), Parameter(label="p", value=1.0), jax.ShapeDtypeStruct((), jnp.float32)],
    )
    def test_other_leaves_are_an_error(self, leaf):
        with pytest.raises(TypeError, match=r"labelled 'v' .*value\['a'\]\[1\] is a .*metadata"):
            Parameter(label="v", value={"a": [1, leaf]})
        variable = Parameter(label="v", value=1.0, metadata={"a": leaf})  # the repair
        with pytest.raises(TypeError, match="labelled 'v'"):
            variable.value = leaf
        assert float(variable.value) == 1.0

    def test_labels_and_metadata_are_writable(self):
        variable = Parameter(label="v", value=1.0, metadata={})
        variable.label = "w"
        variable.metadata = {"a": 1}
        assert variable.get_slot() == ParameterSlot("w")

    def test_frozen_values_are_frozen(self):
        import dataclasses

        with pytest.raises(dataclasses.FrozenInstanceError):
            Parameter(label="v", value=1.0).freeze().value = 2

    def test_abstract_classes(self):
        with pytest.raises(TypeError, match="abstract"):
            LabeledVariable(label="v", value=1.0)
        with pytest.raises(TypeError, match="abstract"):
            LabeledVariableValue("v", 1.0)


@pytest.mark.smoke
class TestLabels:
    def test_automatic(self):
        labels = [StateVariable(0).label for _ in range(1000)]
        assert len(set(labels)) == 1000
        assert all(isinstance(label, AutoStateVarLabel) for label in labels)
        assert labels == sorted(labels)

    def test_never_repeat_after_collection(self):
        seen = set()
        for _ in range(1000):
            label = StateVariable(0).label
            assert label not in seen
            seen.add(label)

    def test_scopes(self):
        with scoped_auto_state_var_labels("outer"):
            first = StateVariable(0)
            StateVariable(0, label="explicit labels do not count")
            with contextlib.suppress(RuntimeError), scoped_auto_state_var_labels("inner"):
                assert StateVariable(0).label == ScopedStateVarLabel("inner", 0)
                raise RuntimeError
            assert StateVariable(0).label == ScopedStateVarLabel("outer", 1)
        assert first.label == ScopedStateVarLabel("outer", 0)
        assert isinstance(StateVariable(0).label, AutoStateVarLabel)

    def test_scope_as_decorator(self):
        @scoped_auto_state_var_labels("g")
        def make():
            return StateVariable(0).label

        assert make() == make() == ScopedStateVarLabel("g", 0)

    def test_scopes_avoid_tracing_again(self):
        traces = []

        @pz_core.variable_jit
        def f(state):
            traces.append(1)
            return state.value

        for _ in range(3):
            with scoped_auto_state_var_labels():
                f(StateVariable(0.0))
        assert len(traces) == 1


def model():
    shared = Parameter(label="w", value=1.0)
    return {"a": shared, "b": [shared, StateVariable(2.0, label="w")], "c": 3}


@pytest.mark.smoke
class TestTrees:
    def test_unbind(self):
        tree = model()
        slots, variables = unbind_variables(tree)
        assert variables == (tree["a"], tree["b"][1])
        assert slots == {
            "a": ParameterSlot("w"),
            "b": [ParameterSlot("w"), StateVariableSlot("w")],
            "c": 3,
        }
        assert unbind_params(tree)[1] == (tree["a"],)
        assert unbind_state_vars(tree)[1] == (tree["b"][1],)
        _, values = unbind_variables(tree, freeze=True)
        assert [type(value) for value in values] == [ParameterValue, StateVariableValue]
        assert tree["a"] is tree["b"][0]

    def test_predicates(self):
        tree, seen = model(), []
        slots, variables = unbind_variables(
            tree, lambda v: seen.append(v) or isinstance(v, StateVariable)
        )
        assert len(seen) == 3  # once for each occurrence
        assert slots["a"] is tree["a"]
        assert len(variables) == 1
        assert unbind_params(tree, lambda v: False)[1] == ()
        assert freeze_params(tree, lambda v: False)["a"] is tree["a"]

    def test_freeze(self):
        tree = model()
        frozen = freeze_variables(tree)
        assert frozen["a"] == frozen["b"][0] == tree["a"].freeze()
        assert isinstance(frozen["b"][1], StateVariableValue)
        assert isinstance(freeze_params(tree)["b"][1], StateVariable)
        assert isinstance(freeze_state_vars(tree)["a"], Parameter)

    @pytest.mark.parametrize(
        "function",
        [unbind_variables, freeze_variables, unbind_params, freeze_params, unbind_state_vars],
    )
    def test_a_second_tree_is_no_predicate(self, function):
        with pytest.raises(
            TypeError, match=r"predicate must be a function .* got dict.*as a tuple"
        ):
            function(model(), {"another": "tree"})
        assert function((model(), {"another": "tree"})) is not None  # the repair

    def test_conflicts(self):
        two = [Parameter(label="w", value=1.0), [Parameter(label="w", value=2.0)]]
        with pytest.raises(
            VariableConflictError,
            match=r"ParameterSlot\(label='w'\), at root\[0\] and root\[1\]\[0\]",
        ):
            unbind_variables(two)
        two[1][0].label = "v"  # the repair
        assert len(unbind_variables(two)[1]) == 2
        with pytest.raises(
            VariableConflictError, match="both a variable and an empty slot for ParameterSlot"
        ):
            unbind_variables([two[0], ParameterSlot("w")])
        assert unbind_variables([two[0], StateVariableSlot("w")])[1] == (two[0],)
        assert unbind_variables([two[0], two[0].freeze()])[1] == (two[0],)
        duplicate = copy.deepcopy(two[0])
        assert unbind_variables([two[0], duplicate], lambda v: v is duplicate)[1] == (duplicate,)

    def test_unhashable_label(self):
        with pytest.raises(TypeError, match="unhashable"):
            unbind_variables(Parameter(label=["a"], value=1.0))

    def test_bind(self):
        tree = model()
        slots, variables = unbind_variables(tree)
        bound = bind_variables(slots, iter(variables))
        assert bound == tree
        assert bound["a"] is bound["b"][0]
        partial = bind_variables(slots, variables[:1])
        assert partial["b"][1] == StateVariableSlot("w")
        values = [variable.freeze() for variable in variables]
        assert bind_variables(slots, values)["a"] is values[0]
        copies = bind_variables(slots, values, unfreeze_as_copy=True)
        assert copies["a"] is copies["b"][0]
        assert copies["a"] is not tree["a"]

    def test_relabelling_while_a_function_runs(self):
        tree = [Parameter(label="a", value=1.0), Parameter(label="b", value=1.0)]

        def f(inside):
            for variable in inside:
                variable.value = 2.0
            tree[1].label = "other"
            return inside[0].value

        with pytest.raises(ValueError, match=r"'b'.* became .*'other'.*Relabel"):
            pz_core.variable_remat(f)(tree)
        assert [float(v.value) for v in tree] == [1.0, 1.0]  # all or none
        pz_core.variable_remat(lambda inside: f(inside))(tree)  # the repair: it stays as it is
        assert [float(v.value) for v in tree] == [2.0, 2.0]

    def test_bind_errors(self):
        slots, variables = unbind_variables(model())
        with pytest.raises(
            ValueError, match=r"two of the given variables have the slot ParameterSlot"
        ):
            bind_variables(slots, [variables[0], variables[0]])
        extra = Parameter(label="x", value=1.0)
        with pytest.raises(
            ValueError, match=r"no slot for \[ParameterSlot\(label='x'\)\].*allow_unused"
        ):
            bind_variables(slots, [*variables, extra])
        assert bind_variables(slots, [*variables, extra], allow_unused=True)["a"] is variables[0]
        with pytest.raises(
            ValueError, match=r"takes frozen values, got a .*Parameter.*\.freeze\(\)"
        ):
            bind_variables(slots, variables, unfreeze_as_copy=True)

    def test_slots_made_apart_are_not_filled_by_one_variable(self):
        one, other = (ParameterSlot(DistinctLabel("w")) for _ in range(2))
        assert one == other == ParameterSlot("w")
        assert repr(one) == "ParameterSlot(label='w')"
        parameter = Parameter(label="w", value=1.0)
        with pytest.raises(
            VariableConflictError,
            match=r"made with the slot ParameterSlot\(label='w'\), at root\['a'\] and root\['b'\]"
            r"\[1\];.*same object in both places.*another name",
        ):
            bind_variables({"a": one, "b": [one, other]}, [parameter])
        # Nothing is refused that gets no variable, is the same slot, or is written out by hand.
        assert bind_variables([one, other], []) == [one, other]
        assert bind_variables([one, one], [parameter]) == [parameter, parameter]
        assert bind_variables([one, ParameterSlot("w")], [parameter]) == [parameter, parameter]
        renamed = ParameterSlot(DistinctLabel("v"))
        two = [parameter, Parameter(label="v", value=2.0)]
        assert bind_variables([one, renamed], two) == two

    def test_gradient_idiom(self):
        slots, params = unbind_params([Parameter(label="w", value=3.0)], freeze=True)
        (grad,) = jax.grad(lambda ps: bind_variables(slots, ps)[0].value ** 2)(params)
        assert isinstance(grad, ParameterValue)
        assert float(grad.value) == 6.0

    @given(trees, st.lists(st.sampled_from(["a", "b", "c"]), max_size=6), st.booleans())
    def test_bind_after_unbind(self, tree, labels, as_params):
        made = {
            label: (Parameter if as_params else StateVariable)(label=label, value=1.0)
            for label in labels
        }
        leaves, treedef = jax.tree.flatten(tree)
        for i, label in enumerate(labels[: len(leaves)]):
            leaves[i] = made[label]
        with_variables = treedef.unflatten(leaves)
        slots, variables = unbind_variables(with_variables)
        assert same_objects(bind_variables(slots, variables), with_variables)
        assert not any(isinstance(leaf, LabeledVariable) for leaf in jax.tree.leaves(slots))
        unbound_again, none = unbind_variables(slots)
        assert none == ()
        assert same_objects(unbound_again, slots)
        frozen = freeze_variables(with_variables)
        thawed = jax.tree.map(
            lambda x: x.unfreeze_as_copy() if isinstance(x, LabeledVariableValue) else x,
            frozen,
            is_leaf=lambda x: isinstance(x, LabeledVariableValue),
        )
        assert jax.tree.structure(freeze_variables(thawed)) == jax.tree.structure(frozen)


class Counter(pz_core.AbstractVariable):
    """A variable of another kind: no label, no arrays of its own making."""

    def __init__(self, name: str, count: Any):
        self.name, self.count = name, count

    def freeze(self):
        return CounterValue(self.count, self.name)

    def get_slot(self):
        return CounterSlot(self.name)

    def update(self, new):
        self.count = new.count


@pytree_dataclass
class CounterValue(pz_core.AbstractVariableValue):
    count: Any
    name: str = static("")

    def unfreeze_as_copy(self):
        return Counter(self.name, self.count)

    def get_slot(self):
        return CounterSlot(self.name)


@pytree_dataclass
class CounterSlot(pz_core.AbstractVariableSlot):
    name: str = static()


@pytest.mark.smoke
def test_custom_variables():
    tree = [Counter("c", jnp.zeros(())), Parameter(label="w", value=1.0)]

    @pz_core.variable_jit
    def increase(tree, by):
        tree[0].count = tree[0].count + by

    increase(tree, 2)
    increase(tree, 3)
    assert float(tree[0].count) == 5.0
    slots, (counter, parameter) = unbind_variables(tree)
    assert slots[0] == CounterSlot("c")
    assert unbind_params(tree)[1] == (parameter,)
    assert isinstance(freeze_variables(tree)[0], CounterValue)
    assert counter is tree[0]
    assert Box(tree[0]).w is counter


@pytest.mark.smoke
class TestRandomStream:
    @pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
    def test_next_key(self, make_key):
        stream = pz_core.RandomStream.from_base_key(make_key(0))
        for i in range(3):
            expected = jax.random.fold_in(make_key(0), i)
            assert (stream.next_key() == expected).all()
        assert int(stream.offset.value) == 3
        assert stream.offset.label == "random_stream_offset"

    def test_under_variable_jit(self):
        stream = pz_core.RandomStream.from_base_key(jax.random.key(1))

        @pz_core.variable_jit
        def draw(stream):
            return jax.random.uniform(stream.next_key())

        values = {float(draw(stream)) for _ in range(3)}
        assert len(values) == 3
        assert int(stream.offset.value) == 3

    def test_two_streams_need_two_labels(self):
        keys = [jax.random.key(i) for i in range(2)]
        streams = [pz_core.RandomStream.from_base_key(key) for key in keys]
        with pytest.raises(VariableConflictError, match="random_stream_offset"):
            unbind_variables(streams)
        streams[1] = pz_core.RandomStream.from_base_key(keys[1], offset_label="second")
        assert len(unbind_variables(streams)[1]) == 2
