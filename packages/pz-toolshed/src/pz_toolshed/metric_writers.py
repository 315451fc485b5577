"""Callbacks that write the metrics of a training run to files.

    fit(trainer, batches, callbacks=[JsonLinesWriter("runs/1/log.jsonl"), CsvWriter("runs/1/log.csv")])

All write `step` and the event's metrics, and may be given to a run that is resumed: they append.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
from typing import Any

from pz_toolshed.training_loop import TrainingEvent

__all__ = ["CsvWriter", "JsonLinesWriter", "TensorBoardWriter"]


def _numbers(event: TrainingEvent) -> dict[str, float]:
    return {name: float(value) for name, value in event.metrics.items()}


class JsonLinesWriter:
    """Appends one JSON object per step; values that JSON lacks (NaN, infinity) become null."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = _in_made_folder(path)

    def __call__(self, event: TrainingEvent) -> None:
        """Writes one line."""
        row = {k: v if math.isfinite(v) else None for k, v in _numbers(event).items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": event.step, **row}) + "\n")


class CsvWriter:
    """Appends one row per step.

    The columns are those of the file's first row; a metric that turns up later (a validation loss,
    say) must be named from the start.

    Args:
      path: The file.
      columns: Names of metrics; default: those of the first event.
    """

    def __init__(self, path: str | os.PathLike[str], columns: list[str] | None = None):
        self._path = _in_made_folder(path)
        self._columns = columns

    def __call__(self, event: TrainingEvent) -> None:
        """Writes one row.

        Args:
          event: The step.

        Raises:
          ValueError: If it has a metric without a column.
        """
        row = _numbers(event)
        columns = self._columns_of_file() or ["step", *(self._columns or row)]
        unknown = [name for name in row if name not in columns]
        if unknown:
            raise ValueError(
                f"CsvWriter: {self._path} has the columns {columns}, and none for {unknown}. Name all "
                f"metrics from the start: CsvWriter(path, columns={[*columns[1:], *unknown]})."
            )
        is_new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            if is_new:
                writer.writeheader()
            writer.writerow({"step": event.step, **row})

    def _columns_of_file(self) -> list[str] | None:
        if not self._path.exists():
            return None
        with self._path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), None)


class TensorBoardWriter:
    """Writes scalars for TensorBoard, through tensorboardX (the extra `tensorboard`).

    Args:
      folder: The folder of the run.

    Raises:
      ImportError: If tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError(
                "TensorBoardWriter needs tensorboardX: pip install 'pz-toolshed[tensorboard]'; "
                "JsonLinesWriter and CsvWriter need nothing"
            ) from error
        self._writer: Any = tensorboardX.SummaryWriter(str(folder))

    def __call__(self, event: TrainingEvent) -> None:
        """Writes one value per metric."""
        for name, value in _numbers(event).items():
            self._writer.add_scalar(name, value, event.step)
        self._writer.flush()

    def close(self) -> None:
        """Waits until everything is in the file, and closes it."""
        self._writer.close()


def _in_made_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    made = pathlib.Path(path)
    made.parent.mkdir(parents=True, exist_ok=True)
    return made
