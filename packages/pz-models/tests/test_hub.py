"""Models by name: from the hub's local cache, and what is said where they cannot be fetched."""

import sys

import numpy as np
import pytest
from pz_models_families import RandomCheckpoint, config_of

from pz_core.variables import unbind_params
from pz_models import CheckpointError, hub, load, save_huggingface
from pz_models.loading import model_from_checkpoint

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture(scope="module")
def models():
    """Two states of one model."""
    found = {name: model_from_checkpoint(RandomCheckpoint(config_of("llama"))) for name in COMMITS}
    parameter = unbind_params(found["v1"])[1][0]
    parameter.value = parameter.value * 2.0
    return found


@pytest.fixture
def cache(models, tmp_path, monkeypatch):
    """The library's cache with both states, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (repository / "refs" / name).write_text(commit)
        save_huggingface(models[name], repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def _first_value(model):
    return unbind_params(model)[1][0].value.data_array


@pytest.mark.parametrize("revision", [None, *COMMITS, COMMITS["v1"]])
def test_what_was_fetched_once_is_found_without_a_network(cache, models, revision):
    state = "v1" if revision in ("v1", COMMITS["v1"]) else "main"
    model = load("someone/tiny", revision=revision)
    np.testing.assert_array_equal(_first_value(model), _first_value(models[state]))
    folder = hub.download("someone/tiny", revision=revision)
    assert folder == cache / "models--someone--tiny" / "snapshots" / COMMITS[state]


@pytest.mark.parametrize("name, revision", [("someone/other", None), ("someone/tiny", "v2")])
def test_without_a_network_what_is_not_there_is_told(cache, name, revision):
    with pytest.raises(CheckpointError, match=f"'{name}' is no local file.*Without a connection"):
        load(name, revision=revision)


def test_only_weights_in_the_safe_format_are_asked_for(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.download("someone/tiny", revision="v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("someone/tiny", "v1")
    assert not [pattern for pattern in asked["allow_patterns"] if "bin" in pattern]
    with pytest.raises(CheckpointError, match=r"config.json: there is no such file"):
        load("someone/tiny")


def test_failures_of_the_library_are_told(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import HFValidationError

    for error in (OSError("no route to host"), HFValidationError("bad name\nmore")):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(
            CheckpointError, match=r"could not be fetched.*(no route|bad name)"
        ) as e:
            load("someone/tiny")
        assert e.value.__cause__ is error


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"no file or folder 'a/b' here.*'pz-models\[hub\]'"):
        load("a/b")


def test_a_local_folder_of_that_name_comes_first(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_huggingface(models["main"], "someone/tiny")
    np.testing.assert_array_equal(_first_value(load("someone/tiny")), _first_value(models["main"]))
    with pytest.raises(
        ValueError, match=r"'v1' is for a name on the HuggingFace hub.*Leave it out"
    ):
        load("someone/tiny", revision="v1")


@pytest.mark.parametrize("path", ["a/b/c", "./a/b", "gone", "dir/model.gguf", "../a", "~/x"])
def test_what_is_no_name_on_the_hub_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load(path)
