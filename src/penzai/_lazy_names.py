"""Names of a module that are imported when they are first used (PEP 562).

    if TYPE_CHECKING:
        from pz_viz.compatibility import show as show
    else:
        __getattr__, __dir__ = lazy_names(__name__, {"show": "pz_viz.compatibility:show"})

Type checkers and editors read the imports; the `else` keeps the functions from them, since a
module with a `__getattr__` that they see has every name they can think of.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping

__all__ = ["lazy_names"]


def lazy_names(
    module: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns a module's `__getattr__` and `__dir__`.

    Args:
      module: The module's name.
      homes: For each name where it lives: `"package.module:attribute"`, or `"package.module"` for
        a module itself.

    Returns:
      The two functions. A name is looked up once; then it stands in the module like any other.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(
                f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules[module]
            )
        home, _, attribute = homes[name].partition(":")
        value: object = importlib.import_module(home)
        if attribute:
            value = getattr(value, attribute)
        setattr(sys.modules[module], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[module]), *homes})

    return __getattr__, __dir__
