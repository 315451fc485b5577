"""Checkpoints through orbax: for arrays spread over processes, and in the background.

Orbax keeps each step in a folder of its own, which it renames when it is complete. The entries have
the same names and descriptions as in the safetensors files.
"""

from __future__ import annotations

import contextlib
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pz_toolshed.checkpoint_errors import CheckpointFormatError, CheckpointWriteError

__all__ = [
    "OrbaxCheckpoint",
    "finish_saving",
    "orbax_folder",
    "orbax_steps",
    "permuted_sharding",
    "start_saving",
]

# What orbax and tensorstore below it raise when a file cannot be written or read: the system's own
# errors, and their texts as ValueError or RuntimeError.
_STORAGE_ERRORS = (OSError, ValueError, RuntimeError)


def orbax_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the orbax checkpoints of a run are."""
    return folder.absolute() / "orbax"


def orbax_steps(folder: pathlib.Path) -> list[int]:
    """The steps of which orbax has complete checkpoints."""
    try:
        names = [path.name for path in orbax_folder(folder).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "saving with backend=\"orbax\" needs orbax: pip install 'pz-toolshed[checkpointing]'"
        ) from error
    return orbax.checkpoint


def start_saving(
    folder: pathlib.Path,
    step: int,
    arrays: Mapping[str, Any],
    description: Mapping[str, Any],
    keep: int,
) -> Any:
    """Starts to save; all processes call it together.

    Args:
      folder: The folder of the run.
      step: The step.
      arrays: The arrays by name.
      description: What is known of them, plain data.
      keep: How many steps to keep.

    Returns:
      Orbax's manager, for `finish_saving`.

    Raises:
      CheckpointWriteError: If the system refuses to write.
    """
    ocp = _orbax()
    stored = {_key(name): _storable(array) for name, array in arrays.items()}
    args = ocp.args.Composite(
        arrays=ocp.args.StandardSave(stored), description=ocp.args.JsonSave(dict(description))
    )
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    with _as_write_error(orbax_folder(folder) / str(step)):
        manager = ocp.CheckpointManager(orbax_folder(folder), options=options)
        manager.save(step, args=args, force=True)
    return manager


def finish_saving(manager: Any, path: pathlib.Path) -> None:
    """Waits until a checkpoint is complete, and closes the manager.

    Args:
      manager: What `start_saving` returned.
      path: The folder of the checkpoint.

    Raises:
      CheckpointWriteError: If the system refused to write.
    """
    with _as_write_error(path):
        try:
            manager.wait_until_finished()
        finally:
            manager.close()


@contextlib.contextmanager
def _as_write_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except _STORAGE_ERRORS as error:
        raise CheckpointWriteError(
            f"could not write the checkpoint {path}: {error}. Earlier checkpoints are as they were. "
            "Make room or make the folder writable, then save again."
        ) from error


@contextlib.contextmanager
def _as_format_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (*_STORAGE_ERRORS, KeyError) as error:
        raise CheckpointFormatError(
            f"{path} is damaged, or was not written by pz_toolshed.saving: {error}. Load another "
            "step, or copy the folder again."
        ) from error


def _key(name: str) -> str:
    """A name as orbax may use it in file names."""
    return urllib.parse.quote(name, safe="").replace(".", "%2E")


def _storable(array: Any) -> Any:
    # An array on this process's devices alone is the same in all processes (a counter, a key).
    is_spread = isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
    return array if is_spread else np.asarray(array)


class OrbaxCheckpoint:
    """One complete checkpoint, opened by `opened`.

    Attributes:
      path: Its folder.
      description: What was given to `start_saving`.
    """

    def __init__(self, manager: Any, path: pathlib.Path):
        self._manager = manager
        self.path = path
        ocp = _orbax()
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        with _as_format_error(path):
            self.description: dict[str, Any] = manager.restore(int(path.name), args=args)[
                "description"
            ]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: pathlib.Path, step: int) -> Iterator[OrbaxCheckpoint]:
        """Opens a step of a run."""
        ocp = _orbax()
        with ocp.CheckpointManager(
            orbax_folder(folder), options=ocp.CheckpointManagerOptions(create=False)
        ) as manager:
            yield cls(manager, orbax_folder(folder) / str(step))

    def read(self, wanted: Mapping[str, tuple[tuple[int, ...], Any, Any]]) -> dict[str, Any]:
        """Reads arrays.

        Args:
          wanted: For each name the shape, the dtype, and the sharding of the result; None reads a
            NumPy array.

        Returns:
          The arrays by name.

        Raises:
          CheckpointFormatError: If they cannot be read.
        """
        ocp = _orbax()
        struct: Any = jax.ShapeDtypeStruct
        # Orbax wants to be told of every entry; those that are not wanted are read as they are.
        abstract = {
            _key(name): np.zeros(shape, dtype)
            if sharding is None
            else struct(shape, dtype, sharding=sharding)
            for name, (shape, dtype, sharding) in wanted.items()
        }
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        with _as_format_error(self.path):
            restored = self._manager.restore(int(self.path.name), args=args)["arrays"]
        return {name: restored[_key(name)] for name in wanted}


def permuted_sharding(sharding: Any, order: list[int], rank: int) -> Any:
    """The sharding that becomes `sharding` when the axes are transposed by `order`."""
    if order == sorted(order) or not isinstance(sharding, NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    before: list[Any] = [None] * rank
    for new_axis, old_axis in enumerate(order):
        before[old_axis] = spec[new_axis]
    return NamedSharding(sharding.mesh, PartitionSpec(*before))  # type: ignore[no-untyped-call]
