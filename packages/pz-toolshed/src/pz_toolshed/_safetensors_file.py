"""Safetensors files, written tensor by tensor and atomically, read without copying.

The format (https://huggingface.co/docs/safetensors) is eight bytes with the length of a JSON header,
the header, and the tensors' bytes. The `safetensors` library builds the whole file in memory before
it writes, knows no bfloat16 in NumPy, and gives no hold on `open`, `write` and `fsync`; so this
module does it in plain Python. Tests read its files with the library, and the library's with it.

A file appears under its name complete or not at all:

    write everything to <folder>/.<name>.<pid>.tmp; fsync it; rename it to <name>; fsync the folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pz_toolshed.checkpoint_errors import CheckpointFormatError, CheckpointWriteError

__all__ = [
    "TensorInfo",
    "TensorsFile",
    "read_header",
    "remove_leftovers",
    "write_atomically",
]

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file.

    Attributes:
      dtype: Its dtype.
      shape: Its shape.
      start: Offset of its first byte in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class TensorsFile:
    """A file that is open for reading.

    Attributes:
      path: The file.
      tensors: Its tensors by name.
      metadata: The texts in its header.
    """

    path: pathlib.Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor, as a read-only view of the file."""
        info = self.tensors[name]
        if not math.prod(info.shape):
            return np.zeros(info.shape, info.dtype)
        return np.memmap(self.path, info.dtype, "r", info.start, info.shape)


def write_atomically(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    get: Callable[[str], np.ndarray[Any, Any]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file so that it appears complete or not at all.

    Args:
      path: The file; its folder is made if it does not exist.
      shapes: Dtype and shape of each tensor.
      get: Gives a tensor by name; called once for each, so that only one need be in memory.
      metadata: Texts for the header.

    Raises:
      CheckpointWriteError: If the system refuses; nothing has changed then.
      TypeError: If the format has no name for a dtype.
    """
    header = _header(shapes, metadata)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        os.makedirs(path.parent, exist_ok=True)
        try:
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                _write_all(descriptor, memoryview(header))
                for name in shapes:
                    _write_all(descriptor, _bytes_of(get(name)))
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        with _opened(path.parent, os.O_RDONLY) as folder:
            os.fsync(folder)
    except OSError as error:
        raise CheckpointWriteError(
            error.errno,
            f"could not write the checkpoint {path}: {error.strerror}. Earlier checkpoints are as "
            "they were. Make room or make the folder writable, then save again",
        ) from error


def _header(
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        if dtype not in _CODES:
            raise TypeError(
                f"the tensor {name!r} has dtype {dtype}, which safetensors files do not have; they "
                f"have {', '.join(map(str, _CODES))}. Convert it before saving."
            )
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    contiguous = np.ascontiguousarray(array)
    # Extension dtypes have no buffer protocol; their bytes do.
    flat: Any = contiguous.reshape(-1).view(np.uint8)
    return memoryview(flat)


@contextlib.contextmanager
def _opened(path: pathlib.Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def read_header(path: pathlib.Path) -> TensorsFile:
    """Opens a file and checks that it is whole.

    Args:
      path: The file.

    Returns:
      The file, for reading.

    Raises:
      CheckpointFormatError: If the header cannot be read, or the file is shorter than it says.
      FileNotFoundError: If there is no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, max(size - 8, 0)):
            raise CheckpointFormatError(
                f"{path} is no safetensors file, or a damaged one: its header would have {length} "
                f"bytes, the file has {size}. Load another step, or copy the file again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor_info(entry, 8 + length) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointFormatError(
            f"{path} is damaged: its header cannot be read ({error}). Load another step, or copy "
            "the file again."
        ) from error
    if size != 8 + length + end:
        raise CheckpointFormatError(
            f"{path} is damaged: its header describes {8 + length + end} bytes, the file has "
            f"{size}. Load another step, or copy the file again."
        )
    return TensorsFile(path, tensors, metadata)


def _tensor_info(entry: Mapping[str, Any], data_start: int) -> TensorInfo:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = tuple(int(size) for size in entry["shape"])
    start, end = entry["data_offsets"]
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"offsets {start} to {end} do not fit {dtype}{list(shape)}")
    return TensorInfo(dtype, shape, data_start + start)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary files of processes that no longer run."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.rsplit(".", 2)[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
