"""Saves models and training runs, and loads them back.

The idea: arrays are saved by the label of their variable, with their axis names, into one safetensors
file per step; a file appears complete or not at all. No pickle.

    saving.save("runs/1", model)
    model = saving.load("runs/1", like=model)

    saving.save("runs/2", trainer, step=1000, keep=3)
    trainer = saving.resume("runs/2", trainer)     # the latest step, or the trainer as it is

What is saved: parameters (frozen ones too), state variables, and the keys of random streams and
trainers. What is not: the structure of the model. It comes from `like`, a tree built as the saved one
was; it may be edited since, sharded over devices, or hold slots where parameters are to be.

`save(..., backend="orbax")` writes the same entries with orbax, each process its part of the arrays,
and `save_in_background` does so while training goes on; `load` and `resume` read both kinds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pz_named.named_axes import NamedArray, is_namedarray
from pz_toolshed import _orbax_backend
from pz_toolshed._array_leaves import data_axes, with_data
from pz_toolshed._checkpoint_entries import map_entries
from pz_toolshed._safetensors_file import (
    CheckpointFormatError,
    CheckpointWriteError,
    read_header,
    remove_leftovers,
    write_atomically,
)

__all__ = [
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "PendingSave",
    "load",
    "resume",
    "save",
    "save_in_background",
    "saved_steps",
]

_FORMAT = "pz_toolshed.saving"
_VERSION = 1
_FILE = re.compile(r"step_(\d{10})\.safetensors")


class CheckpointMismatchError(ValueError):
    """A checkpoint does not fit the tree that it is to be loaded into.

    For example, loading a checkpoint of a two-layer model into a three-layer model. Build `like` as
    the saved model was built, or allow what is meant to differ (`allow_missing`, `allow_surplus`).

    Attributes:
      missing: Names that the tree needs and the checkpoint lacks.
      surplus: Names that the checkpoint has and the tree lacks.
      mismatching: For each name in both that differs in shape or dtype: what was saved, and what the
        tree has.
    """

    def __init__(
        self,
        where: object,
        missing: Sequence[str],
        surplus: Sequence[str],
        mismatching: Mapping[str, tuple[str, str]],
    ):
        self.missing = list(missing)
        self.surplus = list(surplus)
        self.mismatching = dict(mismatching)
        super().__init__(_mismatch_text(where, self.missing, self.surplus, self.mismatching))


def _mismatch_text(
    where: object,
    missing: list[str],
    surplus: list[str],
    mismatching: dict[str, tuple[str, str]],
) -> str:
    lines = [f"the checkpoint {where} does not fit `like`:"]
    for name in missing:
        near = difflib.get_close_matches(name, surplus, n=1)
        hint = f" (the checkpoint has {near[0]!r})" if near else ""
        lines.append(f"  missing in the checkpoint: {name!r}{hint}")
    lines += [f"  not in `like`: {name!r}" for name in surplus]
    lines += [
        f"  different: {name!r} was saved as {saved}, `like` has {there}"
        for name, (saved, there) in mismatching.items()
    ]
    if len(lines) > 21:
        lines[21:] = [f"  ... and {len(lines) - 21} more"]
    lines.append(
        "Build `like` as the saved model was built; or allow the difference (allow_missing=True, "
        "allow_surplus=True, cast=True for dtypes)."
    )
    return "\n".join(lines)


Backend: TypeAlias = Literal["safetensors", "orbax"]


def save(
    directory: str | os.PathLike[str],
    tree: Any,
    *,
    step: int | None = None,
    keep: int = 1,
    backend: Backend = "safetensors",
) -> pathlib.Path:
    """Saves a model, a trainer or any tree with variables.

    Args:
      directory: Folder of the run; made if it does not exist. Not shared with anything else.
      tree: What to save. For safetensors, all its arrays must be addressable by this process.
      step: Number of this checkpoint, not below any in the folder. Default: the one after the last.
      keep: How many checkpoints to keep, this one included. Older ones are removed once this one is
        safely on disk.
      backend: `"safetensors"` writes one file. `"orbax"` writes a folder, each process its own part
        of the arrays; all processes call it together.

    Returns:
      The file or folder.

    Raises:
      ValueError: If two different arrays would have one name, or the step is below a saved one.
      CheckpointWriteError: If the system refuses to write; earlier checkpoints are unharmed.
    """
    if backend == "orbax":
        return save_in_background(directory, tree, step=step, keep=keep).wait()
    folder = pathlib.Path(directory)
    step = _checked_step(folder, step, keep)
    entries = _collect(tree)
    path = folder / f"step_{step:010d}.safetensors"
    write_atomically(
        path,
        {name: _stored_dtype_and_shape(array) for name, array in entries.items()},
        lambda name: _to_host(entries[name]),
        {
            "format": _FORMAT,
            "version": str(_VERSION),
            "step": str(step),
            "entries": json.dumps({name: _describe(array) for name, array in entries.items()}),
        },
    )
    remove_leftovers(folder)
    for old in [s for s in _file_steps(folder) if s != step][: -(keep - 1) or None]:
        try:
            (folder / f"step_{old:010d}.safetensors").unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"save: could not remove the old checkpoint {old}: {error}", stacklevel=2)
    return path


class PendingSave:
    """A checkpoint that is being written by orbax in the background."""

    def __init__(self, manager: Any, path: pathlib.Path):
        self._manager = manager
        self._path = path

    def wait(self) -> pathlib.Path:
        """Waits until the checkpoint is complete, and returns its folder."""
        self._manager.wait_until_finished()
        self._manager.close()
        return self._path


def save_in_background(
    directory: str | os.PathLike[str], tree: Any, *, step: int | None = None, keep: int = 1
) -> PendingSave:
    """Saves through orbax while training goes on; `wait` for it before saving again.

    The arrays are copied before the call returns, so they may change or be donated afterwards.

    Args:
      directory: As in `save`.
      tree: As in `save`; its arrays may be spread over several processes, which all call this.
      step: As in `save`.
      keep: As in `save`.

    Returns:
      The checkpoint in the making.

    Raises:
      ValueError: As `save`.
      ImportError: If orbax is not installed.
    """
    folder = pathlib.Path(directory)
    step = _checked_step(folder, step, keep)
    entries = _collect(tree)
    description = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "entries": {name: _describe(array) for name, array in entries.items()},
    }
    arrays = {name: _plain(array) for name, array in entries.items()}
    manager = _orbax_backend.start_saving(folder, step, arrays, description, keep)
    return PendingSave(manager, _orbax_backend.orbax_folder(folder) / str(step))


def _checked_step(folder: pathlib.Path, step: int | None, keep: int) -> int:
    if keep < 1:
        raise ValueError(f"save: keep must be at least 1, since this checkpoint stays; got {keep}.")
    steps = saved_steps(folder)
    if step is None:
        return steps[-1] + 1 if steps else 0
    if step < 0:
        raise ValueError(f"save: a step is not negative; got {step}.")
    if steps and step < steps[-1]:
        raise ValueError(
            f"save: step {step} is below the last saved step {steps[-1]} in {folder}, which `load` "
            "would go on to prefer. Save into another folder, or remove the later checkpoints."
        )
    return step


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps of which a folder has complete checkpoints, ascending; empty if there is none."""
    folder = pathlib.Path(directory)
    return sorted({*_file_steps(folder), *_orbax_backend.orbax_steps(folder)})


def _file_steps(folder: pathlib.Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def load(
    directory: str | os.PathLike[str],
    like: Any,
    *,
    step: int | None = None,
    allow_missing: bool = False,
    allow_surplus: bool = False,
    cast: bool = False,
) -> Any:
    """Loads a checkpoint.

    Args:
      directory: The folder that was given to `save`, or one file.
      like: A tree built as the saved one was. It does not change; the result has its structure,
        axis orders and placement on devices. `ParameterSlot`s in it are filled.
      step: Which checkpoint; default: the last.
      allow_missing: Keep the values of `like` for entries that the checkpoint lacks.
      allow_surplus: Ignore entries of the checkpoint that `like` lacks.
      cast: Convert entries to the dtypes of `like` where those differ.

    Returns:
      The tree with the saved values, in new variables.

    Raises:
      FileNotFoundError: If there is no such checkpoint.
      CheckpointFormatError: If a file is damaged, or of another kind or version.
      CheckpointMismatchError: If entries are missing, surplus or of another shape or dtype.
    """
    with _opened(pathlib.Path(directory), step) as source:
        places = _places(like)
        saved = source.entries
        missing = [name for name in places if name not in saved]
        surplus = [name for name in saved if name not in places]
        mismatching = {
            name: (_entry_text(saved[name]), _entry_text(_describe(old)))
            for name, old in places.items()
            if name in saved and old is not None and not _fits(saved[name], _describe(old), cast)
        }
        if (missing and not allow_missing) or (surplus and not allow_surplus) or mismatching:
            raise CheckpointMismatchError(
                source.where,
                [] if allow_missing else missing,
                [] if allow_surplus else surplus,
                mismatching,
            )
        read = source.reader({name: old for name, old in places.items() if name in saved})
        return map_entries(
            like,
            lambda name, old: _restored(read(name), saved[name], old) if name in saved else old,
            lambda name: _made_anew(read(name), saved[name]) if name in saved else None,
        )


def _places(like: Any) -> dict[str, Any]:
    """The arrays of a tree by name; None for the value of an empty slot."""
    places: dict[str, Any] = {}

    def note(name: str, old: Any) -> Any:
        places[name] = old
        return old

    map_entries(like, note, lambda name: places.setdefault(name, None))
    return places


def resume(directory: str | os.PathLike[str], like: Any) -> Any:
    """Loads the last checkpoint of a run, if there is one.

    Args:
      directory: The folder given to `save`.
      like: As in `load`.

    Returns:
      The tree of the last checkpoint, or `like` itself where nothing has been saved yet.

    Raises:
      CheckpointFormatError: As `load`.
      CheckpointMismatchError: As `load`.
    """
    return load(directory, like) if saved_steps(directory) else like


# --- entries ---------------------------------------------------------------------------------------


def _collect(tree: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {}

    def collect(name: str, array: Any) -> Any:
        before = entries.setdefault(name, array)
        if before is not array and _data(before) is not _data(array):
            raise ValueError(
                f"save: two different arrays would be saved as {name!r}. Give their variables "
                "different labels, or share one variable."
            )
        return array

    map_entries(tree, collect)
    return entries


def _data(array: Any) -> Any:
    return array.data_array if is_namedarray(array) else array


def _is_key(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))


def _describe(array: Any) -> dict[str, Any]:
    """What is checked when an entry is loaded: axes with sizes, dtype, kind of key."""
    named = array.named_shape if is_namedarray(array) else {}
    shape = array.positional_shape if is_namedarray(array) else array.shape
    described: dict[str, Any] = {
        "shape": list(shape),
        "axes": {str(name): size for name, size in named.items()},
        "dtype": str(array.dtype),
    }
    stored_dtype, stored_shape = _stored_dtype_and_shape(array)
    described |= {"stored_dtype": str(stored_dtype), "stored_shape": list(stored_shape)}
    if _is_key(array):
        described["key"] = str(jax.random.key_impl(_data(array)))
    return described


def _fits(saved: Mapping[str, Any], there: Mapping[str, Any], cast: bool) -> bool:
    return (
        saved["shape"] == there["shape"]
        and saved["axes"] == there["axes"]
        and saved.get("key") == there.get("key")
        and (cast or saved["dtype"] == there["dtype"])
    )


def _entry_text(entry: Mapping[str, Any]) -> str:
    axes = [str(size) for size in entry["shape"]]
    axes += [f"{name}:{size}" for name, size in entry["axes"].items()]
    return f"{entry['dtype']}{{{', '.join(axes)}}}"


def _plain(array: Any) -> Any:
    """The data with positional axes first, keys as their numbers."""
    data = array.with_positional_prefix().data_array if is_namedarray(array) else array
    return jax.random.key_data(data) if _is_key(data) else data


def _stored_dtype_and_shape(array: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    abstract = jax.eval_shape(_plain, array)
    return np.dtype(abstract.dtype), tuple(abstract.shape)


def _to_host(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(_plain(array))


def _order(entry: Mapping[str, Any], old: Any) -> list[int]:
    """For each axis of the old array's data, which axis of the saved array it is."""
    rank = len(entry["stored_shape"])
    if not is_namedarray(old):
        return list(range(rank))
    position = {axis: i for i, axis in enumerate([*range(len(entry["shape"])), *entry["axes"]])}
    order = [position[a if isinstance(a, int) else str(a)] for a in data_axes(old)]
    return [*order, *range(len(order), rank)]  # a key's numbers come last


def _restored(saved: Any, entry: Mapping[str, Any], old: Any) -> Any:
    """A saved array with the layout, dtype and placement of the old one."""
    new = _placed(saved.transpose(_order(entry, old)), _data(old), entry)
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


def _made_anew(saved: Any, entry: Mapping[str, Any]) -> Any:
    """A saved array for a slot, which says nothing about its layout."""
    data = jnp.asarray(np.array(saved))
    if "key" in entry:
        data = jax.random.wrap_key_data(data, impl=entry["key"])
    names = collections.OrderedDict(entry["axes"])
    return NamedArray(names, data) if names else data


# --- sources ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
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
def _opened(path: pathlib.Path, step: int | None) -> Iterator[_Source]:
    if path.is_file():
        yield _file_source(path)
        return
    steps = saved_steps(path)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(
            f"load: there is {wanted} in {path}; saved steps are {steps}. Give the folder that was "
            "given to save."
        )
    step = steps[-1] if step is None else step
    file = path / f"step_{step:010d}.safetensors"
    if file.exists():
        yield _file_source(file)
        return
    with _orbax_backend.OrbaxCheckpoint.opened(path, step) as checkpoint:
        where = _orbax_backend.orbax_folder(path) / str(step)
        description = checkpoint.description
        _check_format(where, description.get("format"), description.get("version"))
        entries = description["entries"]
        yield _Source(where, entries, lambda olds: _orbax_reader(checkpoint, entries, olds))


def _file_source(path: pathlib.Path) -> _Source:
    file = read_header(path)
    _check_format(path, file.metadata.get("format"), file.metadata.get("version"))
    return _Source(path, json.loads(file.metadata["entries"]), lambda _: file.read)


def _orbax_reader(
    checkpoint: Any, entries: Mapping[str, Any], olds: Mapping[str, Any]
) -> Callable[[str], Any]:
    wanted = {}
    for name, entry in entries.items():
        shape, sharding = tuple(entry["stored_shape"]), None
        old = olds.get(name)
        if old is not None:
            there = getattr(_data(old), "sharding", None)
            if there is not None and len(there.device_set) > 1 and "key" not in entry:
                sharding = _orbax_backend.permuted_sharding(there, _order(entry, old), len(shape))
        wanted[name] = (shape, jnp.dtype(entry["stored_dtype"]), sharding)
    arrays: dict[str, Any] = checkpoint.read(wanted)
    return arrays.__getitem__


def _check_format(where: pathlib.Path, name: str | None, version: str | None) -> None:
    if name != _FORMAT:
        raise CheckpointFormatError(
            f"{where} was not written by pz_toolshed.saving (its format is {name!r}). For weights of "
            "other libraries use their own readers."
        )
    if version != str(_VERSION):
        raise CheckpointFormatError(
            f"{where} has format version {version}; this pz-toolshed reads version {_VERSION}. "
            "Load it with the pz-toolshed that wrote it, or a newer one."
        )
