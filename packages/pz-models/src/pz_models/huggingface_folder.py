"""HuggingFace folders (`config.json` and safetensors) as checkpoints. No torch, no transformers.

checkpoint = HuggingFaceFolder("Llama-3.2-1B/")
checkpoint.config["hidden_size"], checkpoint.tensors["model.norm.weight"].shape
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shlex
from typing import Any

import numpy as np

from pz_models._safetensors_header import DTYPES, TensorRange, read_header
from pz_models.checkpoints import Checkpoint, StoredTensor, commonest_storage
from pz_models.errors import CheckpointError

__all__ = ["HuggingFaceFolder", "pickle_refusal"]

_BYTES_AT_A_TIME = 1 << 23
_LARGEST_JSON = 100_000_000  # bytes; the index of a model with a million tensors is smaller


class HuggingFaceFolder(Checkpoint):
    """A folder with `config.json` and `model.safetensors`, or shards with their index.

    Raises:
      CheckpointError: Something is missing, cut off or corrupt; weights are pickles; the index
        names files outside the folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        folder = pathlib.Path(path)
        self.name = str(folder)
        self.config = _read_object(folder / "config.json")
        self._ranges: dict[str, TensorRange] = {}
        for file, expected in _files(folder).items():
            found = read_header(file)
            if absent := expected - found.keys():
                raise CheckpointError(
                    f"{file}: the index says that it holds {sorted(absent)[0]!r}; it does not."
                )
            self._ranges |= {k: v for k, v in found.items() if not expected or k in expected}
        for key, value in self._ranges.items():
            if value.dtype not in DTYPES:
                raise CheckpointError(
                    f"{value.path}: tensor {key!r} is {value.dtype}; floating tensors are read"
                    f" ({', '.join(DTYPES)}). Is the checkpoint quantised? Dequantise it first."
                )
        self.tensors = {
            key: StoredTensor(value.shape, value.dtype, value.n_bytes)
            for key, value in self._ranges.items()
        }
        storage = commonest_storage(self.tensors.values())
        self.dtype = np.dtype(np.float32) if storage is None else DTYPES[storage]

    def describe(self, key: str) -> str:
        """The file and the tensor."""
        place = self._ranges.get(key)
        return f"{self.name if place is None else place.path}: tensor {key!r}"

    def read_into(self, key: str, out: np.ndarray) -> None:
        """Reads tensor `key` by its position in the file, casting a piece at a time if needed."""
        place = self._ranges[key]
        dtype = DTYPES[place.dtype]
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            if dtype == out.dtype and out.flags.c_contiguous:
                _read_exactly(file, out.reshape(-1).view(np.uint8), place, key)
                return
            flat = out.reshape(-1)
            step = _BYTES_AT_A_TIME // dtype.itemsize
            for start in range(0, math.prod(place.shape), step):
                piece = np.empty(min(step, flat.size - start), dtype)
                _read_exactly(file, piece.view(np.uint8), place, key)
                flat[start : start + piece.size] = piece


def pickle_refusal(folder: pathlib.Path) -> str:
    """Why pickled weights are not read, and the command that converts those of a folder."""
    place = repr(str(folder))
    code = (
        "from transformers import AutoModelForCausalLM as A;"
        f" A.from_pretrained({place}).save_pretrained({place})"
    )
    return (
        "unpickling runs whatever code the file contains, so it is refused. Convert it once, where"
        f" you trust it: python -c {shlex.quote(code)}"
    )


def _read_exactly(file: Any, target: np.ndarray, place: TensorRange, key: str) -> None:
    """Fills `target`; a plain file may give less than asked for at once (2 GiB on Linux)."""
    view = memoryview(target.data)
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                f"{place.path}: tensor {key!r} was cut off while it was read; the file has changed"
                " since it was opened."
            )
        view = view[count:]


def _files(folder: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """The safetensors files, with the tensors that the index expects in each (none: no index)."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if single.exists():
            return {single: set()}
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        if pickles:
            raise CheckpointError(
                f"{folder}: only {', '.join(pickles[:3])} with pickled weights is there;"
                f" {pickle_refusal(folder)}"
            )
        raise CheckpointError(f"{folder}: there is no model.safetensors and no index of shards.")
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: 'weight_map' should be an object from tensors to files.")
    expected: dict[pathlib.Path, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or pathlib.PurePath(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{index}: tensor {key!r} is said to lie in {name!r}; only files directly in the"
                " folder are read."
            )
        expected.setdefault(folder / name, set()).add(key)
    for file in expected:
        if not file.is_file():
            raise CheckpointError(f"{index}: it names {file.name!r}, which is not in the folder.")
    return expected


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise CheckpointError(
                f"{path}: {size} bytes are too many for a description of a model."
            )
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: there is no such file.") from exc
    except IsADirectoryError as exc:
        raise CheckpointError(f"{path}: a folder, where a file should be.") from exc
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: not readable as JSON ({exc}).") from exc
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(loaded).__name__}.")
    return loaded
