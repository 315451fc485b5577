"""What a checkpointed stack keeps for the backward pass, block by block and inside the block."""

import jax
import jax.numpy as jnp
import pytest
from block_zoo import F, affine
from nn_helpers import assert_close, named, raw

from pz_core.variables import bind_variables, unbind_params
from pz_nn.basic_ops import Elementwise
from pz_nn.checkpointing import CheckpointName
from pz_nn.grouping import Sequential
from pz_nn.layer_stack import LayerStack

DEPTH = 3


def block(name, init_base_rng):
    """Two layers with a named value between them."""
    return Sequential(
        [
            affine(f"{name}/first", init_base_rng),
            Elementwise(jnp.tanh),
            CheckpointName("between"),
            affine(f"{name}/second", init_base_rng),
            Elementwise(jnp.tanh),
        ]
    )


def saved_and_gradients(key, checkpoint):
    """How many numbers wait for the backward pass, and the gradients it gives."""
    stack = LayerStack.from_sublayer_builder(
        block, "blocks", DEPTH, key, {"name": "net/blocks"}, checkpoint=checkpoint
    )
    slots, params = unbind_params(stack, freeze=True)
    x = named(0, {"batch": 5, "f": F})

    @jax.jit
    def forward(params):
        return jax.vjp(lambda p: jnp.sin(bind_variables(slots, p)(x).data_array).sum(), params)

    _, pull_back = forward(params)
    (gradients,) = pull_back(jnp.ones(()))
    return sum(leaf.size for leaf in jax.tree.leaves(pull_back)), gradients


def test_policies_choose_what_is_kept_inside_a_block(key):
    policies = {
        "everything": None,
        "named": ("save_only_these_names", "between"),
        "nothing": "nothing_saveable",
        "offered": jax.checkpoint_policies.save_only_these_names("between"),
    }
    saved, gradients = {}, {}
    for name, policy in policies.items():
        saved[name], gradients[name] = saved_and_gradients(key, policy)
    assert saved["everything"] > saved["named"] > saved["nothing"]
    assert saved["named"] == saved["offered"]
    assert saved["named"] - saved["nothing"] == DEPTH * 5 * F  # one value of each block
    for name in policies:
        for a, b in zip(gradients[name], gradients["everything"], strict=True):
            assert_close(raw(a.value), raw(b.value))


@pytest.mark.smoke
def test_a_name_changes_nothing():
    x = named(0, {"f": F})
    y = CheckpointName("here")({"a": x})
    assert_close(raw(y["a"]), raw(x), 0.0)
    assert "here" in str(jax.make_jaxpr(lambda v: CheckpointName("here")(v).data_array)(x))
