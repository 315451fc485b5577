"""Every snippet of docs/howto.md runs: a section at a time, after the lines that all start from."""

import json
import pathlib
import re
import runpy

import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOWTO = ROOT / "docs" / "howto.md"
TINY = ROOT / "packages" / "pz-models" / "tests" / "_helpers" / "pz_models_tiny.py"


def sections(text):
    """Splits a document into (heading, [snippet, ...]); headings without snippets are left out."""
    fences = re.split(r"^```(?:python)?\n", text, flags=re.MULTILINE)
    found = []
    for prose, snippet in zip(fences[::2], fences[1::2], strict=False):
        headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
        if headings:
            found.append((headings[-1], []))
        found[-1][1].append(snippet)
    return found


(_, PREAMBLE), *TASKS = sections(HOWTO.read_text("utf-8"))


def write_tiny_llama(folder):
    """A one-block Llama as it is published: `config.json` and safetensors."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    shapes = {"model.embed_tokens": (20, 16), "model.norm": (16,)}
    block = {
        "input_layernorm": (16,),
        "post_attention_layernorm": (16,),
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (16, 16),
        "self_attn.v_proj": (16, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (32, 16),
        "mlp.up_proj": (32, 16),
        "mlp.down_proj": (16, 32),
    }
    shapes |= {f"model.layers.0.{name}": shape for name, shape in block.items()}
    draw = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": draw.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def run(what, snippets, namespace):
    for snippet in snippets:
        exec(compile(snippet, f"howto.md, {what}", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def preamble():
    return run("first lines", PREAMBLE, {"__name__": "__main__"})


def _case(task, snippets):
    needs_torch = any("import transformers" in snippet for snippet in snippets)
    return pytest.param(task, snippets, id=task, marks=[pytest.mark.torch] if needs_torch else [])


@pytest.mark.parametrize("task, snippets", [_case(*task) for task in TASKS])
def test_the_snippets_of(task, snippets, preamble, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    write_tiny_llama(tmp_path / "tiny-llama")
    write_tiny_llama(tmp_path / "HuggingFaceTB" / "SmolLM2-135M")  # found before the hub is asked
    if any("import kagglehub" in snippet for snippet in snippets):
        request.getfixturevalue("kaggle")
    if any(".gguf" in snippet for snippet in snippets):
        pytest.importorskip("gguf")
        runpy.run_path(str(TINY))["write_gguf"](tmp_path / "tiny-llama.gguf")
    for extra in ("optax", "transformers"):
        if any(f"import {extra}" in snippet for snippet in snippets):
            pytest.importorskip(extra)
    run(task, snippets, dict(preamble))


def test_every_task_has_a_snippet():
    headings = re.findall(r"^### (.*)$", HOWTO.read_text("utf-8"), flags=re.MULTILINE)
    assert [task for task, _ in TASKS] == headings


def test_a_failing_snippet_would_be_noticed():
    text = "# A\n```python\nx = 1  # fine\n```\n## B\n```python\n# a comment\ny = z\n```\nMore.\n"
    (_, fine), (_, failing) = found = sections(text)
    assert found == [("A", ["x = 1  # fine\n"]), ("B", ["# a comment\ny = z\n"])]
    assert run("A", fine, {})["x"] == 1
    with pytest.raises(NameError, match="'z'"):
        run("B", failing, {})
