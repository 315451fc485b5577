import jax.numpy as jnp
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import StateVariable
from pz_nn.basic_ops import Elementwise
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Linear
from pz_toolshed.jit_wrapper import Jitted


@pytest.mark.smoke
@pytest.mark.parametrize("donate", [False, True])
def test_dropout_model_with_counter_equals_eager(donate):
    def run(wrapper):
        counter, stream = tm.counter(), tm.stream()
        model = Sequential([tm.mlp([3, 4, 2], drop_rate=0.5), counter])
        out = wrapper(model)(tm.random_input(features=3), random_stream=stream)
        return out, int(counter.count.value), int(stream.offset.value)

    eager, jitted = run(lambda m: m), run(lambda m: Jitted(m, donate_variables=donate))
    tm.assert_trees_close(jitted[0], eager[0])
    assert jitted[1:] == eager[1:] == (1, 1)


def test_body_is_the_original_and_a_variable_is_shared_between_eager_and_compiled():
    counter = tm.counter()
    jitted = Jitted(counter)
    assert jitted.body is counter
    counter(jnp.ones(()))
    jitted(jnp.ones(()))
    assert int(counter.count.value) == 2


def test_one_compilation_per_structure():
    traces = []

    def traced(x):
        traces.append(1)
        return x

    layer = Elementwise(traced)
    Jitted(layer)(jnp.ones(2))
    Jitted(Elementwise(traced))(jnp.ones(2))
    assert len(traces) == 1
    Jitted(Sequential([layer]))(jnp.ones(2))  # an edit compiles anew
    assert len(traces) == 2


def test_inside_a_stack_and_nested():
    stacked = tm.stack(2)
    x = tm.random_input(embedding=4)
    inner = select(stacked).at_instances_of(Linear).apply(Jitted)
    tm.assert_trees_close(Jitted(inner)(x), stacked(x), atol=1e-5)


def test_errors():
    from pz_core.struct import pytree_dataclass

    @pytree_dataclass
    class Leaky(Layer):
        def __call__(self, x, /, **_):
            return StateVariable(x, label="leak")

    with pytest.raises(ValueError, match=r"contains variables: StateVariable at result"):
        Jitted(Leaky())(jnp.ones(2))
    with pytest.raises(TypeError):
        Jitted(Elementwise(lambda x: x))("text")
