import jax
import jax.numpy as jnp
import pytest
from nn_helpers import raises

from pz_core.variables import Parameter, ParameterSlot, StateVariableSlot
from pz_nn.parameters import (
    ParameterLike,
    assert_no_parameter_slots,
    derive_param_key,
    make_parameter,
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
