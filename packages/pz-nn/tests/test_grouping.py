from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from nn_helpers import named, raises

from pz_core.struct import PyTreeDataclassSafetyError, pytree_dataclass
from pz_core.variables import Parameter
from pz_named import named_axes as nx
from pz_named import shapecheck as chk
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import Residual
from pz_nn.grouping import (
    CheckedSequential,
    CheckStructure,
    Identity,
    NamedGroup,
    Sequential,
    inline_anonymous_sequentials,
    inline_groups,
    is_anonymous_sequential,
    is_sequential_or_named,
)


def add(n):
    return lambda x, /, **_side_inputs: x + n


@pytree_dataclass
class Role(Sequential):
    sublayers: list


GROUPS = [
    Sequential,
    lambda layers: NamedGroup("group", layers),
    lambda layers: CheckedSequential(chk.ANY, chk.ANY, layers),
    Role,
]


@pytest.mark.smoke
@pytest.mark.parametrize("make", GROUPS)
def test_groups_run_in_order_and_pass_exactly_the_side_inputs(make):
    first, second = mock.Mock(return_value="between"), mock.Mock(return_value="out")
    assert make([first, second])("in", value=1, argument=2, self=3) == "out"
    first.assert_called_once_with("in", value=1, argument=2, self=3)
    second.assert_called_once_with("between", value=1, argument=2, self=3)


@pytest.mark.parametrize("make", GROUPS)
def test_an_empty_group_is_the_identity(make):
    thing = jnp.ones(3)
    assert make([])(thing) is thing
    assert Identity()(thing, anything=1) is thing


def test_sublayers_may_be_a_tuple():
    assert Sequential((add(1), add(2)))(0) == 3


def test_name_scopes_show_in_the_program():
    inner = NamedGroup("encoder", [Elementwise(jnp.sin)])
    layer = Sequential([Identity(), inner])
    text = jax.jit(lambda x: layer(x)).lower(nx.wrap(jnp.ones(2), "a")).as_text(debug_info=True)
    assert "1/encoder/0" in text


def test_a_subclass_restates_its_field():
    with pytest.raises(PyTreeDataclassSafetyError):

        @pytree_dataclass
        class Forgetful(Sequential):
            pass

    @pytree_dataclass(has_implicitly_inherited_fields=True)
    class Inheriting(Sequential):
        pass

    assert Inheriting([add(1)])(1) == 2


def test_checked_sequential_ties_input_and_output():
    spec = chk.ArraySpec(named_shape={**chk.var("B"), "x": chk.var("n")})
    layer = CheckedSequential(spec, spec, [])
    value = named(0, {"batch": 2, "x": 3})
    assert layer(value) is value
    drops_batch = CheckedSequential(spec, spec, [lambda v, /, **_: v[{"batch": 0}]])
    with raises(chk.StructureMismatchError, "output of a checked sequential", "batch"):
        drops_batch(value)
    wrong = CheckedSequential(chk.ArraySpec(named_shape={"x": 4}), chk.ANY, [])
    with raises(chk.StructureMismatchError, "input of a checked sequential", "3", "4"):
        wrong(named(0, {"x": 3}))
    assert wrong(named(0, {"x": 4})).named_shape == {"x": 4}


def test_check_structure():
    layer = CheckStructure({"a": chk.ArraySpec(named_shape={"x": 3})})
    value = {"a": named(0, {"x": 3})}
    assert layer(value) is value
    assert not jax.tree.leaves(layer)
    with raises(chk.StructureMismatchError, "x", "3", "2"):
        layer({"a": named(0, {"x": 2})})
    with raises(ValueError, "expected dict, found list"):
        layer([value["a"]])


def test_group_predicates():
    groups = [Sequential([]), NamedGroup("n", []), CheckedSequential(1, 1, []), Role([])]
    assert all(is_sequential_or_named(group) for group in groups)
    assert [is_anonymous_sequential(group) for group in groups] == [True, False, False, False]
    assert not is_sequential_or_named(Identity())
    assert not is_sequential_or_named([])


def test_inline_anonymous_sequentials_collapses_chains_and_keeps_roles():
    a, b, c, d, e = (Elementwise(fn) for fn in (jnp.sin, jnp.cos, jnp.tanh, jnp.exp, jnp.abs))
    tree = {
        "model": Sequential(
            [
                Sequential([a, Sequential([Sequential([b])])]),
                NamedGroup("kept", [Sequential([c])]),
                Residual(Sequential([Role([Sequential([d])])])),
                e,
            ]
        )
    }
    expected = {
        "model": Sequential([a, b, NamedGroup("kept", [c]), Residual(Sequential([Role([d])])), e])
    }
    assert inline_anonymous_sequentials(tree) == expected


def test_inline_groups_calls_filters_on_groups_only_and_keeps_variables():
    weight = Parameter(label="w", value=1.0)
    tree = Sequential([NamedGroup("n", [weight]), Role([Identity()])])
    seen = []

    def parents(group):
        seen.append(group)
        return True

    inlined = inline_groups(tree, parents, lambda group: isinstance(group, NamedGroup))
    assert inlined.sublayers[0] is weight
    assert inlined.sublayers[1] == Role([Identity()])
    assert all(is_sequential_or_named(group) for group in seen)
    assert isinstance(tree.sublayers[0], NamedGroup)  # the input is not changed


def test_colours_and_role_notes():
    grey = ("#cdcdcd", "color-mix(in oklab, #cdcdcd 25%, white)")
    assert Sequential([]).treescope_color() == Identity().treescope_color() == grey
    assert CheckStructure(1).treescope_color() == "#cdcdcd"
    assert CheckedSequential(1, 1, []).treescope_color() == "#cdcdcd"
    border, fill = Role([]).treescope_color()
    assert border.startswith("oklch")
    assert border in fill
    assert NamedGroup("a", []).treescope_color() == NamedGroup("a", [1]).treescope_color()
    assert NamedGroup("a", []).treescope_color() != NamedGroup("b", []).treescope_color()

    @pytree_dataclass(has_implicitly_inherited_fields=True)
    class CheckedRole(CheckedSequential):
        pass

    assert CheckedRole(1, 1, []).treescope_color()[1] == "#cdcdcd"
    notes = [layer.role_note() for layer in (Sequential([]), Role([]), CheckedRole(1, 1, []))]
    assert notes == [None, "Sequential", "CheckedSequential"]
