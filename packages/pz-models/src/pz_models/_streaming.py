"""Reads planned tensors into parameters, one after another.

Memory holds the parameters themselves and at most one stored tensor besides: a tensor that is a
parameter as a whole is read straight into its place, others go through one temporary. Places are
allocated so that JAX takes them over on CPU without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pz_core.variables import Parameter
from pz_models._placement import Placement
from pz_models._suggestions import near_misses
from pz_models.checkpoints import Checkpoint
from pz_models.errors import CheckpointError, MissingTensorError
from pz_models.parameter_plan import PlannedRead, Stacking, StoredParameter, parameter_label
from pz_named import named_axes as nx

__all__ = ["aligned_empty", "check_plan", "parameter_shapes", "read_parameters"]

_ALIGNMENT = 64  # what XLA's CPU client asks of memory that it takes over
_MOST_NAMED = 5


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array at an address that JAX on CPU uses without a copy."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    array: np.ndarray = raw[start : start + n_bytes].view(dtype).reshape(shape)
    return array


def check_plan(
    checkpoint: Checkpoint, reads: Sequence[PlannedRead], ignored: Callable[[str], bool]
) -> None:
    """Compares names and shapes with the checkpoint, before anything is allocated.

    Args:
      checkpoint: What will be read.
      reads: What is expected.
      ignored: Tells tensors that a checkpoint may hold without being a parameter.

    Raises:
      MissingTensorError: A tensor is missing.
      CheckpointError: A tensor has another shape, or is not part of the model.
    """
    expected = {read.key: read for read in reads}
    missing = [key for key in expected if key not in checkpoint.tensors]
    if missing:
        wanted = ", ".join(
            f"{checkpoint.describe(key)} of shape {expected[key].shape}"
            for key in missing[:_MOST_NAMED]
        )
        raise MissingTensorError(
            f"{checkpoint.name}: {len(missing)} tensors of the model are missing: {wanted}"
            f"{' …' if len(missing) > _MOST_NAMED else ''}."
            f"{near_misses(missing[0], set(checkpoint.tensors) - set(expected))}"
        )
    for key, read in expected.items():
        stored = checkpoint.tensors[key].shape
        if stored != read.shape:
            raise CheckpointError(
                f"{checkpoint.describe(key)} has shape {stored}; the configuration asks for"
                f" {read.shape}."
            )
    surplus = [key for key in checkpoint.tensors if key not in expected and not ignored(key)]
    if surplus:
        raise CheckpointError(
            f"{checkpoint.name}: {len(surplus)} tensors are no part of the model that the"
            f" configuration describes: {', '.join(surplus[:_MOST_NAMED])}"
            f"{' …' if len(surplus) > _MOST_NAMED else ''}.{near_misses(surplus[0], expected)}"
        )


def parameter_shapes(
    reads: Sequence[PlannedRead], *, name: str, stacking: Stacking
) -> dict[str, dict[str, int]]:
    """Named shapes of all parameters by label; arguments as in `read_parameters`."""
    shapes = {}
    for read in reads:
        for block, entry in read.parts:
            stack = {"blocks": stacking.size} if stacking.size and block is not None else {}
            label = parameter_label(name, block, entry, stacking)
            shapes[label] = stack | entry.element_axes | dict(entry.axes)
    return shapes


def read_parameters(
    checkpoint: Checkpoint,
    reads: Sequence[PlannedRead],
    *,
    name: str,
    stacking: Stacking,
    dtype: Any,
    place: Placement | None = None,
    progress: bool | None = None,
) -> list[Parameter]:
    """Reads all planned tensors.

    Args:
      checkpoint: What to read from; `check_plan` has accepted it.
      reads: What to read.
      name: Name of the model, which prefixes labels.
      stacking: How the blocks are put together; those of a stack lie along an axis "blocks".
      dtype: Dtype of the parameters.
      place: Called as `place(label, axis_names, array)`, puts a finished array on its devices; by
        default JAX's default device.
      progress: Whether to show a progress bar; None shows one when it takes over a second.
    """
    places: dict[str, _Place] = {}
    parameters: list[Parameter] = []
    put = place or _put_on_default_device
    with _progress_bar(checkpoint, reads, progress) as bar:
        for read in reads:
            targets = {}
            for block, entry in read.parts:
                label = parameter_label(name, block, entry, stacking)
                in_stack = block is not None and stacking.size > 0
                if label not in places:
                    places[label] = _Place(entry, stacking.size if in_stack else 0, dtype)
                turn = stacking.turn(block) if block is not None and in_stack else None
                targets[label] = (entry, places[label].slot(turn, entry))
            _fill(checkpoint, read, list(targets.values()), dtype)
            for label in targets:
                if places[label].is_complete:
                    done = places.pop(label)
                    array = put(label, done.names, done.array)
                    parameters.append(Parameter(value=nx.wrap(array, *done.names), label=label))
            bar.update(checkpoint.tensors[read.key].n_bytes)
    return parameters


class _Place:
    """Memory of one parameter, filled turn by turn of its stack and element by element."""

    def __init__(self, entry: StoredParameter, turns: int, dtype: Any):
        parts = ({"blocks": turns} if turns else {}) | entry.element_axes
        self.names = (*parts, *entry.axes)
        self.array = aligned_empty((*parts.values(), *entry.sizes), dtype)
        self.missing = math.prod(parts.values())

    def slot(self, turn: int | None, entry: StoredParameter) -> np.ndarray:
        self.missing -= 1
        index = (*(() if turn is None else (turn,)), *entry.element_index)
        view: np.ndarray = self.array[index]
        return view

    @property
    def is_complete(self) -> bool:
        return self.missing == 0


def _fill(
    checkpoint: Checkpoint,
    read: PlannedRead,
    targets: list[tuple[StoredParameter, np.ndarray]],
    dtype: Any,
) -> None:
    """Reads one stored tensor into its places: directly if it has only one, whole."""
    if len(targets) == 1 and targets[0][0].is_whole:
        checkpoint.read_into(read.key, targets[0][1].reshape(read.shape))
        return
    whole = np.empty(read.shape, dtype)
    checkpoint.read_into(read.key, whole)
    for entry, target in targets:
        target[...] = whole.reshape(entry.view_shape)[entry.region].reshape(entry.sizes)


def _put_on_default_device(label: str, names: tuple[str, ...], array: np.ndarray) -> jax.Array:
    # device_put takes aligned memory over; nothing else refers to it, so nobody can change it.
    placed: jax.Array = jax.device_put(array)
    return placed


def _progress_bar(
    checkpoint: Checkpoint, reads: Sequence[PlannedRead], progress: bool | None
) -> Any:
    import tqdm

    return tqdm.tqdm(
        total=sum(checkpoint.tensors[read.key].n_bytes for read in reads),
        desc=f"Loading {checkpoint.name.rsplit('/', 1)[-1]}",
        unit="B",
        unit_scale=True,
        mininterval=0.2,
        delay=0.0 if progress else 1.0,
        disable=None if progress is None else not progress,  # None: where there is no terminal
    )
