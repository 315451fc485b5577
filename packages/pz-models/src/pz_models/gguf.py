"""GGUF files (llama.cpp's format, quantised or not) as checkpoints.

The header is read and checked first; tensors are then dequantised one by one, a few rows at a
time, straight into the memory that becomes the parameter.

    checkpoint = GGUFCheckpoint("SmolLM2-135M-Instruct.Q4_1.gguf")
    checkpoint.config["num_hidden_layers"]                    # 30, in HuggingFace's spelling
    checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]   # shape, storage type

Needs the extra `gguf` (`pip install 'pz-models[gguf]'`).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pz_models import _gguf_architectures
from pz_models._gguf_header import GGUFHeader, GGUFTensor, import_gguf, read_header
from pz_models._gguf_tables import ROPE_FACTORS
from pz_models.checkpoints import Checkpoint, StoredTensor
from pz_models.errors import CheckpointError

__all__ = ["GGUFCheckpoint", "GGUFHeader", "GGUFTensor", "read_header"]

_READABLE = frozenset(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
)
_VALUES_AT_A_TIME = 1 << 21  # 8 MiB of float32


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of a known architecture, its tensors under HuggingFace's names.

    Everything that can be known from the header is checked when it is made: architecture,
    metadata, names and storage types of all tensors.

    Attributes:
      header: The file's own metadata and tensor table.

    Raises:
      CheckpointError: The file is corrupt, or uses a storage type that is not supported.
      UnsupportedConfigError: The architecture, or something in its metadata, is not known.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.header = read_header(path)
        self.name = str(self.header.path)
        self._architecture = _gguf_architectures.architecture_of(self.header)
        self._stored_names = _gguf_architectures.huggingface_names(self._architecture, self.header)
        self.config = _gguf_architectures.huggingface_config(self._architecture, self.header)
        if ROPE_FACTORS in self.header.tensors:
            self.config |= _rope_divisors(self.header, self.config)
        self.dtype = np.dtype(np.float32)
        self.tensors = {}
        for key, name in self._stored_names.items():
            tensor = self.header.tensors[name]
            if tensor.storage_type not in _READABLE:
                raise CheckpointError(
                    f"{self.name}: tensor {name!r} is stored as {tensor.storage_type}, which is"
                    f" not supported; supported are {', '.join(sorted(_READABLE))}."
                )
            self.tensors[key] = StoredTensor(tensor.shape, tensor.storage_type, tensor.n_bytes)

    def describe(self, key: str) -> str:
        """The file, the tensor's name in it, and HuggingFace's."""
        return f"{self.name}: tensor {self.stored_name(key)!r} ({key})"

    def stored_name(self, key: str) -> str:
        """The name in the file of the tensor with HuggingFace's name `key`."""
        return self._stored_names.get(key) or _gguf_architectures.gguf_name(self._architecture, key)

    def read_into(self, key: str, out: np.ndarray) -> None:
        """Dequantises tensor `key` into `out`."""
        tensor = self.header.tensors[self._stored_names[key]]
        adjust = self._architecture.adjustment(key)
        if adjust is None:
            _dequantise_into(self.header, tensor, out)
        else:
            plain = np.empty(tensor.shape, np.float32)
            _dequantise_into(self.header, tensor, plain)
            out[...] = adjust(plain, self.config)


def _rope_divisors(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """The tensor of divisors as configuration: LongRoPE with one list for all lengths.

    Raises:
      CheckpointError: It is no tensor of finite positive float32 numbers, one for each pair of a
        head, or the metadata scales as well.
    """
    tensor = header.tensors[ROPE_FACTORS]
    wanted = (config["head_dim"] // 2,)
    if (tensor.storage_type, tensor.shape) != ("F32", wanted) or "rope_scaling" in config:
        raise CheckpointError(
            f"{header.path}: tensor {ROPE_FACTORS!r} should be F32 of shape {wanted}, without"
            f" rope.scaling.type beside it; it is {tensor.storage_type} of shape {tensor.shape},"
            f" beside {config.get('rope_scaling')}."
        )
    divisors = np.empty(wanted, np.float32)
    _dequantise_into(header, tensor, divisors)
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise CheckpointError(
            f"{header.path}: tensor {ROPE_FACTORS!r} should hold positive numbers; it holds"
            f" {divisors}."
        )
    scaling = {
        "rope_type": "longrope",
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "original_max_position_embeddings": config.get("max_position_embeddings", 1),
        "factor": 1.0,
        "attention_factor": 1.0,
    }
    return {"rope_scaling": scaling}


def _dequantise_into(header: GGUFHeader, tensor: GGUFTensor, out: np.ndarray) -> None:
    """Reads and dequantises a few rows at a time, so that no second copy of the tensor exists."""
    gguf = import_gguf()
    storage = gguf.GGMLQuantizationType[tensor.storage_type]
    columns = tensor.shape[-1]
    rows = out.reshape(-1, columns)
    bytes_per_row = tensor.n_bytes // len(rows)
    rows_at_a_time = max(1, _VALUES_AT_A_TIME // columns)
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        for start in range(0, len(rows), rows_at_a_time):
            piece = rows[start : start + rows_at_a_time]
            raw = np.fromfile(file, np.uint8, len(piece) * bytes_per_row)
            if raw.size != len(piece) * bytes_per_row:
                raise CheckpointError(
                    f"{header.path}: tensor {tensor.name!r} was cut off while it was read;"
                    " the file has changed since it was opened."
                )
            piece[...] = gguf.quants.dequantize(raw.reshape(len(piece), bytes_per_row), storage)
