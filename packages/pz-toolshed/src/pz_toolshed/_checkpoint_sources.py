"""What a checkpoint says of its arrays, and how they are read and put where they belong."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_named.named_axes import NamedArray, is_namedarray
from pz_toolshed import _orbax_backend
from pz_toolshed._array_leaves import data_axes, with_data
from pz_toolshed._safetensors_file import read_header
from pz_toolshed.checkpoint_errors import CheckpointFormatError

__all__ = [
    "FORMAT",
    "VERSION",
    "Source",
    "data_of",
    "describe",
    "entry_text",
    "file_name",
    "file_steps",
    "fits",
    "made_anew",
    "opened",
    "plain",
    "restored",
    "steps_of",
    "stored_dtype_and_shape",
    "to_host",
]

FORMAT = "pz_toolshed.saving"
VERSION = 1
_FILE = re.compile(r"step_(\d{10})\.safetensors")


def file_name(step: int) -> str:
    """Name of the file of a step."""
    return f"step_{step:010d}.safetensors"


def steps_of(folder: pathlib.Path) -> list[int]:
    """The steps of complete checkpoints of both kinds, ascending."""
    return sorted({*file_steps(folder), *_orbax_backend.orbax_steps(folder)})


def file_steps(folder: pathlib.Path) -> list[int]:
    """The steps of which there are safetensors files, ascending."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def data_of(array: Any) -> Any:
    """The array behind a named array, or the array itself."""
    return array.data_array if is_namedarray(array) else array


def _is_key(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))


def describe(array: Any) -> dict[str, Any]:
    """What is checked when an entry is loaded: axes with sizes, dtype, kind of key."""
    named = array.named_shape if is_namedarray(array) else {}
    shape = array.positional_shape if is_namedarray(array) else array.shape
    described: dict[str, Any] = {
        "shape": list(shape),
        "axes": {str(name): size for name, size in named.items()},
        "dtype": str(array.dtype),
    }
    stored_dtype, stored_shape = stored_dtype_and_shape(array)
    described |= {"stored_dtype": str(stored_dtype), "stored_shape": list(stored_shape)}
    if _is_key(array):
        described["key"] = str(jax.random.key_impl(data_of(array)))
    return described


def fits(saved: Mapping[str, Any], there: Mapping[str, Any], cast: bool) -> bool:
    """Whether a saved entry can stand where another is described; with `cast`, in any dtype."""
    return (
        saved["shape"] == there["shape"]
        and saved["axes"] == there["axes"]
        and saved.get("key") == there.get("key")
        and (cast or saved["dtype"] == there["dtype"])
    )


def entry_text(entry: Mapping[str, Any]) -> str:
    """A description in short, as errors show it: `float32{x:2, out:3}`."""
    axes = [str(size) for size in entry["shape"]]
    axes += [f"{name}:{size}" for name, size in entry["axes"].items()]
    return f"{entry['dtype']}{{{', '.join(axes)}}}"


def plain(array: Any) -> Any:
    """The data with positional axes first, keys as their numbers."""
    data = array.with_positional_prefix().data_array if is_namedarray(array) else array
    return jax.random.key_data(data) if _is_key(data) else data


def stored_dtype_and_shape(array: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape of what `plain` makes of an array; nothing is computed."""
    abstract = jax.eval_shape(plain, array)
    return np.dtype(abstract.dtype), tuple(abstract.shape)


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """What `plain` makes of an array, as a NumPy array."""
    return np.asarray(plain(array))


def _order(entry: Mapping[str, Any], old: Any) -> list[int]:
    """For each axis of the old array's data, which axis of the saved array it is."""
    rank = len(entry["stored_shape"])
    if not is_namedarray(old):
        return list(range(rank))
    position = {axis: i for i, axis in enumerate([*range(len(entry["shape"])), *entry["axes"]])}
    order = [position[a if isinstance(a, int) else str(a)] for a in data_axes(old)]
    return [*order, *range(len(order), rank)]  # a key's numbers come last


def restored(saved: Any, entry: Mapping[str, Any], old: Any) -> Any:
    """A saved array with the layout, dtype and placement of the old one."""
    new = _placed(saved.transpose(_order(entry, old)), data_of(old), entry)
    return with_data(old, new) if is_namedarray(old) else new


def _placed(saved: Any, old: Any, entry: Mapping[str, Any]) -> Any:
    if isinstance(saved, jax.Array):
        return saved.astype(old.dtype)  # orbax has put it where it belongs
    if "key" in entry:
        return jax.random.wrap_key_data(jnp.asarray(np.array(saved)), impl=entry["key"])
    if getattr(old, "weak_type", False) and not saved.ndim:
        return jnp.asarray(saved.item())  # a Python number: stays weakly typed
    sharding = getattr(old, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        # Each device reads its own part of the file.
        return jax.make_array_from_callback(
            saved.shape, sharding, lambda index: np.array(saved[index], old.dtype)
        )
    return jnp.asarray(np.array(saved, old.dtype))


def made_anew(saved: Any, entry: Mapping[str, Any]) -> Any:
    """A saved array for a slot, which says nothing about its layout."""
    data = jnp.asarray(np.array(saved))
    if "key" in entry:
        data = jax.random.wrap_key_data(data, impl=entry["key"])
    names = collections.OrderedDict(entry["axes"])
    return NamedArray(names, data) if names else data


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that is open for reading.

    Attributes:
      where: The file or folder, for errors.
      entries: The description of each array.
      reader: From the arrays that are wanted (the old ones by name; None for slots) to a function
        that gives each as it was saved, as a NumPy array or, where devices share it, a JAX array.
    """

    where: pathlib.Path
    entries: dict[str, Any]
    reader: Callable[[Mapping[str, Any]], Callable[[str], Any]]


@contextlib.contextmanager
def opened(path: pathlib.Path, step: int | None) -> Iterator[Source]:
    """Opens a file, or a step of a folder (None: the last), of either kind."""
    if path.is_file():
        if step is not None and path.name != file_name(step):
            raise FileNotFoundError(
                f"load: step {step} was asked for, but {path} is another file. Give the folder, or "
                "the file without a step."
            )
        yield _file_source(path)
        return
    steps = steps_of(path)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(
            f"load: there is {wanted} in {path}; saved steps are {steps}. Give the folder that was "
            "given to save."
        )
    step = steps[-1] if step is None else step
    file = path / file_name(step)
    if file.exists():
        yield _file_source(file)
        return
    with _orbax_backend.OrbaxCheckpoint.opened(path, step) as checkpoint:
        description = checkpoint.description
        _check_format(checkpoint.path, description.get("format"), description.get("version"))
        entries = description["entries"]
        yield Source(
            checkpoint.path, entries, lambda olds: _orbax_reader(checkpoint, entries, olds)
        )


def _file_source(path: pathlib.Path) -> Source:
    file = read_header(path)
    _check_format(path, file.metadata.get("format"), file.metadata.get("version"))
    try:
        entries = json.loads(file.metadata["entries"])
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"its list of entries cannot be read ({error})") from error
    for name, entry in entries.items():
        stored = file.tensors.get(name)
        if stored is None or list(stored.shape) != entry.get("stored_shape"):
            raise _damaged(path, f"its list of entries and its tensors disagree about {name!r}")
    return Source(path, entries, lambda _: file.read)


def _damaged(where: pathlib.Path, how: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{where} is damaged: {how}. Load another step, or copy the file again."
    )


def _orbax_reader(
    checkpoint: Any, entries: Mapping[str, Any], olds: Mapping[str, Any]
) -> Callable[[str], Any]:
    wanted = {}
    for name, entry in entries.items():
        shape, sharding = tuple(entry["stored_shape"]), None
        old = olds.get(name)
        if old is not None:
            there = getattr(data_of(old), "sharding", None)
            if there is not None and len(there.device_set) > 1 and "key" not in entry:
                sharding = _orbax_backend.permuted_sharding(there, _order(entry, old), len(shape))
        wanted[name] = (shape, jnp.dtype(entry["stored_dtype"]), sharding)
    arrays: dict[str, Any] = checkpoint.read(wanted)
    return arrays.__getitem__


def _check_format(where: pathlib.Path, name: str | None, version: str | None) -> None:
    if name != FORMAT:
        raise CheckpointFormatError(
            f"{where} was not written by pz_toolshed.saving (its format is {name!r}). For weights of "
            "other libraries use their own readers."
        )
    if version != str(VERSION):
        raise CheckpointFormatError(
            f"{where} has format version {version}; this pz-toolshed reads version {VERSION}. "
            "Load it with the pz-toolshed that wrote it, or a newer one."
        )
