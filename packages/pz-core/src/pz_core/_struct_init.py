"""Hand-written constructors of frozen classes.

A frozen dataclass forbids `self.x = value`, also in `__init__`. The wrapper made here lends the
object a mutable subclass as its `__class__` while the constructor runs:

    object.__setattr__(self, "__class__", mutable_version_of(cls))
    original_init(self, *args, **kwargs)
    object.__setattr__(self, "__class__", cls)

Copying from a temporary object was rejected: a `self` that escapes from the constructor (into a
closure, say) would then be another object than the one that the caller receives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from pz_core._struct_codegen import UNDECORATED

__all__ = ["wrap_init"]

_IS_MUTABLE = "_is_mutable_while_in_init"
_PROXY_NAME = "_MutableInitProxy"


def _mutable_version_of(cls: type) -> type:
    """Returns the subclass of `cls` whose instances accept assignment; one per class."""
    found = cls.__dict__.get(_PROXY_NAME)
    if found is None:
        namespace = {
            "__module__": cls.__module__,
            "__qualname__": f"{cls.__qualname__}.{_PROXY_NAME}",
            "__doc__": f"A `{cls.__qualname__}` whose constructor is still running.",
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
            "__eq__": object.__eq__,
            "__hash__": None,
            _IS_MUTABLE: True,
            UNDECORATED: None,
        }
        found = type(cls)(_PROXY_NAME, (cls,), namespace)
        type.__setattr__(cls, _PROXY_NAME, found)
    return found


def _check_and_trim_fields(self: Any, cls: type) -> None:
    """Keeps the fields in order, drops whatever else the constructor set on the object."""
    values = {}
    for field in dataclasses.fields(cls):
        try:
            values[field.name] = getattr(self, field.name)
        except AttributeError as exc:
            if field.default_factory is dataclasses.MISSING:
                raise AttributeError(
                    f"{cls.__qualname__}.__init__ left the field {field.name!r} without a value; "
                    f"every dataclass field must be set. Assign `self.{field.name} = ...` in "
                    f"`__init__`, or give the field a default."
                ) from exc
            values[field.name] = field.default_factory()
    slots = self.__dict__
    slots.clear()
    slots.update(values)


def wrap_init(init: Callable[..., None], *, allow_assignment: bool) -> Callable[..., None]:
    """Wraps a constructor so that it may assign to `self` and must set every field.

    Args:
      init: The `__init__` to run.
      allow_assignment: Whether `self` is made mutable meanwhile.

    Returns:
      An `__init__` with the name, docstring and signature of the original.
    """

    @functools.wraps(init)
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if getattr(cls, _IS_MUTABLE, False):  # reached by `super().__init__` of another one
            init(self, *args, **kwargs)
            return
        if allow_assignment:
            object.__setattr__(self, "__class__", _mutable_version_of(cls))
        try:
            init(self, *args, **kwargs)
        finally:
            if allow_assignment:
                object.__setattr__(self, "__class__", cls)
        _check_and_trim_fields(self, cls)

    return __init__
