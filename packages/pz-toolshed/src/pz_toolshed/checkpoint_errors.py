"""What can go wrong when checkpoints and adapters are written and read.

`saving` and `peft_format` offer these names too.

    try:
        model = saving.load("runs/1", like=model)
    except CheckpointMismatchError as error:
        print(error.missing, error.surplus, error.mismatching)

Whatever goes wrong, checkpoints that were complete before stay as they were, and so does `like`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

__all__ = [
    "AdapterFormatError",
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
]


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier ones are as they were.

        save("/full-disk/run", model)      # error: No space left on device

    Repair: what the system's message says (make room, make the folder writable), then save again.
    """


class CheckpointFormatError(ValueError):
    """A file is no checkpoint, or a damaged one.

        load("runs/1", like=model)         # error: the header promises 500 bytes, the file has 10

    Repair: load an earlier step (`load(..., step=...)`), or copy the file again.
    """


class AdapterFormatError(ValueError):
    """An adapter folder is damaged, or uses what is not supported here (biases, other methods, ...).

        load_adapters("ia3-adapters", model)     # error: peft_type is 'IA3'

    Repair: merge such adapters with peft and load the merged weights.
    """


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
