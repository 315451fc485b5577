"""Stand-ins for the submodules of a foreign module while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pz_toolshed.args_and_kwargs import ArgsAndKwargs

__all__ = ["ModuleStub", "UnconvertibleModuleError", "check_input", "failures_explained"]


def check_input(value: Any, name: str) -> None:
    """Raises TypeError unless a converted module, called `name`, is given an `ArgsAndKwargs`."""
    if not isinstance(value, ArgsAndKwargs):
        raise TypeError(
            f"{name}: the input must be an ArgsAndKwargs, got a {type(value).__name__}. Call it with "
            "ArgsAndKwargs.capture(x, ...)."
        )


_EXPLANATION = "A converted module was running"


@contextlib.contextmanager
def failures_explained(name: str, submodules: Collection[str]) -> Iterator[None]:
    """Adds to whatever a converted module raises what its code may not do with its submodules."""
    try:
        yield
    except Exception as error:
        noted = any(note.startswith(_EXPLANATION) for note in getattr(error, "__notes__", ()))
        if submodules and not noted:
            error.add_note(
                f"{_EXPLANATION}, {name}: stand-ins took the places of its submodules "
                f"{', '.join(submodules)}. They can be called and asked for attributes, but not be "
                "given to transformations as trees (nnx.scan, nnx.vmap, eqx.partition, ...). If that "
                f"is what failed, convert the parts around {name} only, or replace it by a layer."
            )
        raise


class UnconvertibleModuleError(TypeError):
    """A part of a module of another library has no counterpart as a layer.

        from_nnx(Model(layers=(block_a, block_b)))    # error: Model.layers is a tuple of modules

    Repair: what the message says about the named part; often another container.
    """


class ModuleStub:
    """Stands where a submodule was; calls go to the layer that replaces it.

    Other attributes are those of the submodule rebuilt from the layer, as long as the layer is a
    converted one.
    """

    def __init__(
        self,
        name: str,
        layer: Any,
        side_inputs: Mapping[str, Any],
        rebuild: Callable[[Any], Any] | None,
    ):
        self._name = name
        self._layer = layer
        self._side_inputs = side_inputs
        self._rebuild = rebuild

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer(ArgsAndKwargs(args, kwargs), **self._side_inputs)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") or self._rebuild is None:
            raise AttributeError(
                f"{attribute!r} was asked of the submodule {self._name!r}, which is now a "
                f"{type(self._layer).__name__} and can only be called. Replace the module that asks "
                "instead."
            )
        return getattr(self._rebuild(self._layer), attribute)
