"""Each tool of the toolshed on a small transformer, in the few lines that its users write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penzai import pz
from penzai.models.transformer import model_parts
from penzai.models.transformer.variants import llamalike_common
from penzai.toolshed import (
    auto_nmap,
    gradient_checkpointing,
    isolate_submodel,
    jit_wrapper,
    lora,
    model_rewiring,
    save_intermediates,
    sharding_util,
)

BLOCKS = 4


@pytest.fixture(scope="module")
def model():
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=1,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=12,
        num_decoder_blocks=BLOCKS,
        vocab_size=11,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    return llamalike_common.build_llamalike_transformer(config, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return pz.nx.wrap(jnp.array([1, 2, 3]), "seq")


@pytest.fixture(scope="module")
def logits(model, tokens):
    return np.asarray(jit_wrapper.Jitted(model)(tokens).unwrap("seq", "vocabulary"))


def test_a_module_lifted_to_named_axes():
    njnp = auto_nmap.wrap_module(jnp)
    matrix = pz.nx.wrap(jnp.arange(6.0).reshape(2, 3), "row", "col")
    vector = pz.nx.wrap(jnp.array([1.0, 0.0, 2.0]), "col")
    product = njnp.einsum("ij,j->i", matrix.untag("row", "col"), vector.untag("col")).tag("row")
    assert product.unwrap("row").tolist() == [4.0, 13.0]


def test_checkpointed_blocks_compiled(model, tokens, logits):
    blocks = pz.select(model).at_instances_of(model_parts.TransformerBlock)
    checkpointed = blocks.apply(gradient_checkpointing.Checkpointed)
    found = jit_wrapper.Jitted(checkpointed)(tokens).unwrap("seq", "vocabulary")
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_adapters_on_the_values_alone(model):
    values = (
        pz.select(pz.freeze_params(model))
        .at_instances_of(pz.nn.Attention)
        .at(lambda attention: attention.input_to_value)
    )
    tuned = lora.loraify_linears_in_selection(values, rank=4, init_base_rng=jax.random.key(7))
    labels = [parameter.label for parameter in pz.unbind_params(tuned)[1]]
    assert len(labels) == 2 * BLOCKS
    assert all(".input_to_value" in label for label in labels)


def test_one_feed_forward_part_replayed_on_another_input(model, tokens):
    parts = pz.select(model).at_instances_of(model_parts.TransformerFeedForward)
    found = isolate_submodel.call_and_extract_submodel(parts.pick_nth_selected(3), tokens)
    same, _ = found.submodel.stateless_call(
        found.initial_var_values, found.saved_arg, **found.saved_side_inputs
    )
    np.testing.assert_array_equal(same.data_array, found.saved_output.data_array)
    out, _ = found.submodel.stateless_call(
        found.initial_var_values, found.saved_arg * 2, **found.saved_side_inputs
    )
    expected = parts.get_sequence()[3](found.saved_arg * 2)
    np.testing.assert_allclose(out.data_array, expected.data_array, atol=1e-6)


def test_the_shapes_of_everything_compiled(model, tokens):
    probe = save_intermediates.saving_all_intermediates(model, shapes_only=True)
    jit_wrapper.Jitted(probe)(tokens)
    shapes = [variable.value for variable in pz.unbind_state_vars(probe)[1]]
    assert shapes[0].named_shape == {"seq": 3}
    assert shapes[-1].named_shape == {"seq": 3, "vocabulary": 11}


def test_one_world_takes_a_head_from_another(model, tokens, logits):
    keep = pz.nx.wrap(jnp.arange(2) != 1).tag("heads").astype(jnp.float32)
    layer = model_rewiring.RewireComputationPaths(
        worlds_axis="worlds",
        world_ordering=("a", "b"),
        taking={
            "a": model_rewiring.From("a"),
            "b": (model_rewiring.From("a", 1.0 - keep), model_rewiring.From("b", keep)),
        },
    )
    values = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)
        .at(lambda attention: attention.input_to_value)
    )
    rewired = values.insert_after(layer, group=pz.nn.Sequential)
    other = pz.nx.wrap(jnp.array([4, 5, 6]), "seq")
    worlds = pz.nx.stack([tokens, other], "worlds")
    found = jit_wrapper.Jitted(rewired)(worlds).unwrap("worlds", "seq", "vocabulary")
    np.testing.assert_allclose(found[0], logits, atol=1e-5)  # world a is left alone
    assert not np.allclose(found[1], jit_wrapper.Jitted(model)(other).unwrap("seq", "vocabulary"))


def test_a_child_of_a_flax_module_zeroed():
    nn = pytest.importorskip("flax.linen")
    from penzai.toolshed import unflaxify

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="last")(nn.Dense(4, name="first")(x))

    x = jnp.ones((2, 2))
    variables = Net().init(jax.random.key(0), x)
    net = unflaxify.unflaxify_apply(Net(), variables, x)
    cut = (
        pz.select(net)
        .at(lambda root: root.submodule_calls[(1, "last.__call__")])
        .apply(lambda child: pz.nn.Sequential([child, pz.nn.ConstantRescale(0.0)]))
    )
    call = unflaxify.ArgsAndKwargs.capture(x)
    np.testing.assert_allclose(net(call), Net().apply(variables, x), atol=1e-6)
    assert not cut(call).any()


def test_a_batch_on_a_mesh():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("dp", "tp"))
    x = pz.nx.wrap(jnp.ones((4, 2)), "batch", "features")
    batch = sharding_util.name_to_name_device_put({"x": x}, mesh, {"batch": "dp"})
    assert batch["x"].data_array.sharding.spec == jax.sharding.PartitionSpec("dp", None)
