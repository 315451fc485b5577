import jax
import jax.numpy as jnp
from block_zoo import F, attention_block
from nn_helpers import assert_close, named, raw

from pz_core.variables import freeze_variables
from pz_named import named_axes as nx
from pz_nn.layer_stack import LayerStack
from pz_nn.leaf_numbers import numbers_as_arrays


def test_models_compute_the_same_without_python_numbers(key):
    stack = LayerStack.from_sublayer_builder(
        attention_block, "blocks", 2, key, {"name": "net/blocks"}
    )
    stack = freeze_variables(stack)
    converted = numbers_as_arrays(stack)
    assert any(isinstance(leaf, float) for leaf in jax.tree.leaves(stack))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(converted))
    run = jax.jit(lambda s, x: s(x, token_positions=nx.arange("seq", 3)))
    x = named(0, {"seq": 3, "f": F})
    assert_close(raw(run(converted, x)), raw(run(stack, x)), 0.0)


def test_arrays_are_weakly_typed_and_other_leaves_stay():
    kept = [jnp.ones(2), "text", None, nx.ones({"a": 1})]
    tree = numbers_as_arrays({"numbers": [1, 2.5, True, 1j], "kept": kept})
    assert [leaf.weak_type for leaf in tree["numbers"]] == [True, True, False, True]
    assert (jnp.ones(1, jnp.bfloat16) * tree["numbers"][1]).dtype == jnp.bfloat16
    assert tree["kept"][0] is kept[0]
    assert tree["kept"][1] == "text"
