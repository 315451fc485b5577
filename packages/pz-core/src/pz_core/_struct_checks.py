"""What can be wrong with a class at decoration, and how to put it back as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "check_field_declarations",
    "check_init_overwrite",
    "check_pytree_methods",
    "class_restored_on_failure",
    "find_init",
]


@contextlib.contextmanager
def class_restored_on_failure(cls: type) -> Iterator[None]:
    """Gives a class its attributes back if the body of the `with` fails."""
    before = dict(vars(cls))
    try:
        yield
    except BaseException:
        for name in set(vars(cls)) - set(before):
            type.__delattr__(cls, name)
        for name, value in before.items():
            if name not in vars(cls) or vars(cls)[name] is not value:
                type.__setattr__(cls, name, value)
        raise


def find_init(cls: type, transparent: frozenset[type]) -> Callable[..., Any] | None:
    """Returns the `__init__` that `cls` inherits, passing over the classes in `transparent`."""
    for base in cls.__mro__[1:]:
        if base not in transparent and "__init__" in vars(base):
            return vars(base)["__init__"]  # type: ignore[no-any-return]
    return None


def check_init_overwrite(
    cls: type, inherited: Callable[..., Any] | None, is_generated: bool, error: type[Exception]
) -> None:
    """Refuses to replace an inherited constructor that somebody wrote by hand."""
    if inherited is None or is_generated:
        return
    raise error(
        f"@pytree_dataclass would replace the constructor that {cls.__qualname__} inherits, "
        f"{getattr(inherited, '__qualname__', inherited)!r} of module "
        f"{getattr(inherited, '__module__', '?')!r}, by a generated one. Pass "
        f"overwrite_parent_init=True to allow that, init=False to keep the inherited one, or write "
        f"an `__init__` in {cls.__qualname__}."
    )


def check_field_declarations(cls: type, flag: bool, error: type[Exception]) -> None:
    """Compares the fields that the class body annotates with those that the dataclass has."""
    names = [field.name for field in dataclasses.fields(cls)]
    own = [name for name in inspect.get_annotations(cls) if name in set(names)]
    if flag:
        if set(own) == set(names):
            raise error(
                f"@pytree_dataclass(has_implicitly_inherited_fields=True): {cls.__qualname__} "
                f"inherits no field implicitly; its own body annotates all of {names}. Remove the "
                f"flag, it is unnecessary."
            )
    elif own != names:
        raise error(
            f"@pytree_dataclass: the class body of {cls.__qualname__} must annotate every field in "
            f"the order of the dataclass; it annotates {own}, the dataclass has {names}. Repeat "
            f"the inherited fields in that order, or pass has_implicitly_inherited_fields=True."
        )


def check_pytree_methods(cls: type) -> None:
    """Requires the two methods that JAX calls."""
    missing = [
        name
        for name in ("tree_flatten_with_keys", "tree_unflatten")
        if not callable(getattr(cls, name, None))
    ]
    if missing:
        raise AttributeError(
            f"@pytree_dataclass: {cls.__qualname__} needs the methods `tree_flatten_with_keys` and "
            f"`tree_unflatten`; {' and '.join(missing)} not found. Subclass `Struct`, which "
            f"supplies them, or write them."
        )
