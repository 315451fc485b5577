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

import json
import os
import pathlib
import warnings
from typing import Any, Literal, TypeAlias, get_args

from pz_toolshed import _orbax_backend
from pz_toolshed._checkpoint_entries import map_entries
from pz_toolshed._checkpoint_sources import (
    FORMAT,
    VERSION,
    data_of,
    describe,
    entry_text,
    file_name,
    file_steps,
    fits,
    made_anew,
    opened,
    plain,
    restored,
    steps_of,
    stored_dtype_and_shape,
    to_host,
)
from pz_toolshed._safetensors_file import remove_leftovers, write_atomically
from pz_toolshed.checkpoint_errors import CheckpointFormatError as CheckpointFormatError
from pz_toolshed.checkpoint_errors import CheckpointMismatchError as CheckpointMismatchError
from pz_toolshed.checkpoint_errors import CheckpointWriteError as CheckpointWriteError

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
      ValueError: If there is no array to save, two different arrays would have one name, or the step
        is below a saved one (for orbax: or equal to it).
      CheckpointWriteError: If the system refuses to write; earlier checkpoints are unharmed.
    """
    if backend not in get_args(Backend):
        raise ValueError(
            f"save: there is no backend {backend!r}. Give one of {', '.join(get_args(Backend))}."
        )
    if backend == "orbax":
        return save_in_background(directory, tree, step=step, keep=keep).wait()
    folder = pathlib.Path(directory)
    step = _checked_step(folder, step, keep)
    entries = _collect(tree)
    path = folder / file_name(step)
    write_atomically(
        path,
        {name: stored_dtype_and_shape(array) for name, array in entries.items()},
        lambda name: to_host(entries[name]),
        {
            "format": FORMAT,
            "version": str(VERSION),
            "step": str(step),
            "entries": json.dumps({name: describe(array) for name, array in entries.items()}),
        },
    )
    remove_leftovers(folder)
    for old in [s for s in file_steps(folder) if s != step][: -(keep - 1) or None]:
        try:
            (folder / file_name(old)).unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"save: could not remove the old checkpoint {old}: {error}", stacklevel=2)
    return path


class PendingSave:
    """A checkpoint that is being written by orbax in the background."""

    def __init__(self, manager: Any, path: pathlib.Path):
        self._manager = manager
        self._path = path

    def wait(self) -> pathlib.Path:
        """Waits until the checkpoint is complete.

        Returns:
          Its folder.

        Raises:
          CheckpointWriteError: If it could not be written; earlier checkpoints are unharmed.
        """
        _orbax_backend.finish_saving(self._manager, self._path)
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
      CheckpointWriteError: As `save`; what fails later is raised by `PendingSave.wait`.
      ImportError: If orbax is not installed.
    """
    folder = pathlib.Path(directory)
    step = _checked_step(folder, step, keep)
    if step in _orbax_backend.orbax_steps(folder):
        raise ValueError(
            f"save: step {step} is saved in {folder} already, and orbax cannot replace a step without "
            f"losing it for a moment. Save under a later step, e.g. step={step + 1}."
        )
    entries = _collect(tree)
    description = {
        "format": FORMAT,
        "version": str(VERSION),
        "entries": {name: describe(array) for name, array in entries.items()},
    }
    arrays = {name: plain(array) for name, array in entries.items()}
    manager = _orbax_backend.start_saving(folder, step, arrays, description, keep)
    return PendingSave(manager, _orbax_backend.orbax_folder(folder) / str(step))


def _checked_step(folder: pathlib.Path, step: int | None, keep: int) -> int:
    if keep < 1:
        raise ValueError(f"save: keep must be at least 1, since this checkpoint stays; got {keep}.")
    try:
        steps = saved_steps(folder)
    except OSError as error:
        raise CheckpointWriteError(
            error.errno, f"save: {folder} is no folder that can be read: {error.strerror}"
        ) from error
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
    return steps_of(pathlib.Path(directory))


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
    with opened(pathlib.Path(directory), step) as source:
        places = _places(like)
        saved = source.entries
        missing = [name for name in places if name not in saved]
        surplus = [name for name in saved if name not in places]
        mismatching = {
            name: (entry_text(saved[name]), entry_text(describe(old)))
            for name, old in places.items()
            if name in saved and old is not None and not fits(saved[name], describe(old), cast)
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
            lambda name, old: restored(read(name), saved[name], old) if name in saved else old,
            lambda name: made_anew(read(name), saved[name]) if name in saved else None,
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


def _collect(tree: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {}

    def collect(name: str, array: Any) -> Any:
        before = entries.setdefault(name, array)
        if before is not array and data_of(before) is not data_of(array):
            raise ValueError(
                f"save: two different arrays would be saved as {name!r}. Give their variables "
                "different labels, or share one variable."
            )
        return array

    map_entries(tree, collect)
    if not entries:
        raise ValueError(
            f"save: there is no array in this {type(tree).__name__} to save. Save the model with its "
            "parameters in it, not one whose slots are empty; bind_variables puts them back."
        )
    return entries
