import copy
import pickle

import jax
import jax.numpy as jnp
import pytest
from nn_helpers import raises

from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariableSlot,
    VariableConflictError,
    bind_variables,
    unbind_params,
)
from pz_nn.grouping import Sequential
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import Linear
from pz_nn.parameters import (
    DuplicateParameterNameError,
    ParameterLike,
    assert_no_parameter_slots,
    derive_param_key,
    make_parameter,
    unique_parameter_names,
)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "name, data",
    [
        ("foo", [2400529761, 3974919251]),
        ("n4", [1364010920, 2432665469]),  # hash 4080282230, beyond int32
        ("L.weights", [4255997095, 4003939755]),
    ],
)
def test_derived_key_vectors(key, name, data):
    assert jax.random.key_data(derive_param_key(key, name)).tolist() == data
    assert (
        jax.random.key_data(jax.jit(derive_param_key, static_argnums=1)(key, name)).tolist() == data
    )
    assert derive_param_key(jax.random.PRNGKey(0), name).tolist() == data


def test_derived_key_folds_in_the_hash(key):
    expected = jax.random.fold_in(key, 1430573483)
    assert derive_param_key(key, "mlp/Affine_0/Linear.weights") == expected


@pytest.mark.smoke
def test_make_parameter_without_key_is_a_slot_and_calls_nothing():
    def never(*_args):
        pytest.fail("the initializer was called")

    assert make_parameter("p", None, never, metadata={"a": 1}) == ParameterSlot("p")


def test_make_parameter_passes_arguments_on(key):
    def initializer(key, *args, **kwargs):
        return {"key": jax.random.key_data(key), "sum": jnp.asarray(sum(args) + kwargs["extra"])}

    parameter = make_parameter("foo", key, initializer, 1, 2, extra=3)
    assert isinstance(parameter, Parameter)
    assert parameter.label == "foo"
    assert parameter.metadata == {}
    assert parameter.value["key"].tolist() == [2400529761, 3974919251]
    assert parameter.value["sum"] == 6
    assert make_parameter("foo", key, initializer, 1, extra=0, metadata={"m": 1}).metadata == {
        "m": 1
    }


def test_parameter_like_is_not_runtime_checkable():
    with pytest.raises(TypeError):
        isinstance(1, ParameterLike)


def test_assert_no_parameter_slots(key):
    full = make_parameter("a", key, jax.random.normal, (2,))
    assert assert_no_parameter_slots({"p": full, "state": StateVariableSlot("s")}) is None
    with raises(ValueError, "assert_no_parameter_slots", "'b'", "'c'", "bind_variables"):
        assert_no_parameter_slots([ParameterSlot("b"), {"x": ParameterSlot("c")}, full])
    assert_no_parameter_slots([full])


def two_layers(name, init_base_rng, names=("same", "same")):
    axes = {"f": 2}
    return Sequential([Linear.from_config(f"{name}/{n}", init_base_rng, axes, axes) for n in names])


@pytest.mark.parametrize("with_key", [True, False])
def test_names_are_unique_while_a_model_is_built(with_key, key):
    key = key if with_key else None
    message = ("'net/same.weights'", "another name", "the same object in both places")
    with raises(DuplicateParameterNameError, *message), unique_parameter_names():
        two_layers("net", key)

    @unique_parameter_names()
    def build(names):
        return two_layers("net", key, names)

    with raises(DuplicateParameterNameError, *message):
        build(("same", "same"))
    build(("one", "two"))
    build(("one", "two"))  # each call is a scope of its own
    with unique_parameter_names():  # the advised repairs
        layer = Linear.from_config("net/same", key, {"f": 2}, {"f": 2})
        Sequential([layer, layer])
    with raises(DuplicateParameterNameError, *message), unique_parameter_names():
        build(("same", "other"))
        build(("same", "another"))  # scopes inside a scope belong to it


def test_names_are_unique_in_the_block_of_a_stack(key):
    def stack(**options):
        arguments = {"name": "blocks", **options}
        return LayerStack.from_sublayer_builder(two_layers, "blocks", 2, key, arguments)

    with raises(DuplicateParameterNameError, "'blocks/same.weights'"):
        stack()
    assert len(unbind_params(stack(names=("one", "two")))[1]) == 2


def test_outside_of_a_scope_equal_names_conflict_when_unbound(key):
    with raises(VariableConflictError, "net/same.weights"):
        unbind_params(two_layers("net", key))
    unbind_params(two_layers("net", key, ("one", "two")))


def rebuilt_by_copying(tree):
    return copy.deepcopy(tree)


def rebuilt_by_pickling(tree):
    return pickle.loads(pickle.dumps(tree))


def rebuilt_by_jax(tree):
    return jax.jit(lambda: tree)()


@pytest.mark.parametrize(
    "rebuilt", [lambda tree: tree, rebuilt_by_copying, rebuilt_by_pickling, rebuilt_by_jax]
)
def test_one_parameter_does_not_fill_slots_made_apart(rebuilt, key):
    _, given = unbind_params(two_layers("net", key, ("same",)))
    slots = two_layers("net", None)
    places = [f"root.sublayers[{i}].sublayers[0].weights" for i in range(2)]
    with raises(VariableConflictError, "'net/same.weights'", *places, "the same object", "another"):
        rebuilt(slots).bind_variables(given)
    with raises(VariableConflictError, "'net/same.weights'"):
        rebuilt(slots).stateless_call([parameter.freeze() for parameter in given], None)

    layer = slots.sublayers[0]  # the advised repairs
    first, second = rebuilt(Sequential([layer, layer])).bind_variables(given).sublayers
    assert first.sublayers[0].weights is second.sublayers[0].weights is given[0]
    _, two = unbind_params(two_layers("net", key, ("one", "two")))
    unbound = rebuilt(two_layers("net", None, ("one", "two")))
    assert unbind_params(unbound.bind_variables(two))[1] == two


def test_slots_written_by_hand_are_shared_by_their_label(key):
    parameter = make_parameter("a", key, jax.random.normal, (2,))
    by_hand, made = ParameterSlot("a"), make_parameter("a", None, jax.random.normal, (2,))
    tree = bind_variables([by_hand, ParameterSlot("a"), made], [parameter])
    assert all(leaf is parameter for leaf in tree)
    # Models built twice are two trees; putting one of them in the place of the other is no conflict.
    assert jax.tree.structure(two_layers("net", None)) == jax.tree.structure(
        two_layers("net", None)
    )
