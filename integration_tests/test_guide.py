"""Penzai's how-to guide, task by task, with its calls as they are written there.

Names, headings and calls are the guide's; placeholders are filled in with small things, and what a
call returns is checked. Where JAX itself moved on, so do we: `jax.jvp(f, p, t)` in place of
`jax.jvp(f)(p, t)` (and as the tangent of a tree that holds no numbers the tree itself, where the
guide has None), `NamedSharding` in place of `PositionalSharding`.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope

from penzai import pz
from penzai.models import simple_mlp
from penzai.models.transformer import variants
from penzai.toolshed import (
    basic_training,
    gradient_checkpointing,
    isolate_submodel,
    lora,
    save_intermediates,
)
from penzai.toolshed.model_rewiring import LinearizeAndAdjust

CONFIG = variants.llamalike_common.LlamalikeTransformerConfig(
    num_kv_heads=2,
    query_head_multiplier=1,
    embedding_dim=16,
    projection_dim=8,
    mlp_hidden_dim=32,
    num_decoder_blocks=1,
    vocab_size=20,
    mlp_variant="geglu_approx",
    tie_embedder_and_logits=True,
)
tokens = pz.nx.wrap(jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]]), "batch", "seq")
token_positions = pz.nx.arange("seq", 4)


@functools.cache
def transformer():
    """A tiny transformer; nobody changes it."""
    return variants.llamalike_common.build_llamalike_transformer(
        CONFIG, init_base_rng=jax.random.key(0, impl="rbg")
    )


@functools.cache
def logits_of_the_transformer():
    return run(transformer(), tokens, token_positions=token_positions)


@pz.variable_jit
def run(model, argument, **side_inputs):
    return model(argument, **side_inputs)


def affine(name="layer", in_axes=None, out_axes=None):
    return pz.nn.Affine.from_config(
        name=name,
        init_base_rng=jax.random.key(1, impl="rbg"),
        input_axes=in_axes or {"features": 8},
        output_axes=out_axes or {"features": 8},
    )


def assert_same(actual, expected, **tolerance):
    names = tuple(expected.named_shape)
    np.testing.assert_allclose(actual.unwrap(*names), expected.unwrap(*names), **tolerance)


# ------------------------------------------------------------------------------- Visualization


NOTEBOOK_CELLS = """
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance()

from penzai import pz
import treescope
treescope.basic_interactive_setup(autovisualize_arrays=True)
data, _ = shell.display_formatter.format(pz.nx.ones({"foo": 3}))
assert "foo" in data["text/plain"] and "<" in data["text/html"]

with capture_output() as shown:
    treescope.show(pz.nn.Identity())
assert "treescope" in shown.outputs[0].data["text/html"]
"""


def test_setting_up_pretty_printing_and_showing_specific_objects():
    pytest.importorskip("IPython")
    done = subprocess.run([sys.executable, "-c", NOTEBOOK_CELLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_manually_visualizing_arrays():
    my_array = pz.nx.wrap(jnp.arange(12.0).reshape(3, 4), "foo", "bar")
    figure = treescope.render_array(my_array, axis_labels={"foo": "my foo"})
    assert "my foo" in treescope.figures.treescope_part_from_display_object(figure).__repr__()


# --------------------------------------------------------------------------- Using Named Axes


def test_converting_between_named_arrays_and_jax_arrays():
    my_named_array = pz.nx.wrap(jnp.ones([3, 4, 5])).tag("foo", "bar", "baz")
    also = pz.nx.wrap(jnp.ones([3, 4, 5]), "foo", "bar", "baz")
    assert my_named_array.named_shape == also.named_shape == {"foo": 3, "bar": 4, "baz": 5}
    assert my_named_array.untag("bar", "foo", "baz").unwrap().shape == (4, 3, 5)
    assert my_named_array.unwrap("bar", "foo", "baz").shape == (4, 3, 5)


def test_inspecting_array_shapes():
    wrapped = pz.nx.wrap(jnp.ones([3, 4, 5]))
    assert (wrapped.positional_shape, dict(wrapped.named_shape)) == ((3, 4, 5), {})
    tagged = wrapped.tag("foo", "bar", "baz")
    assert (tagged.positional_shape, dict(tagged.named_shape)) == (
        (),
        {"foo": 3, "bar": 4, "baz": 5},
    )
    mixed = tagged.untag("bar")
    assert (mixed.positional_shape, dict(mixed.named_shape)) == ((4,), {"foo": 3, "baz": 5})


def test_lifting_positional_operations():
    array = jax.random.normal(jax.random.key(0), (3, 4))
    named = pz.nx.wrap(array, "foo", "bar")
    result = pz.nx.nmap(jnp.cumsum)(named.untag("bar")).tag("bar")
    np.testing.assert_allclose(result.unwrap("foo", "bar"), jnp.cumsum(array, axis=1), rtol=1e-6)


def test_fixing_pytree_mismatch_errors():
    a = pz.nx.wrap(jnp.ones([3, 4]), "foo", "bar")
    b = pz.nx.wrap(jnp.ones([4, 3]), "bar", "foo")
    structure = jax.tree_util.tree_structure
    assert structure(a) != structure(b)
    assert structure(a.canonicalize()) == structure(b.canonicalize())
    assert structure(a.order_like(b)) == structure(b)
    current_tree_of_arrays, target_tree_of_arrays = {"x": a}, {"x": b}
    assert structure(pz.nx.order_like(current_tree_of_arrays, target_tree_of_arrays)) == structure(
        target_tree_of_arrays
    )


# ---------------------------------------------------------------------------- Building Models


def test_initializing_models_or_layers_from_scratch():
    mlp = simple_mlp.MLP.from_config(
        name="mlp",
        init_base_rng=jax.random.key(10),
        feature_sizes=[2, 32, 32, 2],
    )
    assert mlp(pz.nx.ones({"features": 2})).named_shape == {"features": 2}
    assert pz.select(mlp).at_instances_of(pz.nn.Affine).count() == 3
    slots = simple_mlp.MLP.from_config(
        name="mlp",
        init_base_rng=None,
        feature_sizes=[2, 32, 32, 2],
    )
    assert pz.select(slots).at_instances_of(pz.ParameterSlot).count() == 6
    assert pz.select(slots).at_instances_of(pz.Parameter).is_empty()


def test_implementing_new_models_out_of_existing_components():
    def build_my_model(
        name: str,
        init_base_rng: jax.Array | None,
    ):
        return pz.nn.Sequential([
            pz.nn.Affine.from_config(
                name=f"{name}/Affine_0",
                init_base_rng=init_base_rng,
                input_axes={"features": 8},
                output_axes={"features": 8},
            ),
            pz.nn.Elementwise(jax.nn.relu),
        ])  # fmt: skip

    model = build_my_model("my_model", jax.random.key(0))
    assert model(pz.nx.ones({"features": 8})).named_shape == {"features": 8}
    _, params = pz.unbind_params(model)
    assert [p.label for p in params] == [
        "my_model/Affine_0/Linear.weights",
        "my_model/Affine_0/AddBias.bias",
    ]
    slots = build_my_model("my_model", None)
    assert pz.select(slots).at_instances_of(pz.ParameterSlot).count() == 2


def test_the_combinators_and_the_primitives_of_the_guide():
    x = pz.nx.wrap(jnp.array([1.0, -2.0]), "features")
    double = pz.nn.Elementwise(lambda v: v * 2)
    negate = pz.nn.Elementwise(lambda v: -v)
    for layer, expected in [
        (pz.nn.Sequential([double, negate]), -2 * x),
        (pz.nn.Residual(double), 3 * x),
        (pz.nn.BranchAndAddTogether([double, negate]), x),
        (pz.nn.BranchAndMultiplyTogether([double, negate]), -2 * x * x),
    ]:
        assert_same(layer(x), expected)
    primitives = [
        pz.nn.Affine, pz.nn.Linear, pz.nn.AddBias, pz.nn.ApplyAttentionMask,
        pz.nn.Elementwise, pz.nn.Softmax, pz.nn.Attention,
    ]  # fmt: skip
    assert all(issubclass(primitive, pz.nn.Layer) for primitive in primitives)
    assert issubclass(pz.nn.Affine, pz.nn.Sequential)
    assert issubclass(pz.nn.LayerNorm, pz.nn.Sequential)
    for mask in (
        pz.nn.ApplyCausalAttentionMask,
        pz.nn.ApplyCausalSlidingWindowAttentionMask,
        pz.nn.ApplyExplicitAttentionMask,
    ):
        assert issubclass(mask, pz.nn.ApplyAttentionMask)


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class MyCustomLayer(pz.nn.Sequential):
    @classmethod
    def from_config(cls, name: str, init_base_rng: jax.Array | None, features: int):
        return cls([
            pz.nn.Affine.from_config(
                name=f"{name}/Affine",
                init_base_rng=init_base_rng,
                input_axes={"features": features},
                output_axes={"features": features},
            ),
        ])  # fmt: skip


def test_a_custom_layer_class_on_top_of_sequential():
    layer = MyCustomLayer.from_config("mine", jax.random.key(0), features=3)
    assert layer(pz.nx.ones({"features": 3})).named_shape == {"features": 3}
    assert treescope.render_to_text(layer).startswith("MyCustomLayer(")


@pz.pytree_dataclass
class SimpleLinear(pz.nn.Layer):
    kernel: pz.nn.ParameterLike[pz.nx.NamedArray]

    features_axis: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, x: pz.nx.NamedArray, /, **unused_side_inputs) -> pz.nx.NamedArray:
        pos_x = x.untag(self.features_axis)
        pos_kernel = self.kernel.value.untag("out_features", "in_features")
        pos_y = pz.nx.nmap(jnp.dot)(pos_kernel, pos_x)
        return pos_y.tag(self.features_axis)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        in_features: int,
        out_features: int,
        features_axis: str = "features",
    ) -> "SimpleLinear":
        def _initializer(key):
            arr = jax.nn.initializers.xavier_normal()(key, (out_features, in_features))
            return pz.nx.wrap(arr).tag("out_features", "in_features")

        return cls(
            kernel=pz.nn.make_parameter(
                name=f"{name}.kernel",
                init_base_rng=init_base_rng,
                initializer=_initializer,
            ),
            features_axis=features_axis,
        )


def test_defining_custom_layer_logic():
    layer = SimpleLinear.from_config("simple", jax.random.key(0), in_features=3, out_features=2)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    y = layer(pz.nx.wrap(x, "batch", "features"))
    kernel = layer.kernel.value.unwrap("out_features", "in_features")
    np.testing.assert_allclose(y.unwrap("batch", "features"), x @ kernel.T, rtol=1e-5, atol=1e-6)
    assert jax.tree_util.tree_leaves(pz.freeze_params(layer))[0].shape == (2, 3)
    assert layer.kernel.label == "simple.kernel"


# --------------------------------------------------------------------- Loading Pretrained Models


def saved_and_loaded(hf_class, config_class, folder, **config):
    """Saves a small model with random weights; returns what `from_pretrained` makes of it."""
    sizes = config_class(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        **config,
    )
    hf_class(sizes).save_pretrained(folder)
    return hf_class.from_pretrained(folder)


def assert_computes_the_same(pz_model, hf_model):
    torch = pytest.importorskip("torch")
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.no_grad():
        expected = hf_model(torch.tensor(ids)).logits.numpy()
    logits = run(pz_model, pz.nx.wrap(ids, "batch", "seq"), token_positions=token_positions)
    np.testing.assert_allclose(
        logits.unwrap("batch", "seq", "vocabulary"), expected, atol=1e-4, rtol=1e-4
    )


def test_loading_gemma_1_2_and_3(kaggle):
    import kagglehub
    import orbax.checkpoint

    for name, folder, blocks, _, window in kaggle:
        weights_dir = kagglehub.model_download(name)
        ckpt_path = os.path.join(weights_dir, folder)

        checkpointer = orbax.checkpoint.PyTreeCheckpointer()
        flax_params_dict = checkpointer.restore(ckpt_path)
        model = variants.gemma.gemma_from_pretrained_checkpoint(flax_params_dict)

        assert pz.select(model).at_instances_of(pz.nn.Attention).count() == blocks
        masks = pz.select(model).at_instances_of(pz.nn.ApplyAttentionMask)
        first = masks.pick_nth_selected(0).get()
        assert getattr(first, "sliding_window_size", None) == window


@pytest.mark.usefixtures("kaggle")
def test_loading_gemma_in_shards():
    import kagglehub
    import orbax.checkpoint
    from jax.experimental import mesh_utils

    ckpt_path = os.path.join(kagglehub.model_download("google/gemma/Flax/7b"), "7b")
    checkpointer = orbax.checkpoint.PyTreeCheckpointer()
    metadata = checkpointer.metadata(ckpt_path)

    n_devices = jax.local_device_count()
    sharding_devices = mesh_utils.create_device_mesh((n_devices,))
    mesh = jax.sharding.Mesh(sharding_devices, ("devices",))
    restore_args = jax.tree_util.tree_map(
        lambda m: orbax.checkpoint.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=jax.sharding.NamedSharding(
                mesh, jax.sharding.PartitionSpec(*[None] * (len(m.shape) - 1), "devices")
            ),
        ),
        metadata.item_metadata.tree,
    )
    flax_params_dict = checkpointer.restore(ckpt_path, restore_args=restore_args)
    model = variants.gemma.gemma_from_pretrained_checkpoint(flax_params_dict)
    _, params = pz.unbind_params(model)
    assert {p.value.data_array.sharding.mesh for p in params} == {mesh}


@pytest.mark.torch
def test_loading_llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_model = saved_and_loaded(
        transformers.LlamaForCausalLM, transformers.LlamaConfig, tmp_path, num_key_value_heads=1
    )
    pz_model = variants.llama.llama_from_huggingface_model(hf_model)
    assert_computes_the_same(pz_model, hf_model)


@pytest.mark.torch
def test_loading_mistral(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_model = saved_and_loaded(
        transformers.MistralForCausalLM, transformers.MistralConfig, tmp_path, num_key_value_heads=1
    )
    pz_model = variants.mistral.mistral_from_huggingface_model(hf_model)
    assert_computes_the_same(pz_model, hf_model)


@pytest.mark.torch
def test_loading_gpt_neox(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_model = saved_and_loaded(
        transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, tmp_path
    )
    pz_model = variants.gpt_neox.gpt_neox_from_huggingface_model(hf_model)
    assert_computes_the_same(pz_model, hf_model)


# --------------------------------------------------------------------- Using Models and Variables


def test_freezing_pretrained_model_weights():
    model = affine()
    frozen = pz.nn.freeze_params(model)
    assert pz.select(frozen).at_instances_of(pz.ParameterValue).count() == 2
    assert pz.select(frozen).at_instances_of(pz.Parameter).is_empty()
    x = pz.nx.ones({"features": 8})
    assert_same(jax.jit(lambda model, x: model(x))(frozen, x), model(x), rtol=1e-6)


def test_running_the_model_forward_pass():
    model = transformer()
    attn_mask = pz.nx.wrap(jnp.tril(jnp.ones((4, 4), bool)), "seq", "kv_seq")
    results = model(
        tokens,
        token_positions=token_positions,
        attn_mask=attn_mask,
    )
    assert results.named_shape == {"batch": 2, "seq": 4, "vocabulary": 20}
    assert_same(results, logits_of_the_transformer(), atol=1e-5)


def test_extracting_and_freezing_model_parameters():
    model = pz.nn.Sequential([shared := affine("shared"), shared])
    unbound_model, params = pz.unbind_params(model)
    assert len(params) == 2  # deduplicated
    assert all(isinstance(p, pz.Parameter) for p in params)
    assert pz.select(unbound_model).at_instances_of(pz.ParameterSlot).count() == 4
    assert isinstance(params[0].freeze(), pz.ParameterValue)
    frozen = pz.freeze_params(params)
    also_unbound, also_frozen = pz.unbind_params(model, freeze=True)
    assert [p.label for p in frozen] == [p.label for p in also_frozen]
    x = pz.nx.ones({"features": 8})
    for rebound in (
        pz.bind_variables(unbound_model, params),
        pz.bind_variables(unbound_model, frozen),
        pz.bind_variables(also_unbound, also_frozen),
    ):
        assert_same(rebound(x), model(x))


def test_taking_gradients_with_respect_to_model_parameters():
    model = affine()
    x = pz.nx.wrap(jnp.arange(8.0), "features")

    def my_loss(params, unbound_model):
        rebound_model = pz.bind_variables(unbound_model, params)
        result = rebound_model(x)
        return jnp.sum(result.unwrap("features") ** 2)

    unbound_model, frozen_params = pz.unbind_params(model, freeze=True)
    grads = jax.grad(my_loss, argnums=0)(frozen_params, unbound_model)
    y = model(x).unwrap("features")
    by_label = {p.label: p.value for p in grads}
    np.testing.assert_allclose(
        by_label["layer/AddBias.bias"].unwrap("features"), 2 * y, rtol=1e-5, atol=1e-6
    )

    # "Build your input perturbations somehow": all ones.
    perturbations = jax.tree_util.tree_map(jnp.ones_like, frozen_params)
    loss, tangent = jax.jvp(
        my_loss, (frozen_params, unbound_model), (perturbations, unbound_model)
    )  # fmt: skip
    expected = sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(grads))
    np.testing.assert_allclose(tangent, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, jnp.sum(y**2), rtol=1e-5)


@pz.pytree_dataclass
class CountCalls(pz.nn.Layer):
    count: pz.StateVariable[jax.Array]

    def __call__(self, x: Any, /, **_side_inputs: Any) -> Any:
        self.count.value = self.count.value + 1
        return x * self.count.value


def test_extracting_and_manipulating_state_variables():
    model = pz.nn.Sequential([CountCalls(pz.StateVariable(jnp.array(0), label="count"))])
    x = jnp.array(10.0)
    assert model(x) == 10.0
    assert model(x) == 20.0  # outside of transformations, state is just mutated

    stateless_model, frozen_states = pz.unbind_state_vars(model, freeze=True)
    y, new_state = stateless_model.stateless_call(frozen_states, x)
    assert y == 30.0
    assert [s.value for s in new_state] == [3]
    assert [s.value for s in frozen_states] == [2]
    assert model.sublayers[0].count.value == 2

    (snapshot,) = pz.freeze_state_vars(frozen_states)
    copy = snapshot.unfreeze_as_copy()
    rebound = pz.bind_variables(stateless_model, [copy])
    assert rebound(x) == 30.0
    assert (copy.value, snapshot.value) == (3, 2)


def test_running_models_with_stochastic_components():
    stochastic_model = pz.nn.StochasticDropout(0.5)
    input_array = pz.nx.ones({"features": 64})
    results = stochastic_model(
        input_array, random_stream=pz.RandomStream.from_base_key(jax.random.key(42))
    )
    kept = results.unwrap("features")
    assert set(np.unique(kept)) == {0.0, 2.0}
    stream = pz.RandomStream.from_base_key(jax.random.key(42))
    first, second = (stochastic_model(input_array, random_stream=stream) for _ in range(2))
    assert_same(first, results)
    assert np.any(second.unwrap("features") != kept)


@pz.pytree_dataclass
class AddNoise(pz.nn.Layer):
    stream: pz.RandomStream

    def __call__(self, x: Any, /, **_side_inputs: Any) -> Any:
        return x + jax.random.normal(self.stream.next_key())


def test_a_random_stream_stored_in_a_layer():
    layer = AddNoise(pz.RandomStream.from_base_key(jax.random.key(0)))
    assert layer(0.0) != layer(0.0)


# ------------------------------------------------------------------- Modifying and Patching Models


@pz.pytree_dataclass
class Modified(pz.nn.Layer):
    body: pz.nn.Layer

    def __call__(self, x, **side_inputs):
        return self.body(x, **side_inputs)


def test_modifying_model_layers_by_position_or_by_type():
    some_func = Modified

    def count(modified_model):
        return pz.select(modified_model).at_instances_of(Modified).count()

    model = transformer()
    by_position = (
        pz.select(model).at(lambda model: model.body.sublayers[2]).apply(some_func)
    )  # fmt: skip
    assert by_position.body.sublayers[2].body is model.body.sublayers[2]
    assert count(by_position) == 1
    by_type = pz.select(model).at_instances_of(pz.nn.Linear).apply(some_func)
    assert count(by_type) == pz.select(model).at_instances_of(pz.nn.Linear).count() > 6
    in_query_heads = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)
        .at(lambda attn: attn.input_to_query)
        .at_instances_of(pz.nn.Linear)
        .apply(some_func)
    )
    assert count(in_query_heads) == 1
    assert count(model) == 0
    assert_same(
        run(by_type, tokens, token_positions=token_positions),
        logits_of_the_transformer(),
        atol=1e-5,
    )
    spliced = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)
        .insert_before(pz.nn.ConstantRescale(1.0))
    )  # fmt: skip
    spliced = (
        pz.select(spliced)
        .at_instances_of(pz.nn.Attention)
        .insert_after(pz.nn.ConstantRescale(1.0))
    )  # fmt: skip
    assert_same(
        run(spliced, tokens, token_positions=token_positions),
        logits_of_the_transformer(),
        atol=1e-5,
    )


@pz.pytree_dataclass
class AppendIntermediate(pz.nn.Layer):
    saved: pz.StateVariable[list[Any]]

    def __call__(self, x, **_side_inputs):
        self.saved.value = self.saved.value + [x]
        return x


def test_capturing_intermediate_activations():
    model = pz.nn.Sequential([affine("a"), pz.nn.Elementwise(jnp.tanh), affine("b")])
    inputs = pz.nx.ones({"features": 8})
    intermediates_cell = pz.StateVariable([])
    modified_model = (
        pz.select(model)
        .at_instances_of(pz.nn.Affine)
        .insert_after(AppendIntermediate(intermediates_cell))
    )
    result = modified_model(inputs)
    intermediates = intermediates_cell.value
    assert len(intermediates) == 2
    assert_same(intermediates[0], model.sublayers[0](inputs))
    assert_same(intermediates[1], result)
    assert_same(result, model(inputs))

    saved = pz.StateVariable(None)
    built_in = (
        pz.select(model)
        .at_instances_of(pz.nn.Elementwise)
        .insert_after(save_intermediates.SaveIntermediate(saved))
    )
    built_in(inputs)
    assert_same(saved.value, pz.nx.nmap(jnp.tanh)(intermediates[0]))


@pz.pytree_dataclass
class Silence(pz.nn.Layer):
    def __call__(self, x, **_side_inputs):
        return x * 0


def test_modifying_intermediate_activations():
    model = pz.nn.Sequential([affine("a"), pz.nn.Elementwise(jnp.tanh)])
    modified_model = pz.select(model).at_instances_of(pz.nn.Affine).insert_after(Silence())
    assert not np.any(modified_model(pz.nx.ones({"features": 8})).unwrap("features"))
    assert "Silence()" in treescope.render_to_text(modified_model)


def test_isolating_small_components_of_models():
    model = pz.nn.Sequential([affine("a"), pz.nn.Elementwise(jnp.tanh), affine("b")])
    inputs = pz.nx.ones({"features": 8})
    isolated = isolate_submodel.call_and_extract_submodel(
        pz.select(model).at(lambda model: model.sublayers[1]), inputs
    )
    assert isinstance(isolated, isolate_submodel.IsolatedSubmodel)
    assert_same(isolated.saved_arg, model.sublayers[0](inputs))
    assert_same(isolated.saved_output, isolated.submodel(isolated.saved_arg))
    assert_same(isolated.submodel(0 * isolated.saved_arg), 0 * isolated.saved_arg)


def test_removing_parts_of_models():
    model = pz.nn.Sequential([affine("a"), pz.nn.StochasticDropout(0.1), affine("b")])
    without = pz.select(model).at_instances_of(pz.nn.StochasticDropout).remove_from_parent()
    assert [type(layer).__name__ for layer in without.sublayers] == ["Affine", "Affine"]
    assert len(model.sublayers) == 3


@pz.pytree_dataclass
class Constant(pz.nn.Layer):
    value: Any

    def __call__(self, x, **_side_inputs):
        return self.value


def test_linearizing_layers():
    model = pz.nn.Sequential([pz.nn.Elementwise(jnp.square), pz.nn.Identity()])
    patched_model = (
        pz.select(model)
        .at(lambda model: model.sublayers[0])
        .apply(
            lambda original_layer: LinearizeAndAdjust(
                linearize_around=Constant(pz.nx.wrap(jnp.array([1.0, 2.0]), "features")),
                evaluate_at=pz.nn.Identity(),
                target=original_layer,
            )
        )
    )
    x = pz.nx.wrap(jnp.array([3.0, 3.0]), "features")
    # x² around a: a² + 2a(x - a)
    np.testing.assert_allclose(patched_model(x).unwrap("features"), [5.0, 8.0], rtol=1e-6)


def test_customizing_attention_masks():
    model = transformer()
    explicit_attn_model = (
        pz.select(model)
        .at_instances_of(
            pz.nn.ApplyCausalAttentionMask
            | pz.nn.ApplyCausalSlidingWindowAttentionMask
        )
        .apply(lambda old: pz.nn.ApplyExplicitAttentionMask(
            mask_input_name="attn_mask",
            masked_out_value=old.masked_out_value,
        ))
    )  # fmt: skip
    causal = jnp.tril(jnp.ones((4, 4), bool))
    attn_mask = pz.nx.wrap(causal, "seq", "kv_seq")
    token_logits = run(
        explicit_attn_model, tokens, token_positions=token_positions, attn_mask=attn_mask
    )
    assert_same(token_logits, logits_of_the_transformer(), atol=1e-5)
    everything = pz.nx.ones({"seq": 4, "kv_seq": 4}, dtype=jnp.bool_)
    bidirectional = run(
        explicit_attn_model, tokens, token_positions=token_positions, attn_mask=everything
    )
    first = bidirectional.untag("seq")[0] - token_logits.untag("seq")[0]
    assert np.abs(first.unwrap("batch", "vocabulary")).max() > 1e-4


def test_gradient_checkpointing():
    model = transformer()
    checkpointed_model = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)  # for example
        .apply(gradient_checkpointing.Checkpointed)
    )

    def loss(params, unbound_model):
        logits = pz.bind_variables(unbound_model, params)(tokens, token_positions=token_positions)
        return jnp.mean(logits.unwrap("batch", "seq", "vocabulary") ** 2)

    unbound, params = pz.unbind_params(model, freeze=True)
    checkpointed, same_params = pz.unbind_params(checkpointed_model, freeze=True)
    gradient = jax.jit(jax.grad(loss))
    plain, recomputed = gradient(params, unbound), gradient(same_params, checkpointed)
    for a, b in zip(*map(jax.tree_util.tree_leaves, (plain, recomputed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert "prevent_cse" in str(jax.make_jaxpr(loss)(same_params, checkpointed))
    assert "prevent_cse" not in str(jax.make_jaxpr(loss)(params, unbound))


# ----------------------------------------------------------------- Training and Fine-Tuning Models


def test_training_model_parameters():
    optax = pytest.importorskip("optax")
    model = affine("trained", {"features": 2}, {"features": 2})

    def loss_fn(model, state, rng, x, y):
        error = (model(x) - y).unwrap("batch", "features")
        return jnp.mean(error**2), state, {"error": jnp.abs(error).max()}

    trainer = basic_training.StatefulTrainer.build(
        root_rng=jax.random.key(0), model=model, optimizer_def=optax.adam(0.1), loss_fn=loss_fn
    )
    x = pz.nx.wrap(jnp.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), "batch", "features")
    before = trainer.step(x=x, y=-x)["error"]
    for _ in range(60):
        aux = trainer.step(x=x, y=-x)
    assert aux["error"] < 0.2 * before
    assert_same(model(x), -x, atol=0.3)  # the model's own parameters were updated


def test_a_purely_functional_training_loop():
    optax = pytest.importorskip("optax")
    unbound_model, params = pz.unbind_params(
        affine("trained", {"features": 2}, {"features": 2}), freeze=True
    )
    x = pz.nx.ones({"features": 2})

    def loss(params):
        return jnp.mean(pz.bind_variables(unbound_model, params)(x).unwrap("features") ** 2)

    optimizer = optax.sgd(0.1)
    state = optimizer.init(params)
    losses = []
    for _ in range(5):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(value)
    assert losses == sorted(losses, reverse=True)


def test_low_rank_adaptation():
    model = pz.nn.Sequential([affine("a"), affine("b")])
    frozen = pz.freeze_params(model)
    adapted = lora.loraify_linears_in_selection(
        pz.select(frozen).at(lambda model: model.sublayers[0]),
        rank=2,
        init_base_rng=jax.random.key(0),
    )
    assert pz.select(adapted).at_instances_of(lora.LowRankAdapter).count() == 1
    _, params = pz.unbind_params(adapted)
    assert len(params) == 2
    x = pz.nx.ones({"features": 8})
    assert_same(adapted(x), model(x), atol=1e-6)
    assert "LowRankAdapter(" in treescope.render_to_text(adapted)


def test_checkpointing_model_parameters(tmp_path):
    orbax_checkpoint = pytest.importorskip("orbax.checkpoint")
    model = affine()
    unbound_model, params = pz.unbind_parameters(model, freeze=True)
    checkpointer = orbax_checkpoint.StandardCheckpointer()
    checkpointer.save(tmp_path / "checkpoint", params)
    checkpointer.wait_until_finished()
    template = jax.tree_util.tree_map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    )
    restored = checkpointer.restore(tmp_path / "checkpoint", template)
    x = pz.nx.ones({"features": 8})
    assert_same(pz.bind_variables(unbound_model, restored)(x), model(x))
