"""Where a display front end plugs in.

This wheel draws nothing itself. `Selection.show_selection` and `Selection.show_value` call what a
front end registered here; importing `pz_viz` registers one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["SelectionDisplay", "register_selection_display", "selection_display"]


class SelectionDisplay(Protocol):
    """What a front end provides."""

    def show_selection(self, selection: Any, *, ignore_exceptions: bool) -> None:
        """Displays a selection with boxes around the selected nodes."""

    def show_value(self, selection: Any, *, ignore_exceptions: bool) -> None:
        """Displays the whole tree of a selection, opened down to the selected nodes."""


_registered: list[SelectionDisplay] = []


def register_selection_display(display: SelectionDisplay) -> Callable[[], None]:
    """Makes a front end the current one.

    Args:
      display: The front end.

    Returns:
      A function that takes it away again, so that the one before is current.
    """
    _registered.append(display)

    def unregister() -> None:
        _registered.remove(display)

    return unregister


def selection_display() -> SelectionDisplay:
    """Returns the current front end.

    Raises:
      ImportError: If there is none.
    """
    if not _registered:
        raise ImportError(
            "Displaying a selection needs a front end, and none is registered. Install the wheel "
            "`pz-viz` and `import pz_viz`."
        )
    return _registered[-1]
