"""Turns an equinox module into a tree of layers that still run its code.

    net = from_equinox(module)
    y = net(ArgsAndKwargs.capture(x))
    edited = select(net).at(lambda n: n.submodules["layers[1]"]).set(other_layer)

Each module becomes a layer with its own floating-point arrays as parameters; in its method, the fields
that were submodules are stand-ins that call the layers in the tree. Not supported, and named when
found: modules with state (`eqx.nn.StateIndex`) and tied weights (`eqx.nn.Shared`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.colors import color_from_string
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter
from pz_nn.layer import Layer
from pz_toolshed._array_leaves import is_array
from pz_toolshed._module_stubs import ModuleStub, check_input, failures_explained
from pz_toolshed._module_stubs import UnconvertibleModuleError as UnconvertibleModuleError
from pz_toolshed.args_and_kwargs import ArgsAndKwargs as ArgsAndKwargs

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        "pz_toolshed.equinox_modules needs equinox: pip install 'pz-toolshed[equinox]'"
    ) from error

__all__ = ["ArgsAndKwargs", "ConvertedEquinoxModule", "UnconvertibleModuleError", "from_equinox"]


@dataclasses.dataclass(frozen=True)
class _Field:
    """How a field is put together again: its structure, and for each leaf where it comes from."""

    name: str
    treedef: Any
    leaves: tuple[tuple[str, Any], ...]


@pytree_dataclass
class ConvertedEquinoxModule(Layer):
    """Runs an equinox module whose submodules are layers.

    Attributes:
      module_class: The module's class.
      fields: How its fields are put together.
      parameters: Its own floating-point arrays, by field and path.
      constants: Its other arrays.
      submodules: The layers of its submodules, by field and path (`"head"`, `"layers[0]"`). A
        replacement is called with an `ArgsAndKwargs`.
    """

    module_class: type = dataclasses.field(metadata={"pytree_node": False})
    fields: tuple[_Field, ...] = dataclasses.field(metadata={"pytree_node": False})
    parameters: dict[str, Any]
    constants: dict[str, Any]
    submodules: dict[str, Any]

    def treescope_color(self) -> str:
        """A colour for the module's class."""
        return color_from_string(self.module_class.__name__)

    def __call__(self, args_and_kwargs: ArgsAndKwargs, /, **side_inputs: Any) -> Any:
        """Calls the module.

        Args:
          args_and_kwargs: Its arguments.
          **side_inputs: Given to the layers of the submodules.

        Returns:
          What the module returns.

        Raises:
          TypeError: If the argument is no `ArgsAndKwargs`.
        """
        check_input(args_and_kwargs, self.module_class.__name__)
        module = _rebuilt(self, side_inputs)
        with failures_explained(self.module_class.__name__, self.submodules):
            return module(*args_and_kwargs.args, **args_and_kwargs.kwargs)


class _TypedStub(ModuleStub):
    """A stub that `isinstance` takes for the module it stands for, as equinox's own layers ask."""

    def __init__(self, module_class: type, *args: Any):
        super().__init__(*args)
        self._module_class = module_class

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._module_class


def _rebuilt(layer: ConvertedEquinoxModule, side_inputs: Any) -> Any:
    def leaf(kind: str, value: Any) -> Any:
        if kind == "static":
            return value
        if kind == "parameter":
            return layer.parameters[value].value
        if kind == "constant":
            return layer.constants[value]
        name, module_class = value
        sublayer = layer.submodules[name]
        converted = isinstance(sublayer, ConvertedEquinoxModule)
        rebuild = (lambda x: _rebuilt(x, side_inputs)) if converted else None
        return _TypedStub(module_class, name, sublayer, side_inputs, rebuild)

    module: Any = object.__new__(layer.module_class)
    for field in layer.fields:
        value = field.treedef.unflatten([leaf(*source) for source in field.leaves])
        object.__setattr__(module, field.name, value)
    return module


def from_equinox(module: eqx.Module) -> ConvertedEquinoxModule:
    """Turns an equinox module into a tree of layers.

    Args:
      module: The module; it does not change.

    Returns:
      The layer. Parameters are labelled by their path (`layers[0].weight`); arrays and modules that
      are one object in the module are shared in the tree.

    Raises:
      TypeError: If the argument is no `eqx.Module`.
      UnconvertibleModuleError: If the module holds state or tied weights.
    """
    if not isinstance(module, eqx.Module):
        raise TypeError(
            f"from_equinox: the module must be an eqx.Module, got a {type(module).__name__}. Wrap a "
            "function in eqx.nn.Lambda."
        )
    return _Converter().convert(module, "")


class _Converter:
    def __init__(self) -> None:
        self._layers: dict[int, ConvertedEquinoxModule] = {}
        self._parameters: dict[int, Parameter[Any]] = {}

    def convert(self, module: Any, path: str) -> ConvertedEquinoxModule:
        if id(module) in self._layers:
            return self._layers[id(module)]
        if isinstance(module, eqx.nn.StateIndex | eqx.nn.Shared):
            raise UnconvertibleModuleError(
                f"from_equinox: {path or 'the module'} is an eqx.nn.{type(module).__name__}, which has "
                "no counterpart here: state and tied weights are variables in the tree. Replace the "
                "part that needs it by a layer before converting, or convert the parts around it."
            )
        fields: list[_Field] = []
        parameters: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        submodules: dict[str, Any] = {}
        for field in dataclasses.fields(module):
            if not hasattr(module, field.name):
                continue
            value = getattr(module, field.name)
            if field.metadata.get("static", False):
                leaf = jax.tree_util.tree_structure(0)
                fields.append(_Field(field.name, leaf, (("static", value),)))
                continue
            leaves, treedef = jax.tree_util.tree_flatten_with_path(
                value, is_leaf=lambda node: isinstance(node, eqx.Module)
            )
            sources: list[tuple[str, Any]] = []
            for keys, leaf in leaves:
                name = f"{field.name}{jax.tree_util.keystr(keys)}"
                full = f"{path}.{name}" if path else name
                if isinstance(leaf, eqx.Module):
                    submodules[name] = self.convert(leaf, full)
                    sources.append(("submodule", (name, type(leaf))))
                elif is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
                    parameters[name] = self._parameter(leaf, full)
                    sources.append(("parameter", name))
                elif is_array(leaf):
                    constants[name] = leaf
                    sources.append(("constant", name))
                else:
                    sources.append(("static", leaf))
            fields.append(_Field(field.name, treedef, tuple(sources)))
        layer = ConvertedEquinoxModule(
            type(module), tuple(fields), parameters, constants, submodules
        )
        self._layers[id(module)] = layer
        return layer

    def _parameter(self, array: Any, label: str) -> Parameter[Any]:
        if id(array) not in self._parameters:
            self._parameters[id(array)] = Parameter(label=label, value=jnp.asarray(array))
        return self._parameters[id(array)]
