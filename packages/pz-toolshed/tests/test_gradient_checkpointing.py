import dataclasses

import jax
import jax.numpy as jnp
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import bind_variables, unbind_params
from pz_nn.combinators import Residual
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Linear
from pz_toolshed.gradient_checkpointing import Checkpointed
from pz_toolshed.jit_wrapper import Jitted

POLICY = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def loss_and_gradient(model, x, **side):
    slots, params = unbind_params(model, freeze=True)

    def loss(params):
        return (bind_variables(slots, params)(x, **side) ** 2).unwrap("embedding").sum()

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("policy", [None, POLICY])
def test_value_and_gradient_equal_the_bare_layer(policy):
    model = tm.block(tm.key(0))
    x = tm.random_input(embedding=4)
    wrapped = select(model).at_instances_of(Residual).apply(lambda x: Checkpointed(x, policy))
    tm.assert_trees_close(loss_and_gradient(wrapped, x), loss_and_gradient(model, x))


@pytest.mark.smoke
@pytest.mark.parametrize("jit", [False, True])
def test_state_and_random_streams_advance_as_without_it(jit):
    def run(wrapper):
        counter, stream = tm.counter(), tm.stream()
        model = wrapper(Sequential([tm.mlp([3, 4, 2], drop_rate=0.5), counter]))
        model = Jitted(model) if jit else model
        out = model(tm.random_input(features=3), random_stream=stream)
        return out, int(counter.count.value), int(stream.offset.value)

    bare, wrapped = run(lambda m: m), run(Checkpointed)
    tm.assert_trees_close(wrapped[0], bare[0], atol=0 if not jit else 1e-6)
    assert wrapped[1:] == bare[1:] == (1, 1)


def test_in_a_stack_with_a_policy_under_jit_and_gradient():
    stacked = tm.stack(3)
    x = tm.random_input(embedding=4)
    wrapped = (
        select(stacked)
        .at_instances_of(Residual)
        .apply(lambda x: Checkpointed(x, POLICY, prevent_cse=False))
    )
    tm.assert_trees_close(Jitted(wrapped)(x), stacked(x), atol=1e-5)
    tm.assert_trees_close(loss_and_gradient(wrapped, x), loss_and_gradient(stacked, x), atol=1e-5)


def test_one_remat_per_wrapped_call():
    model = Sequential([Checkpointed(tm.block(tm.key(0), name=f"b{i}")) for i in range(2)])
    slots, params = unbind_params(model, freeze=True)
    text = str(
        jax.make_jaxpr(lambda p, x: bind_variables(slots, p)(x))(
            params, tm.random_input(embedding=4)
        )
    )
    assert text.count("checkpoint[") + text.count("remat2[") + text.count("remat[") == 2


@pytest.mark.parametrize("policy, products", [(None, 1), (POLICY, 0)])
def test_the_policy_says_what_is_computed_again_also_in_a_stack_under_jit(policy, products):
    def products_in_gradient(model):
        slots, params = unbind_params(model, freeze=True)
        x = tm.random_input(embedding=4)

        def loss(p):
            return (Jitted(bind_variables(slots, p))(x) ** 2).unwrap("embedding").sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    stacked = tm.stack(3)
    wrapped = select(stacked).at_instances_of(Residual).apply(lambda x: Checkpointed(x, policy))
    # Of the two products of a block, nobody needs the value of the second.
    assert products_in_gradient(wrapped) - products_in_gradient(stacked) == products


@pytest.mark.smoke
def test_policy_is_structure_not_a_leaf():
    wrapped = Checkpointed(tm.block(tm.key(0)), POLICY)
    assert POLICY not in jax.tree_util.tree_leaves(wrapped)


def test_variables_in_the_argument_cross_too():
    @pytree_dataclass
    class Draw(Layer):
        def __call__(self, stream, /, **_):
            return jax.random.uniform(stream.next_key())

    one, two = tm.stream(), tm.stream()
    assert Checkpointed(Draw())(one) == Draw()(two)
    assert int(one.offset.value) == 1


def test_python_scalars_stay_python_scalars():
    @pytree_dataclass
    class NeedsStatic(Layer):
        def __call__(self, x, /, *, count, name, **_):
            assert isinstance(name, str)
            return x.reshape(count, -1)

    assert Checkpointed(NeedsStatic())(jnp.ones(6), count=2, name="a").shape == (2, 3)


def test_parameters_are_read_only_inside():
    @pytree_dataclass
    class Writes(Layer):
        linear: Linear

        def __call__(self, x, /, **_):
            self.linear.weights.value = x
            return x

    linear = Linear.from_config("l", tm.key(0), {"a": 2}, {"b": 2})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Checkpointed(Writes(linear))(jnp.ones(2))
