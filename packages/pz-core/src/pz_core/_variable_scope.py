"""Which traced function is running: what lets a closed-over variable be noticed.

Every variable remembers the scope that it was made in. While a function wrapped by one of our
transforms is traced, a scope of its own is current, and only variables of that scope may be read or
written: those that came in as arguments (they are bound anew), and those made inside.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

from pz_core.abstract_variables import ClosedOverVariableError

__all__ = ["TraceScope", "check_scope", "current_scope", "trace_scope"]


@dataclasses.dataclass(frozen=True, eq=False)
class TraceScope:
    """One run of a function under a transform.

    Attributes:
      transform: Name of the transform, such as `variable_jit`.
      function_name: Name of the function.
    """

    transform: str
    function_name: str


_CURRENT: contextvars.ContextVar[TraceScope | None] = contextvars.ContextVar(
    "pz_core_trace_scope", default=None
)

current_scope = _CURRENT.get


@contextlib.contextmanager
def trace_scope(transform: str, function_name: str) -> Iterator[TraceScope]:
    """Makes a new scope current for the body of the `with`."""
    scope = TraceScope(transform, function_name)
    token = _CURRENT.set(scope)
    try:
        yield scope
    finally:
        _CURRENT.reset(token)


def check_scope(variable: Any, made_in: TraceScope | None) -> None:
    """Refuses the use of a variable of another scope than the current one.

    Args:
      variable: The variable; its type and `label` go into the message.
      made_in: The scope in which it was made.

    Raises:
      ClosedOverVariableError: If a function under a transform reached it other than by argument.
    """
    scope = _CURRENT.get()
    if scope is not None and scope is not made_in:
        raise ClosedOverVariableError(
            f"{scope.transform} of {scope.function_name!r}: the function uses the "
            f"{type(variable).__name__} labelled {variable.label!r}, which is not among its "
            f"arguments. Pass the variable, or the tree that holds it, as an argument."
        )
