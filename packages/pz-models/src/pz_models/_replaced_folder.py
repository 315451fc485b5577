"""Writes a folder so that it appears as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

__all__ = ["replaced_folder"]


@contextlib.contextmanager
def replaced_folder(
    folder: pathlib.Path, is_replaced: Callable[[str], bool]
) -> Iterator[pathlib.Path]:
    """An empty folder beside `folder`, which takes its place when the block ends without an error.

    Whatever goes wrong before, `folder` stays as it was. Files of it that the block did not write
    are taken over, except those that `is_replaced` names.

    Args:
      folder: What is written; need not exist.
      is_replaced: Tells from a file's name whether it belongs to the old content.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{kind}-{mark}") for kind in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            _take_over(folder, fresh, is_replaced)
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _take_over(old: pathlib.Path, fresh: pathlib.Path, is_replaced: Callable[[str], bool]) -> None:
    written = {path.name for path in fresh.iterdir()}

    def left_out(directory: str, names: list[str]) -> list[str]:
        at_the_top = pathlib.Path(directory) == old
        return [name for name in names if at_the_top and (name in written or is_replaced(name))]

    shutil.copytree(
        old,
        fresh,
        symlinks=True,
        ignore=left_out,
        copy_function=_link_or_copy,
        dirs_exist_ok=True,
    )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
