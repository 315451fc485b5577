"""Lifts a whole module of positional functions to named arrays.

The idea: attribute access on the wrapper is `nmap(getattr(module, name))`.

    import jax.numpy as jnp
    from pz_toolshed import auto_nmap

    njnp = auto_nmap.wrap_module(jnp)
    q, r = njnp.linalg.qr(matrices.untag("row", "column"))
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

from pz_named.named_axes import nmap

__all__ = ["AutoNmapModuleWrapper", "wrap_module"]

_CONSTANT_TYPES = (bool, int, float, complex, type(None))


@functools.cache
def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    # Cached: a jit cache keyed on the function's identity finds it again.
    return nmap(function)


@dataclasses.dataclass
class AutoNmapModuleWrapper:
    """A module whose functions take and return named arrays.

    Functions are lifted with `nmap`, submodules wrapped in turn. Classes (dtypes among them) and
    numeric constants such as `pi` or `newaxis` are passed on as they are, so `njnp.float32` is a
    dtype here too.
    """

    _module: types.ModuleType

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_module":
            # Asked for by copy and pickle before `_module` is set.
            raise AttributeError(name)
        value = getattr(self._module, name)
        if isinstance(value, types.ModuleType):
            return AutoNmapModuleWrapper(value)
        if isinstance(value, type) or isinstance(value, _CONSTANT_TYPES):
            return value
        if callable(value):
            try:
                return _lifted(value)
            except TypeError:  # not hashable
                return nmap(value)
        raise AttributeError(
            f"{self._module.__name__}.{name} is a {type(value).__name__}; a module wrapped by "
            "auto_nmap has only functions, submodules, classes and numeric constants. Use "
            f"{self._module.__name__}.{name} itself."
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dir(self._module)]


def wrap_module(module: types.ModuleType) -> AutoNmapModuleWrapper:
    """Wraps a module so that its functions act on named arrays.

    Args:
      module: A module of functions on positional arrays, such as `jax.numpy` or `jax.random`.

    Returns:
      An object with the module's attributes, each function lifted by `nmap`.
    """
    return AutoNmapModuleWrapper(module)
