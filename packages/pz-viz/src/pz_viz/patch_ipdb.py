"""Rich output in IPython's debugger.

After `patch_ipdb()` an expression typed in `%debug` or `breakpoint()` displays as a cell's last
line does. IPython is imported only when a function here is called.
"""

from __future__ import annotations

from typing import Any

__all__ = ["displayhook_with_ipython", "patch_ipdb", "unpatch_ipdb"]

_ORIGINAL = "_pz_viz_original_displayhook"


def displayhook_with_ipython(self: Any, obj: Any) -> None:
    """Displays a value as IPython would; stands in for `Pdb.displayhook`."""
    del self
    if obj is None:
        return
    import IPython.display

    IPython.display.display(obj)


def _debugger_class() -> Any:
    try:
        from IPython.core import debugger
    except ImportError as exc:
        raise ImportError(
            "patch_ipdb changes IPython's debugger, and IPython is not installed. "
            'Install it with: pip install "pz-viz[ipython]"'
        ) from exc
    return debugger.Pdb


def patch_ipdb(force: bool = False) -> None:
    """Makes the debugger display values richly.

    Args:
      force: Whether to patch again if the debugger is patched already. The original hook is kept,
        so one `unpatch_ipdb` restores it.

    Raises:
      ValueError: If it is patched already and `force` is false.
    """
    debugger = _debugger_class()
    if _ORIGINAL in vars(debugger):
        if not force:
            raise ValueError(
                "patch_ipdb: the debugger is patched already. Call unpatch_ipdb() first, or pass "
                "force=True."
            )
    else:
        setattr(debugger, _ORIGINAL, debugger.displayhook)
    debugger.displayhook = displayhook_with_ipython


def unpatch_ipdb() -> None:
    """Restores the debugger's own display.

    Raises:
      AssertionError: If it is not patched, or somebody else replaced the hook since.
    """
    debugger = _debugger_class()
    if _ORIGINAL not in vars(debugger):
        raise AssertionError("unpatch_ipdb: the debugger is not patched.")
    if debugger.displayhook is not displayhook_with_ipython:
        raise AssertionError(
            f"unpatch_ipdb: somebody replaced the hook by {debugger.displayhook!r} since; "
            "undo that first."
        )
    debugger.displayhook = getattr(debugger, _ORIGINAL)
    delattr(debugger, _ORIGINAL)
