"""The arguments of a call as one value, for layers that stand for functions of several arguments.

A layer takes one argument. Layers converted from other libraries take an `ArgsAndKwargs`:

    y = layer(ArgsAndKwargs.capture(x, train=False))
"""

from __future__ import annotations

from typing import Any

from pz_core.struct import Struct, pytree_dataclass

__all__ = ["ArgsAndKwargs"]


@pytree_dataclass
class ArgsAndKwargs(Struct):
    """The arguments of a call as one value.

    Attributes:
      args: Positional arguments.
      kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def capture(cls, *args: Any, **kwargs: Any) -> ArgsAndKwargs:
        """Collects the arguments of this call."""
        return cls(args, kwargs)
