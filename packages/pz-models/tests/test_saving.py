"""From model to file: bit by bit for every family, with edits, and nothing half-written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from pz_models_families import CASES, RandomCheckpoint, config_of

from pz_core.selectors import select
from pz_core.variables import Parameter, ParameterValue, freeze_params, unbind_params
from pz_models import ExportError, UnsupportedConfigError, load, save_huggingface, saving
from pz_models.families import known_families
from pz_models.loading import model_from_checkpoint
from pz_models.transformer.model_parts import TransformerBlock
from pz_models.transformer.variants.llamalike_common import build_llamalike_transformer
from pz_named import named_axes as nx
from pz_nn.basic_ops import Softmax
from pz_nn.embeddings import EmbeddingDecode
from pz_nn.grouping import Identity, Sequential
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import ConstantRescale, Linear
from pz_nn.stack_surgery import restack, unstack


def _files(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


def _values(model):
    return {p.label: p.value for p in unbind_params(model)[1]}


def _loaded(case="llama tied", stacked=False, **options):
    checkpoint = RandomCheckpoint(config_of(case), **options)
    return checkpoint, model_from_checkpoint(checkpoint, use_layer_stack=stacked)


def test_the_table_has_every_family():
    assert {case.split()[0] for case in CASES} == set(known_families())


@pytest.mark.parametrize("stacked", [False, True], ids=["unstacked", "stacked"])
@pytest.mark.parametrize("case", CASES)
def test_saving_what_was_loaded_gives_the_file_back(case, stacked, tmp_path):
    checkpoint, model = _loaded(case, stacked)
    save_huggingface(model, tmp_path / "saved", max_shard_bytes=4000)
    files = _files(tmp_path / "saved")
    assert files.keys() == checkpoint.arrays.keys()
    for key, array in checkpoint.arrays.items():
        np.testing.assert_array_equal(files[key], array)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.items() >= checkpoint.config.items()
    again = load(tmp_path / "saved", use_layer_stack=stacked)
    assert jax.tree_util.tree_structure(again.body) == jax.tree_util.tree_structure(model.body)
    for label, value in _values(model).items():
        np.testing.assert_array_equal(_values(again)[label].data_array, value.data_array)


@pytest.mark.smoke
def test_shards_are_of_the_asked_size_and_indexed(tmp_path):
    checkpoint, model = _loaded("llama")
    save_huggingface(model, tmp_path / "m", max_shard_bytes=4000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in checkpoint.arrays.values())
    assert index["weight_map"].keys() == checkpoint.arrays.keys()
    names = sorted(set(index["weight_map"].values()))
    assert names == [
        f"model-{i:05}-of-{len(names):05}.safetensors" for i in range(1, len(names) + 1)
    ]
    for name in names:
        arrays = safetensors.numpy.load_file(tmp_path / "m" / name)
        assert sum(a.nbytes for a in arrays.values()) <= 4000


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_dtypes_are_kept(dtype, tmp_path):
    checkpoint, model = _loaded(dtype=dtype)
    save_huggingface(freeze_params(model), tmp_path)
    stored = _files(tmp_path)["model.norm.weight"]
    assert stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored, checkpoint.arrays["model.norm.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name


# ------------------------------------------------------------------------------------- Edits


def _assert_same(mine, theirs):
    """All arrays in the order of the tree; labels of blocks may differ."""
    leaves, others = (jax.tree_util.tree_leaves(freeze_params(model)) for model in (mine, theirs))
    for leaf, other in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(leaf, other)


def _without_block(model, index):
    blocks = select(model).at_instances_of(TransformerBlock)
    return blocks.pick_nth_selected(index).remove_from_parent()


def _with_untied_head(model):
    decode = select(model).at_instances_of(EmbeddingDecode).get()
    table = decode.table.embeddings.value
    weights = Parameter(label="my_head", value=table * 2.0)
    head = Linear(weights, in_axis_names=("embedding",), out_axis_names=("vocabulary",))
    return select(model).at_instances_of(EmbeddingDecode).set(head)


def _with_more_tokens(model):
    model = freeze_params(model)

    def grow(value):
        if "vocabulary" not in value.value.named_shape:
            return value
        old = value.value.unwrap("vocabulary", "embedding")
        new = jnp.concatenate([old, old[:3]])
        return dataclasses.replace(value, value=nx.wrap(new, "vocabulary", "embedding"))

    return select(model).at_instances_of(ParameterValue).apply(grow)


EDITS = {
    "a block less": lambda m: _without_block(m, 1),
    "a head of its own": _with_untied_head,
    "more tokens": _with_more_tokens,
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_a_file_can_express_are_saved(name, tmp_path):
    edited = EDITS[name](_loaded()[1])
    save_huggingface(edited, tmp_path)
    _assert_same(load(tmp_path), edited)


def test_edited_values_are_saved(tmp_path):
    model = _loaded("gemma2", stacked=True)[1]
    parameter = next(p for p in unbind_params(model)[1] if p.label.endswith("query.weights"))
    parameter.value = parameter.value * 3.0
    save_huggingface(model, tmp_path)
    _assert_same(load(tmp_path, use_layer_stack=True), model)


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_blocks_that_were_unstacked_are_saved(case, tmp_path):
    checkpoint, model = _loaded(case, stacked=True)
    save_huggingface(select(model).at_instances_of(LayerStack).apply(unstack), tmp_path)
    for key, array in _files(tmp_path).items():
        np.testing.assert_array_equal(array, checkpoint.arrays[key])


def test_blocks_of_two_kinds_that_were_restacked_are_saved(tmp_path):
    checkpoint, model = _loaded("gemma2")
    blocks = model.body.sublayers[2:-3]
    assert all(isinstance(block, TransformerBlock) for block in blocks)
    stack = restack(blocks, "blocks", form="super_block")
    layers = [*model.body.sublayers[:2], stack, *model.body.sublayers[-3:]]
    save_huggingface(dataclasses.replace(model, body=Sequential(layers)), tmp_path)
    for key, array in _files(tmp_path).items():
        np.testing.assert_array_equal(array, checkpoint.arrays[key])


def _apart(model):
    """A tied model, frozen, with the two copies of its table edited apart."""
    model = freeze_params(model)
    return (
        select(model)
        .at_instances_of(EmbeddingDecode)
        .at(lambda decode: decode.table.embeddings)
        .apply(lambda value: dataclasses.replace(value, value=value.value * 2.0))
    )


def _with_fewer_neurons(model):
    def prune(parameter):
        return Parameter(label=parameter.label, value=parameter.value[{"neurons": slice(0, 8)}])

    linears = select(model).at_instances_of(Parameter)
    return linears.where(lambda p: "neurons" in p.value.named_shape).apply(prune)


INEXPRESSIBLE = {
    "a layer put in": (
        lambda m: select(m).at_instances_of(Softmax).pick_nth_selected(2).insert_after(Identity()),
        r"model.body.*query_key_to_attn.*has 4 parts, where the family has 3",
    ),
    "a layer exchanged": (
        lambda m: select(m).at_instances_of(Softmax).pick_nth_selected(2).set(Identity()),
        r"query_key_to_attn.*is a Identity, where the family has a Softmax.*fold it",
    ),
    "a setting": (
        lambda m: select(m).at_instances_of(Softmax).set(Softmax("seq")),
        r"has axes='seq', where the family has 'kv_seq'",
    ),
    "a constant": (
        lambda m: m.select().at_instances_of(ConstantRescale).apply(lambda _: ConstantRescale(0.3)),
        r"has by=0\.3, where the family has 0\.",
    ),
    "an array for a constant": (
        lambda m: (
            m.select()
            .at_instances_of(ConstantRescale)
            .apply(lambda layer: ConstantRescale(np.float32(layer.by)))
        ),
        r"has by=.*0\..*, where the family has 0\.",
    ),
    "copies apart": (_apart, "another value than the other place of the shared parameter"),
    "fewer neurons": (_with_fewer_neurons, r"the named shape .*'neurons': 8.*a file .* holds"),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_edits_that_no_file_can_express_are_named_and_nothing_is_written(name, tmp_path):
    edit, message = INEXPRESSIBLE[name]
    with pytest.raises(ExportError, match=message):
        save_huggingface(edit(_loaded()[1]), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------- Folders and failures


def test_a_model_is_replaced_only_on_request_and_other_files_stay(tmp_path):
    _, model = _loaded("llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("of somebody else")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log.txt").write_text("x")
    save_huggingface(model, tmp_path, max_shard_bytes=4000)
    with pytest.raises(FileExistsError, match=r"holds a model already.*overwrite=True"):
        save_huggingface(model, tmp_path)
    save_huggingface(model, tmp_path, overwrite=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "adapter_model.safetensors", "config.json", "model.safetensors", "runs", "tokenizer.json"
    ]  # fmt: skip
    assert (tmp_path / "runs" / "log.txt").read_text() == "x"


@pytest.mark.parametrize("step", ["save_file", "_write_json"])
def test_a_failure_leaves_what_was_there(step, tmp_path, monkeypatch):
    _, model = _loaded()
    folder = tmp_path / "model"
    save_huggingface(model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    owner = saving.safetensors.numpy if step == "save_file" else saving
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(OSError, match="no space left"):
        save_huggingface(model, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"expected a TransformerLM.*received Identity"):
        save_huggingface(Identity(), tmp_path / "x")


# ----------------------------------------------------------------- Models that were not loaded


def _built(model):
    """The model as if it had been built here: its file's configuration forgotten."""
    metadata = dataclasses.replace(model.metadata, huggingface_config=None)
    return dataclasses.replace(model, metadata=metadata)


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_is_made_for_a_model_that_was_built(case, tmp_path):
    checkpoint, model = _loaded(case)
    save_huggingface(_built(model), tmp_path, model_type=case.split()[0])
    again = load(tmp_path)
    assert again.metadata.config.rope_scaling == model.metadata.config.rope_scaling
    for key, array in _files(tmp_path).items():
        np.testing.assert_array_equal(array, checkpoint.arrays[key])


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.5},
    ],
    ids=lambda scaling: scaling["rope_type"],
)  # fmt: skip
def test_rotary_scalings_are_written(scaling, tmp_path):
    checkpoint = RandomCheckpoint(
        config_of("llama") | {"rope_scaling": scaling, "rope_theta": 77.0}
    )
    model = model_from_checkpoint(checkpoint)
    save_huggingface(_built(model), tmp_path, model_type="llama")
    assert load(tmp_path).metadata.config == model.metadata.config


def test_a_setting_that_no_field_states_is_named(tmp_path):
    config = _loaded("gemma3_text")[1].metadata.config
    stretched = dataclasses.replace(config, global_scale_factor=8.0)
    model = build_llamalike_transformer(stretched, jax.random.key(0))
    with pytest.raises(ExportError, match=r"global_scale_factor is 8\.0, a file would say None"):
        save_huggingface(model, tmp_path, model_type="gemma3_text")
    assert list(tmp_path.iterdir()) == []


def test_which_family_is_meant_has_to_be_said(tmp_path):
    model = _built(_loaded("qwen3")[1])
    with pytest.raises(ExportError, match=r"pass model_type=… \(.*qwen3"):
        save_huggingface(model, tmp_path)
    with pytest.raises(
        ExportError, match=r"llama configuration cannot express.*use_qk_norm is True.*qwen3"
    ):
        save_huggingface(model, tmp_path, model_type="llama")
    with pytest.raises(ExportError, match="'gpt2' cannot write a LlamalikeTransformerConfig"):
        save_huggingface(model, tmp_path, model_type="gpt2")
    with pytest.raises(UnsupportedConfigError, match=r"model_type is 'lama'.*Did you mean 'llama'"):
        save_huggingface(model, tmp_path, model_type="lama")
    nameless = dataclasses.replace(model.metadata, config=None)
    with pytest.raises(ExportError, match=r"model.metadata.config is None.*Build it with"):
        save_huggingface(dataclasses.replace(model, metadata=nameless), tmp_path)
    changed = dataclasses.replace(model.metadata.config, rope_wavelength=3.0)
    loaded = _loaded("qwen3")[1]
    changed = dataclasses.replace(loaded.metadata, config=changed)
    with pytest.raises(ExportError, match=r"rope_wavelength is 3.0, a file would say 10000.0"):
        save_huggingface(dataclasses.replace(loaded, metadata=changed), tmp_path)


def test_a_loaded_model_is_written_as_another_family_that_computes_the_same(tmp_path):
    model = _loaded("mistral")[1]
    windowless = _loaded("llama")[1]
    save_huggingface(windowless, tmp_path, model_type="mistral")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mistral"
    _assert_same(load(tmp_path), windowless)
    with pytest.raises(ExportError, match=r"llama configuration cannot express.*attention_type"):
        save_huggingface(model, tmp_path / "x", model_type="llama")
