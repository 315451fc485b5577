"""Short names for public objects: `pz.nn.Linear(...)` in round-trip output.

Treescope prints where an object was defined. Where an umbrella package offers it under a shorter
name, that name is what a reader would type. `Penzai`'s own umbrella is found by itself:

    add_public_names(my_package.api, "api")     # my_package._x.y.Foo prints as api.Foo
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types

from treescope import canonical_aliases

__all__ = ["add_public_names"]

_UMBRELLA = "penzai.pz"
_NAMESPACES = {"": "pz", "nn": "pz.nn", "nx": "pz.nx", "chk": "pz.chk", "ts": "pz.ts"}


@dataclasses.dataclass(frozen=True)
class _ShownAs(canonical_aliases.ModuleAttributePath):  # type: ignore[misc]  # untyped base
    """An alias that prints the module under another name.

    Attributes:
      namespace: What is printed instead of the module's name.
    """

    namespace: str = ""

    def __str__(self) -> str:
        return ".".join((self.namespace, *self.attribute_path))


def add_public_names(module: types.ModuleType, namespace: str) -> int:
    """Prints a module's public classes and functions under a short name.

    Names that the module has not loaded yet are left alone, and treescope's own objects keep
    their names. Calling it again adds nothing.

    Args:
      module: An imported module whose public names are to be used.
      namespace: What to print for the module, such as `pz.nn`.

    Returns:
      How many names were added.
    """
    public = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
    added = 0
    for name in public:
        value = vars(module).get(name)
        if not isinstance(value, (type, types.FunctionType)):
            continue
        home = (value.__module__ or "").split(".")[0]
        if home in ("treescope", "jax", "numpy", "builtins", "typing"):
            continue
        path = _ShownAs(module.__name__, (name,), namespace)
        if canonical_aliases.lookup_alias(value, infer_from_attributes=False) is None:
            canonical_aliases.add_alias(value, path, on_conflict="ignore")
            added += 1
    return added


def add_umbrella_names() -> None:
    """Adds the names of Penzai's umbrella once it has been imported; costs next to nothing."""
    umbrella = sys.modules.get(_UMBRELLA)
    if umbrella is not None and not getattr(umbrella.__spec__, "_initializing", False):
        _add_umbrella_names_once(umbrella)


@functools.cache
def _add_umbrella_names_once(umbrella: types.ModuleType) -> None:
    # The narrow namespaces first: an object keeps the first name that it is given.
    for attribute, namespace in reversed(_NAMESPACES.items()):
        module = vars(umbrella).get(attribute) if attribute else umbrella
        if isinstance(module, types.ModuleType):
            add_public_names(module, namespace)
