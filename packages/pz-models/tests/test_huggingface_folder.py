"""HuggingFace folders: values, shards, dtypes, and every way in which a folder can be wrong."""

import json
import os
import shlex
import struct
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import pz_models_tiny as tiny
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from pz_models_checkpoints import CONFIG, huggingface_tensors, reference_logits

from pz_core.variables import unbind_params
from pz_models import CheckpointError, UnsupportedConfigError, load
from pz_models.huggingface_folder import HuggingFaceFolder, pickle_refusal
from pz_named import named_axes as nx

TOKENS = np.array([5, 9, 33, 0, 63])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(huggingface_tensors(), tmp_path / "model.safetensors")
    return tmp_path


def _shard(folder, change=lambda weight_map: weight_map):
    tensors = huggingface_tensors()
    weight_map = {
        key: f"model-{index % 2}.safetensors" for index, key in enumerate(sorted(tensors))
    }
    for name in set(weight_map.values()):
        part = {key: value for key, value in tensors.items() if weight_map[key] == name}
        safetensors.numpy.save_file(part, folder / name)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": change(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.smoke
@pytest.mark.parametrize("sharded", [False, True])
def test_logits_equal_a_float64_reference(folder, sharded):
    if sharded:
        _shard(folder)
    model = load(folder, use_layer_stack=True)
    logits = tiny.logits(model, nx.wrap(jnp.asarray(TOKENS), "seq"))
    np.testing.assert_allclose(logits, reference_logits(huggingface_tensors(), TOKENS), atol=1e-4)


@pytest.mark.parametrize(
    "stored, wanted",
    [
        (np.float16, None),
        (np.float16, jnp.float32),
        (ml_dtypes.bfloat16, None),
        (ml_dtypes.bfloat16, jnp.float32),
        (np.float64, jnp.float32),
    ],
)
def test_dtypes_are_kept_or_cast(folder, stored, wanted):
    tensors = {key: value.astype(stored) for key, value in huggingface_tensors().items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    parameters = {p.label: p.value for p in unbind_params(load(folder, dtype=wanted))[1]}
    value = parameters["transformer/block_0/mlp/value_linear.weights"]
    assert value.dtype == jnp.dtype(stored if wanted is None else wanted)
    np.testing.assert_array_equal(
        np.asarray(value.unwrap("neurons", "embedding"), np.float32),
        tensors["model.layers.0.mlp.up_proj.weight"].astype(np.float32),
    )


def test_a_mixed_file_gets_its_commonest_dtype_or_the_one_asked_for(folder):
    tensors = {
        key: array if "norm" in key else array.astype(ml_dtypes.bfloat16)
        for key, array in huggingface_tensors().items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    for asked, dtype in ((None, jnp.bfloat16), (jnp.float32, jnp.float32)):
        values = {p.label: p.value for p in unbind_params(load(folder, dtype=asked))[1]}
        assert {value.dtype for value in values.values()} == {jnp.dtype(dtype)}
        norm = values["transformer/final_norm/scale.weights"].unwrap("embedding")
        np.testing.assert_array_equal(norm, tensors["model.norm.weight"].astype(dtype))


def test_a_tensor_of_the_wanted_dtype_is_read_without_a_copy(folder):
    big = np.ones((1 << 16, 32), np.float32)  # 8 MiB
    tensors = huggingface_tensors() | {"model.embed_tokens.weight": big}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    checkpoint, out = HuggingFaceFolder(folder), np.empty(big.shape, np.float32)
    tracemalloc.start()
    checkpoint.read_into("model.embed_tokens.weight", out)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    companion = np.empty(big.shape, np.float32)
    assert tracemalloc.get_traced_memory()[1] >= companion.nbytes
    tracemalloc.stop()
    np.testing.assert_array_equal(out, big)


def _spoil_header(folder, change):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _entry(**changes):
    return lambda header: header | {"model.norm.weight": header["model.norm.weight"] | changes}


def _cut(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


BAD_FOLDERS = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json: there is no such file"),
    "config cut": (lambda f: (f / "config.json").write_text("{"), "config.json: not readable"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors and no"),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"pytorch_model.bin.*refused.*python -c '.*save_pretrained",
    ),
    "empty": (lambda f: _cut(f, 0), "cut off: its header should have 0 bytes"),
    "header cut": (lambda f: _cut(f, 100), "cut off: its header should have"),
    "data cut": (lambda f: _cut(f, -100), "truncated or corrupt: tensor"),
    "header no object": (lambda f: _spoil_header(f, lambda h: [1]), "header is no JSON object"),
    "entry no object": (
        lambda f: _spoil_header(f, lambda h: h | {"x": 3}),
        "'x' should have dtype, shape and two data_offsets; it is 3",
    ),
    "negative": (lambda f: _spoil_header(f, _entry(shape=[-32])), "is described by"),
    "unknown dtype": (lambda f: _spoil_header(f, _entry(dtype="F31")), "unknown dtype 'F31'"),
    "quantised": (
        lambda f: _spoil_header(f, _entry(dtype="I32")),
        "'model.norm.weight' is I32; floating tensors are read.*Dequantise",
    ),
    "wrong length": (lambda f: _spoil_header(f, _entry(shape=[33])), r"\(33,\), should take 132"),
    "two in one place": (
        lambda f: _spoil_header(
            f, lambda h: h | {"model.norm.weight": h["model.layers.0.input_layernorm.weight"]}
        ),
        r"tensor .* begins at byte \d+ of the data, where the one before it ends at \d+",
    ),
    "bytes of nobody": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes() + b"1234"
        ),
        r"its tensors end at byte \d+ of the data, which has \d+",
    ),
    "config a folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "config.json: a folder, where a file should be",
    ),
    "config too large": (
        lambda f: os.truncate(f / "config.json", 1 << 40),  # sparse: takes no room
        "config.json: 1099511627776 bytes are too many",
    ),
    "more blocks than tensors": (
        lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 10**9})),
        "'num_hidden_layers' is 1000000000, but there are only 20 tensors",
    ),
    "more experts than tensors": (
        lambda f: (f / "config.json").write_text(
            json.dumps(CONFIG | {"model_type": "mixtral", "num_local_experts": 10**9})
        ),
        "'num_local_experts' is 1000000000, but there are only 20 tensors",
    ),
    "index escapes": (
        lambda f: _shard(f, lambda m: dict.fromkeys(m, "../model.safetensors")),
        r"'\.\./model.safetensors'; only files directly in the folder",
    ),
    "index names nothing": (
        lambda f: _shard(f, lambda m: dict.fromkeys(m, "gone.safetensors")),
        "names 'gone.safetensors', which is not in the folder",
    ),
    "index is wrong": (
        lambda f: _shard(f, lambda m: dict.fromkeys(m, "model-0.safetensors")),
        "index says that it holds .*; it does not",
    ),
    "index empty": (lambda f: _shard(f, lambda m: {}), "'weight_map' should be an object"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(folder, name):
    spoil, message = BAD_FOLDERS[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("pytorch_model.bin", "holds pickled weights; unpickling runs.*python -c "),
        ("model.safetensors", r"expected a folder.*Pass the folder that it is in\."),
    ],
)
def test_a_file_of_weights_is_no_model(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name)


def test_the_advised_conversion_is_one_argument_of_a_shell(tmp_path):
    folder = tmp_path / "it's $HOME"
    code = shlex.split(pickle_refusal(folder).partition("where you trust it: ")[2])
    assert code[:2] == ["python", "-c"]
    compile(code[2], "conversion", "exec")
    assert repr(str(folder)) in code[2]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(folder):
    opened = HuggingFaceFolder(folder)
    _cut(folder, -100)
    last = max(opened.tensors, key=lambda key: opened._ranges[key].offset)
    out = np.empty(opened.tensors[last].shape, np.float32)
    with pytest.raises(CheckpointError, match="was cut off while it was read"):
        opened.read_into(last, out)


def _is_refused_or_loaded(folder):
    """Loads to the end; memory must not grow beyond what the small files hold."""
    tracemalloc.start()
    try:
        load(folder, progress=False)
    except (CheckpointError, UnsupportedConfigError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


@given(data=st.data())
def test_no_corruption_of_weights_crashes_or_balloons(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "fuzz_folder"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    raw = bytearray(safetensors.numpy.save(huggingface_tensors()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 2500))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]
    (folder / "model.safetensors").write_bytes(raw)
    _is_refused_or_loaded(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(data=st.data())
def test_no_header_index_or_config_crashes_or_balloons(data, tmp_path_factory):
    """Well-formed JSON that says anything, where a header entry, an index or a field should be."""
    folder = tmp_path_factory.getbasetemp() / "fuzz_json"
    folder.mkdir(exist_ok=True)
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(huggingface_tensors(), folder / "model.safetensors")
    anything = data.draw(JSON)
    where = data.draw(st.sampled_from(["entry", "shape", "offsets", "header", "index", "config"]))
    if where == "index":
        index.write_text(json.dumps({"weight_map": anything}))
    elif where == "config":
        (folder / "config.json").write_text(json.dumps(anything))
    else:
        changes = {
            "entry": lambda header: header | {"model.norm.weight": anything},
            "shape": _entry(shape=anything),
            "offsets": _entry(data_offsets=anything),
            "header": lambda header: anything,
        }
        _spoil_header(folder, changes[where])
    _is_refused_or_loaded(folder)
