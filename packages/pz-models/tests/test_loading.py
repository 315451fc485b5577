"""From file to model: values, stacking, dtypes, memory, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_checkpoints import CONFIG, huggingface_tensors, reference_logits

from pz_core.selectors import select
from pz_core.variables import Parameter, unbind_params
from pz_models import CheckpointError, MissingTensorError, _streaming, load
from pz_models.checkpoints import Checkpoint, StoredTensor
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.families import family_of
from pz_models.loading import model_from_checkpoint
from pz_named import named_axes as nx
from pz_nn.attention import Attention


class InMemory(Checkpoint):
    """A checkpoint made of arrays."""

    def __init__(self, config=CONFIG, arrays=None):
        self.name, self.config, self.dtype = "in memory", config, np.dtype(np.float32)
        self.arrays = huggingface_tensors() if arrays is None else arrays
        self.tensors = {k: StoredTensor(v.shape, "F32", v.nbytes) for k, v in self.arrays.items()}

    def read_into(self, key, out):
        out[...] = self.arrays[key]


@pytest.mark.smoke
@pytest.mark.parametrize("stacked", [False, True])
def test_logits_equal_a_float64_reference(stacked):
    checkpoint = InMemory()
    model = model_from_checkpoint(checkpoint, use_layer_stack=stacked)
    tokens = np.array([5, 9, 33, 0, 63])
    expected = reference_logits(checkpoint.arrays, tokens)
    logits = tiny.logits(model, nx.wrap(jnp.asarray(tokens), "seq"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_gguf_file_gives_the_model_of_its_tensors(tmp_path, stacked):
    pytest.importorskip("gguf")
    arrays = huggingface_tensors()
    stored = {}
    for name in tiny.shapes():
        key = name.replace("blk.", "model.layers.").replace("token_embd", "model.embed_tokens")
        for theirs, ours in {
            "output_norm": "model.norm", "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
            "attn_": "self_attn.", "ffn_": "mlp.",
        }.items():  # fmt: skip
            key = key.replace(theirs, ours)
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up", "mlp.down"):
            key = key.replace(f"{part}.weight", f"{part}_proj.weight")
        value = arrays[key]
        if heads := {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2]):
            value = value.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(value.shape)
        stored[name] = value
    path = tiny.write_gguf(tmp_path / "tiny.gguf", tensors=stored)
    tokens = np.array([5, 9, 33, 0, 63])
    logits = tiny.logits(load(path, use_layer_stack=stacked), nx.wrap(jnp.asarray(tokens), "seq"))
    np.testing.assert_allclose(logits, reference_logits(arrays, tokens), atol=1e-4)


def test_parameters_keep_labels_dtypes_and_ties():
    model = model_from_checkpoint(InMemory(), dtype=jnp.bfloat16)
    parameters = {parameter.label: parameter for parameter in unbind_params(model)[1]}
    assert parameters["transformer/embedder.embeddings"].value.dtype == jnp.bfloat16
    assert parameters["transformer/block_1/attention/query.weights"].value.named_shape == {
        "head_groups": 2, "query_heads": 2, "projection": 8, "embedding": 32
    }  # fmt: skip
    lookup, decode = model.body.sublayers[0], model.body.sublayers[-1]
    assert lookup.table.embeddings is decode.table.embeddings
    assert isinstance(lookup.table.embeddings, Parameter)
    assert model.metadata.activation_dtype == jnp.bfloat16
    upcast = model_from_checkpoint(
        InMemory(), dtype=jnp.bfloat16, upcast_activations_to_float32=True
    )
    assert upcast.metadata.activation_dtype == jnp.float32


def test_memory_is_taken_over_not_copied():
    import jax

    array = _streaming.aligned_empty((256, 256), np.float32)
    placed = _streaming._put_on_default_device("label", ("a", "b"), array)
    if jax.default_backend() == "cpu":
        assert placed.unsafe_buffer_pointer() == array.ctypes.data
        odd = np.empty(256 * 256 * 4 + 4, np.uint8)[4:].view(np.float32)  # companion: misaligned
        assert jax.device_put(odd).unsafe_buffer_pointer() != odd.ctypes.data


def test_biases_and_head_sizes_are_read():
    config = CONFIG | {"head_dim": 4, "attention_bias": True, "mlp_bias": True}
    family = family_of(config, "test")
    read = family.read_config(ConfigReader(config, "test"))
    assert read.projection_dim == 4
    labels = [entry.label for entry in family.parameters(read)[1][0]]
    assert "attention/output/AddBias.bias" in labels
    assert "mlp/gating_linear/AddBias.bias" in labels
    model = family.build(read)
    assert select(model).at_instances_of(Attention).count() == 2


def _without(key):
    return {k: v for k, v in huggingface_tensors().items() if k != key}


BAD_TENSORS = [
    (_without("model.norm.weight"), r"1 tensors .* missing.*'model.norm.weight' of shape \(32,\)"),
    (
        huggingface_tensors() | {"model.norm.weight": np.ones(31, np.float32)},
        r"'model.norm.weight' has shape \(31,\).*asks for \(32,\)",
    ),
    (
        huggingface_tensors() | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)},
        "1 tensors are no part of the model.*q_proj.bias.*Did you mean",
    ),
]


@pytest.mark.parametrize("arrays, message", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named_before_anything_is_read(arrays, message, monkeypatch):
    monkeypatch.setattr(InMemory, "read_into", None)
    with pytest.raises(CheckpointError, match=message):
        model_from_checkpoint(InMemory(arrays=arrays))


def test_missing_tensors_are_key_errors_too():
    with pytest.raises(KeyError) as caught:
        model_from_checkpoint(InMemory(arrays=_without("model.norm.weight")))
    assert isinstance(caught.value, MissingTensorError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).endswith(".")  # and no quotation marks around the text


BAD_CONFIGS = [
    ({"model_type": "lama"}, "model_type is 'lama'.*Did you mean 'llama'"),
    ({"model_type": None}, "model_type is None"),
    ({"hidden_act": "xielu"}, "'hidden_act' is 'xielu', an activation that is not supported"),
    ({"pretraining_tp": 2}, "'pretraining_tp' is 2"),
    ({"num_key_value_heads": 3}, "multiple of.*4 and 3"),
    ({"hidden_size": 33}, "without 'head_dim'.*33 and 4"),
    ({"num_hidden_layers": None}, "no 'num_hidden_layers'"),
    ({"num_hidden_layers": 0}, "'num_hidden_layers' should be 1 or more, it is 0"),
    ({"vocab_size": "many"}, "'vocab_size' should be of type int, it is 'many'"),
    ({"secret_sauce": 0.3}, "does not understand.*'secret_sauce': 0.3"),
    ({"rope_scaling": {"rope_type": "magic"}}, "type 'magic' is not supported"),
    ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs the key 'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "x": 1}}, "not understood.*'x': 1"),
]


@pytest.mark.parametrize("change, message", BAD_CONFIGS)
def test_configurations_that_are_not_understood_are_refused(change, message):
    with pytest.raises(UnsupportedConfigError, match=message):
        model_from_checkpoint(InMemory(CONFIG | change))


def test_both_spellings_of_rotary_settings_are_read_alike():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
    old = CONFIG | {"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float32"}
    new = CONFIG | {"rope_parameters": {**scaling, "rope_theta": 5e5}, "dtype": "float32"}
    read = []
    for config in (old, new):
        reader = ConfigReader(config, "test")
        read.append(family_of(config, "test").read_config(reader))
        reader.finish()
    assert read[0] == read[1]
    assert read[0].rope_wavelength == 5e5
    assert read[0].rope_scaling.factor == 8.0


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(tmp_path / "nothing.gguf")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes.txt.*expected a folder with config.json"):
        load(tmp_path / "notes.txt")


def test_a_progress_bar_is_shown_on_request(capsys):
    model_from_checkpoint(InMemory(), progress=True)
    assert "Loading in memory" in capsys.readouterr().err
    model_from_checkpoint(InMemory(), progress=False)
    assert capsys.readouterr().err == ""
