"""Gemma's Flax checkpoints: every layout and preset, from dictionaries, orbax folders and shards."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny

from pz_core.variables import unbind_params
from pz_models import CheckpointError, MissingTensorError, load, save_huggingface
from pz_models.transformer.variants import gemma
from pz_models.transformer.variants._gemma_checkpoint import PRESETS
from pz_named import named_axes as nx

WIDTH, HEAD, NEURONS, TOKENS = 8, 4, 12, 20
LAYOUTS = {"fused": (2, 2), "one key": (3, 1), "grouped": (4, 2)}  # heads, key/value heads


def flax_arrays(
    blocks, generation, heads=4, kv_heads=2, *, gate_is_transposed=True, neurons=NEURONS
):
    """A checkpoint with random arrays, as Kaggle's files have them."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return (rng.normal(size=shape) * 0.2).astype(np.float32)

    found = {"embedder": {"input_embedding": array(TOKENS, WIDTH)},
             "final_norm": {"scale": array(WIDTH)}}  # fmt: skip
    for i in range(blocks):
        if heads == kv_heads:
            attention = {"qkv_einsum": {"w": array(3, heads, WIDTH, HEAD)}}
        else:
            attention = {
                "q_einsum": {"w": array(heads, WIDTH, HEAD)},
                "kv_einsum": {"w": array(2, kv_heads, WIDTH, HEAD)},
            }
        attention["attn_vec_einsum"] = {"w": array(heads, HEAD, WIDTH)}
        gate = (2, neurons, WIDTH) if gate_is_transposed else (2, WIDTH, neurons)
        layer = {
            "attn": attention,
            "mlp": {"gating_einsum": {"w": array(*gate)}, "linear": {"w": array(neurons, WIDTH)}},
            "pre_attention_norm": {"scale": array(WIDTH)},
            "pre_ffw_norm": {"scale": array(WIDTH)},
        }
        if generation > 1:
            layer["post_attention_norm"] = {"scale": array(WIDTH)}
            layer["post_ffw_norm"] = {"scale": array(WIDTH)}
        if generation > 2:
            attention["_query_norm"] = {"scale": array(HEAD)}
            attention["_key_norm"] = {"scale": array(HEAD)}
        found[f"layer_{i}"] = layer
    return {"transformer": found}


def joined(tree, prefix=""):
    """Dictionaries of arrays under slash-joined scopes, the other form that orbax restores."""
    leaves = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    found = {prefix: leaves} if leaves else {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= joined(value, f"{prefix}/{key}" if prefix else key)
    return found


def _logits(model):
    return tiny.logits(model, nx.wrap(jnp.array([1, 5, 2, 7, 3]), "seq"))


@pytest.mark.smoke
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("generation", [1, 2, 3])
def test_values_are_where_the_file_has_them(layout, generation):
    heads, kv_heads = LAYOUTS[layout]
    preset = {1: "gemma_2b", 2: "gemma2_2b", 3: "gemma3_1b"}[generation]
    tree = flax_arrays(2, generation, heads, kv_heads)
    model = gemma.gemma_from_pretrained_checkpoint(tree, preset_name=preset)
    values = {p.label: p.value for p in unbind_params(model)[1]}
    layer = tree["transformer"]["layer_1"]
    if layout == "fused":
        query, key, value = layer["attn"]["qkv_einsum"]["w"]
        query_axes = key_axes = ("heads",)
    else:
        query = layer["attn"]["q_einsum"]["w"]
        key, value = layer["attn"]["kv_einsum"]["w"]
        query_axes, key_axes = ("query_heads",), ()
        if kv_heads > 1:
            query = query.reshape(kv_heads, heads // kv_heads, WIDTH, HEAD)
            query_axes, key_axes = ("head_groups", "query_heads"), ("head_groups",)
        else:
            key, value = key[0], value[0]
    gate, up = layer["mlp"]["gating_einsum"]["w"]
    expected = {
        "attention/query": (query, (*query_axes, "embedding", "projection")),
        "attention/key": (key, (*key_axes, "embedding", "projection")),
        "attention/value": (value, (*key_axes, "embedding", "projection")),
        "mlp/gating_linear": (gate, ("neurons", "embedding")),
        "mlp/value_linear": (up, ("neurons", "embedding")),
        "mlp/out_linear": (layer["mlp"]["linear"]["w"], ("neurons", "embedding")),
        "pre_ffw_norm/scale": (layer["pre_ffw_norm"]["scale"], ("embedding",)),
    }
    for label, (array, axes) in expected.items():
        stored = values[f"transformer/block_1/{label}.weights"].unwrap(*axes)
        np.testing.assert_array_equal(stored, array)


def test_forms_of_the_tree_and_of_the_gate_do_not_matter():
    tree = flax_arrays(2, 3)
    expected = _logits(gemma.gemma_from_pretrained_checkpoint(tree, preset_name="gemma3_1b"))
    turned = jax.tree_util.tree_map(lambda x: x, tree)
    for layer in ("layer_0", "layer_1"):
        mlp = turned["transformer"][layer]["mlp"]
        mlp["gating_einsum"] = {"w": mlp["gating_einsum"]["w"].swapaxes(1, 2)}
    images = {"SigLiPFromPatches_0": {"w": np.ones(3)}} | tree
    for other in (joined(tree), tree["transformer"], {"params": tree}, turned, images):
        model = gemma.gemma_from_pretrained_checkpoint(other, preset_name="gemma3_1b")
        np.testing.assert_allclose(_logits(model), expected, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised_and_say_what_arrays_do_not(name):
    preset = PRESETS[name]
    # Gemma 3's 1B and Gemma 2's 2B have 26 blocks both, Gemma 1's 2B and Gemma 3's 270M 18.
    tree = flax_arrays(preset.blocks, preset.generation)
    config = gemma.gemma_from_pretrained_checkpoint(tree).metadata.config
    types = config.attention_type
    windows = [getattr(types[i], "window_size", None) for i in range(6)] if preset.window else []
    local = preset.window
    assert windows == {1: [], 2: [local, None] * 3, 3: [local] * 5 + [None]}[preset.generation]
    assert config.final_logit_softcap == (30.0 if preset.generation == 2 else None)
    assert config.attn_logits_soft_cap == (50.0 if preset.generation == 2 else None)
    scale = config.query_scaling_factor
    scale = HEAD**-0.5 if scale == "default" else scale
    assert scale == ((WIDTH // 4) ** -0.5 if preset.scaled_by_width else HEAD**-0.5)
    factor = getattr(config.rope_scaling, "factor", None)
    assert factor == (8.0 if name in ("gemma3_4b", "gemma3_12b", "gemma3_27b") else None)
    assert config.rope_wavelength == (1e6 if preset.generation == 3 else 1e4)
    assert (config.vocab_size, config.embedding_dim, config.norm_offset) == (TOKENS, WIDTH, 1.0)


def test_a_square_gate_is_read_as_its_preset_has_it():
    tree = flax_arrays(2, 2, neurons=WIDTH)
    stored = tree["transformer"]["layer_0"]["mlp"]["gating_einsum"]["w"][0]
    for preset, expected in (("gemma2_9b", stored), ("gemma2_2b", stored.T)):
        model = gemma.gemma_from_pretrained_checkpoint(tree, preset_name=preset)
        label = "transformer/block_0/mlp/gating_linear.weights"
        value = next(p.value for p in unbind_params(model)[1] if p.label == label)
        np.testing.assert_array_equal(value.unwrap("neurons", "embedding"), expected)


@pytest.mark.parametrize("generation, preset", [(2, "gemma2_27b"), (3, "gemma3_4b")])
def test_stacked_equals_unstacked(generation, preset):
    tree = flax_arrays(3, generation)
    model, stacked = (
        gemma.gemma_from_pretrained_checkpoint(tree, use_layer_stack=flag, preset_name=preset)
        for flag in (False, True)
    )
    np.testing.assert_allclose(_logits(stacked), _logits(model), atol=1e-5)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_it_is_saved_as_huggingfaces_gemma(generation, tmp_path):
    preset = {1: "gemma_7b", 2: "gemma2_27b", 3: "gemma3_4b"}[generation]
    tree = flax_arrays(3, generation)
    model = gemma.gemma_from_pretrained_checkpoint(tree, preset_name=preset)
    save_huggingface(model, tmp_path)
    again = load(tmp_path)
    assert again.metadata.config == model.metadata.config
    values = {p.label: p.value for p in unbind_params(again)[1]}
    for parameter in unbind_params(model)[1]:
        axes = tuple(parameter.value.named_shape)
        np.testing.assert_array_equal(
            values[parameter.label].unwrap(*axes), parameter.value.unwrap(*axes)
        )


def test_dtypes():
    tree = jax.tree_util.tree_map(lambda x: x.astype(jnp.bfloat16), flax_arrays(2, 1))
    model = gemma.gemma_from_pretrained_checkpoint(tree, True, preset_name="gemma_2b")
    assert {p.value.dtype for p in unbind_params(model)[1]} == {jnp.dtype(jnp.bfloat16)}
    assert model.metadata.activation_dtype == jnp.float32


def _changed(path, change):
    tree = flax_arrays(2, 2)
    node = tree["transformer"]
    *scopes, name = path.split("/")
    for scope in scopes:
        node = node[scope]
    change(node, name)
    return tree


BAD = {
    "missing": (
        _changed("layer_1/mlp/linear", lambda node, name: node.pop(name)),
        "gemma2_2b",
        MissingTensorError,
        "^gemma_from_pretrained_checkpoint: .* has no 'transformer/layer_1/mlp/linear', which",
    ),
    "no norm": (
        _changed("layer_1/pre_ffw_norm", lambda node, name: node.pop(name)),
        "gemma2_2b",
        KeyError,
        "has no 'transformer/layer_1/pre_ffw_norm/scale'.*Did you mean",
    ),
    "wrong shape": (
        _changed("layer_0/attn/q_einsum", lambda node, name: node.update({name: np.ones((8, 4, 4))})),
        "gemma2_2b",
        CheckpointError,
        r"'layer_0/attn/q_einsum' has the shape \(8, 4, 4\); the other arrays ask for .*'head_groups': 2",
    ),
    "wrong rank": (
        _changed("layer_0/mlp/linear", lambda node, name: node.update({name: np.ones(3)})),
        "gemma2_2b",
        CheckpointError,
        r"'layer_0/mlp/linear' should have 2 axes.*\(3,\)",
    ),
    "surplus": (
        _changed("layer_0/bias", lambda node, name: node.update({name: np.ones(3)})),
        "gemma2_2b",
        CheckpointError,
        "1 arrays are no part of a Gemma 2 with 2 blocks: layer_0/bias",
    ),
    "nothing": ({"other": np.ones(3)}, "auto", MissingTensorError, "no 'transformer/layer_0/…'.*other"),
    "another generation": (flax_arrays(2, 2), "gemma_2b", CheckpointError, "preset is a Gemma 1.*Gemma 2"),
    "unknown preset": (flax_arrays(2, 2), "gemma2_3b", KeyError, "received 'gemma2_3b'.*Did you mean"),
    "no such model": (flax_arrays(2, 2), "auto", ValueError, "no published model of Gemma 2 has 2 blocks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    tree, preset, error, message = BAD[name]
    with pytest.raises(error, match=message):
        gemma.gemma_from_pretrained_checkpoint(tree, preset_name=preset)


def test_an_orbax_folder_is_read(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = flax_arrays(2, 3)
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", tree)
    expected = _logits(gemma.gemma_from_pretrained_checkpoint(tree, preset_name="gemma3_1b"))
    model = gemma.gemma_from_pretrained_checkpoint(tmp_path / "ckpt", preset_name="gemma3_1b")
    np.testing.assert_allclose(_logits(model), expected, atol=1e-6)
    with pytest.raises(CheckpointError, match="there is no folder"):
        gemma.gemma_from_pretrained_checkpoint(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="orbax cannot read"):
        gemma.gemma_from_pretrained_checkpoint(tmp_path / "empty")


def test_without_orbax_a_folder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(ImportError, match=r"pip install 'pz-models\[gemma\]'"):
        gemma.gemma_from_pretrained_checkpoint(tmp_path)
