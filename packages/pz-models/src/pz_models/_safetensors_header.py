"""Reads the header of a safetensors file and holds every number in it against the file's size.

The library's own reader maps the whole file, whose pages then count twice towards the memory in
use while they are copied; we read each tensor by position, into memory that JAX takes over.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from pz_models.errors import CheckpointError

__all__ = ["DTYPES", "TensorRange", "read_header"]

DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OTHER_SIZES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # the library's own limit


@dataclasses.dataclass(frozen=True)
class TensorRange:
    """One tensor of a safetensors file.

    Attributes:
      path: The file.
      dtype: The format's name of its dtype.
      shape: Its sizes.
      offset: First byte, from the start of the file.
      n_bytes: Length.
    """

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_header(path: pathlib.Path) -> dict[str, TensorRange]:
    """The tensors of a safetensors file, by name.

    Raises:
      CheckpointError: The file is cut off, not safetensors, or contradicts itself.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(
                f"{path}: not a safetensors file, or cut off: its header should have {length} bytes,"
                f" the file has {size} in all."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: corrupt: the header is not readable JSON ({exc}).") from exc
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt: the header is no JSON object.")
    header.pop("__metadata__", None)
    found = {name: _range(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _check_order(path, found, 8 + length, size)
    return found


def _check_order(
    path: pathlib.Path, found: dict[str, TensorRange], data_start: int, size: int
) -> None:
    """As the format asks, tensors fill the data one after another: none shares another's bytes."""
    end = data_start
    for name, place in sorted(found.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if place.offset != end:
            raise CheckpointError(
                f"{path}: corrupt: tensor {name!r} begins at byte {place.offset - data_start} of the"
                f" data, where the one before it ends at {end - data_start}."
            )
        end += place.n_bytes
    if end != size:
        raise CheckpointError(
            f"{path}: corrupt: its tensors end at byte {end - data_start} of the data, which has"
            f" {size - data_start}."
        )


def _range(path: pathlib.Path, name: str, entry: Any, data_start: int, size: int) -> TensorRange:
    """One checked entry of the header."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers_are_whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as exc:
        raise CheckpointError(
            f"{path}: corrupt: tensor {name!r} should have dtype, shape and two data_offsets; it is"
            f" {str(entry)[:80]}."
        ) from exc
    if not numbers_are_whole or not isinstance(dtype, str):
        raise CheckpointError(f"{path}: corrupt: tensor {name!r} is described by {entry}.")
    item = DTYPES[dtype].itemsize if dtype in DTYPES else _OTHER_SIZES.get(dtype)
    if item is None:
        raise CheckpointError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}.")
    if end - begin != math.prod(shape) * item or data_start + end > size:
        raise CheckpointError(
            f"{path}: truncated or corrupt: tensor {name!r}, {dtype} {shape}, should take"
            f" {math.prod(shape) * item} bytes; it is said to lie at {begin} to {end} of"
            f" {size - data_start}."
        )
    return TensorRange(path, dtype, shape, data_start + begin, end - begin)
