"""Turns a `flax.nnx` module into a tree of layers that still run its code.

    net = from_nnx(module)
    y = net(ArgsAndKwargs.capture(x))
    edited = select(net).at(lambda n: n.submodules["head"]).set(other_layer)

Each module becomes a layer with its own variables; in its method, the attributes that were submodules
are stand-ins that call the layers in the tree. Not supported: submodules given to a transform of nnx
(`nnx.scan`, `nnx.vmap` over modules), which need the modules themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from pz_core.colors import color_from_string
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, StateVariable
from pz_nn.layer import Layer
from pz_toolshed._module_stubs import ModuleStub, check_input, failures_explained
from pz_toolshed._module_stubs import UnconvertibleModuleError as UnconvertibleModuleError
from pz_toolshed.args_and_kwargs import ArgsAndKwargs as ArgsAndKwargs

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "pz_toolshed.nnx_modules needs flax: pip install 'pz-toolshed[flax]'"
    ) from error

__all__ = ["ArgsAndKwargs", "ConvertedNnxModule", "UnconvertibleModuleError", "from_nnx"]


@pytree_dataclass
class ConvertedNnxModule(Layer):
    """Runs an nnx module whose submodules are layers.

    Attributes:
      graphdef: The module without its arrays and submodules.
      state_structure: Structure of its own state.
      variables: Its own variables, in the order of that structure: a `Parameter` for each `nnx.Param`,
        a `StateVariable` for each other one.
      submodules: The layers of its submodules, by attribute (`"head"`, `"layers.0"`). A replacement
        is called with an `ArgsAndKwargs`.
    """

    graphdef: Any = dataclasses.field(metadata={"pytree_node": False})
    state_structure: Any = dataclasses.field(metadata={"pytree_node": False})
    variables: list[Any]
    submodules: dict[str, Any]

    def treescope_color(self) -> str:
        """A colour for the module's class."""
        return color_from_string(self.graphdef_name)

    @property
    def graphdef_name(self) -> str:
        """Name of the module's class."""
        return _class_name(self.graphdef)

    def __call__(self, args_and_kwargs: ArgsAndKwargs, /, **side_inputs: Any) -> Any:
        """Calls the module.

        Args:
          args_and_kwargs: Its arguments.
          **side_inputs: Given to the layers of the submodules.

        Returns:
          What the module returns; its variables are updated.

        Raises:
          TypeError: If the argument is no `ArgsAndKwargs`.
        """
        check_input(args_and_kwargs, self.graphdef_name)
        before = [variable.value for variable in self.variables]
        module = _rebuilt(self, side_inputs, before)
        with failures_explained(self.graphdef_name, self.submodules):
            output = module(*args_and_kwargs.args, **args_and_kwargs.kwargs)
        for name in self.submodules:
            _put(module, name.split("."), None)
        after = jax.tree_util.tree_leaves(nnx.split(module)[1])
        for variable, old, new in zip(self.variables, before, after, strict=True):
            # Only what was written: a variable may be shared with a submodule that has changed it.
            if new is not old:
                variable.value = new
        return output


def _class_name(graphdef: Any) -> str:
    nodes = getattr(graphdef, "nodes", None) or [graphdef]
    return getattr(getattr(nodes[0], "type", None), "__name__", "nnx.Module")


def _rebuilt(layer: ConvertedNnxModule, side_inputs: Any, values: list[Any]) -> Any:
    state = jax.tree_util.tree_unflatten(layer.state_structure, values)
    module = nnx.merge(layer.graphdef, state)
    for name, sublayer in layer.submodules.items():
        converted = isinstance(sublayer, ConvertedNnxModule)
        _put(
            module,
            name.split("."),
            ModuleStub(
                name,
                sublayer,
                side_inputs,
                (lambda x: _rebuilt(x, side_inputs, [v.value for v in x.variables]))
                if converted
                else None,
            ),
        )
    return module


def from_nnx(module: nnx.Module) -> ConvertedNnxModule:
    """Turns an nnx module into a tree of layers.

    Args:
      module: The module; it does not change.

    Returns:
      The layer. Variables are labelled by their path (`layers.0.linear.kernel`); variables and
      modules that are shared in the module are shared in the tree.

    Raises:
      TypeError: If the argument is no `nnx.Module`.
      UnconvertibleModuleError: If submodules stand in a container that cannot be rewritten.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx: the module must be an nnx.Module, got a {type(module).__name__}. For "
            "flax.linen modules use unflaxify_apply."
        )
    return _Converter().convert(module, ())


class _Converter:
    def __init__(self) -> None:
        self._layers: dict[int, ConvertedNnxModule] = {}
        self._variables: dict[int, Any] = {}

    def convert(self, module: Any, path: tuple[str, ...]) -> ConvertedNnxModule:
        if id(module) in self._layers:
            return self._layers[id(module)]
        children = dict(_submodules(module, path))
        bare = nnx.clone(module)
        for name in children:
            _put(bare, name.split("."), None)
        graphdef, state = nnx.split(bare)
        paths = {tuple(map(str, keys)) for keys, _ in nnx.to_flat_state(state)}
        leaves, structure = jax.tree_util.tree_flatten_with_path(state)
        variables = []
        for keys, value in leaves:
            own = _variable_path(tuple(map(_key_text, keys)), paths)
            variables.append(self._variable(_get(module, own), ".".join((*path, *own)), value))
        submodules = {
            name: self.convert(x, (*path, *name.split("."))) for name, x in children.items()
        }
        layer = ConvertedNnxModule(graphdef, structure, variables, submodules)
        self._layers[id(module)] = layer
        return layer

    def _variable(self, original: Any, label: str, value: Any) -> Any:
        """The variable for one of nnx's, made at the first of its places."""
        if id(original) not in self._variables:
            self._variables[id(original)] = (
                Parameter(label=label, value=value)
                if isinstance(original, nnx.Param)
                else StateVariable(value, label=label)
            )
        return self._variables[id(original)]


def _variable_path(leaf_path: tuple[str, ...], paths: set[tuple[str, ...]]) -> tuple[str, ...]:
    """The path of the variable that a leaf belongs to: the leaf's own, or one above it."""
    depths = range(len(leaf_path), 0, -1)
    return next(leaf_path[:depth] for depth in depths if leaf_path[:depth] in paths)


def _key_text(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _submodules(module: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The nearest modules below, by attribute, through lists and dicts."""
    for name, value in vars(module).items():
        if not name.startswith("_"):
            yield from _modules_in(name, value, (*path, name))


def _modules_in(name: str, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    items: Any = None
    if isinstance(value, nnx.List | list | tuple):
        items = list(enumerate(value))
    elif isinstance(value, nnx.Dict | dict):
        items = list(value.items())
    elif isinstance(value, nnx.Module):
        yield name, value
        return
    found = [
        x
        for key, item in items or ()
        for x in _modules_in(f"{name}.{key}", item, (*path, str(key)))
    ]
    if found and isinstance(value, tuple):
        raise UnconvertibleModuleError(
            f"from_nnx: {'.'.join(path)} is a tuple of modules, which cannot be replaced one by one. "
            "Make it an nnx.List."
        )
    yield from found


def _step(node: Any, name: str) -> Any:
    if isinstance(node, nnx.List | list | tuple):
        return node[int(name)]
    if isinstance(node, nnx.Dict | dict):
        return node[name]
    return getattr(node, name)


def _get(node: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        node = _step(node, name)
    return node


def _put(node: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        node = _step(node, name)
    if isinstance(node, nnx.List | list):
        node[int(path[-1])] = value
    elif isinstance(node, nnx.Dict | dict):
        node[path[-1]] = value
    else:
        setattr(node, path[-1], value)
