"""Bounded one-line text for structs, arrays and variables.

The result stays short in width and depth, never copies an array from its device, and is safe
under tracing, so a `repr` in an error message or a debugger costs nothing.
"""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = ["describe_type", "named_call_text", "one_line"]

_MAX_DEPTH = 6
_MAX_OTHER = 80
_MAX_FIELDS = 12


def describe_type(value: Any) -> str:
    """Returns the qualified name of the type of a value, for error messages."""
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


class _BoundedRepr(reprlib.Repr):
    """The standard bounded repr, taught about arrays and about anything with named fields."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = _MAX_DEPTH
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = 8
        self.maxstring = self.maxother = _MAX_OTHER

    def repr1(self, x: Any, level: int) -> str:
        """Dispatches on what `x` offers; the parent dispatches on the type's name."""
        if hasattr(type(x), "_fields_for_text"):
            return self._call_text(x, level)
        if isinstance(getattr(x, "shape", None), tuple) and hasattr(x, "dtype"):
            if not hasattr(x, "named_shape"):
                return f"<{x.dtype}[{','.join(map(str, x.shape))}]>"
        try:
            return super().repr1(x, level)
        except Exception as exc:  # the reprs of foreign objects may fail in any way
            return f"<{type(x).__name__}: repr raised {type(exc).__name__}>"

    def _call_text(self, x: Any, level: int) -> str:
        kind = type(x)
        if not getattr(kind.__repr__, "_is_bounded_text", False):  # the class has its own repr
            return self.repr_instance(x, level)
        if level <= 0:
            return f"{kind.__qualname__}(...)"
        fields = x._fields_for_text()
        shown = [f"{name}={self.repr1(value, level - 1)}" for name, value in fields[:_MAX_FIELDS]]
        if len(fields) > _MAX_FIELDS:
            shown.append("...")
        return f"{kind.__qualname__}({', '.join(shown)})"


_PRINTER = _BoundedRepr()


def one_line(value: Any) -> str:
    """Returns a short one-line text of any value."""
    return _PRINTER.repr(value)


def named_call_text(self: Any) -> str:
    """Serves as `__repr__` of classes that offer `_fields_for_text`."""
    return one_line(self)


named_call_text._is_bounded_text = True  # type: ignore[attr-defined]
