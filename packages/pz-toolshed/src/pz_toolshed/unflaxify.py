"""Turns a `flax.linen` module into a tree of layers that still run Flax's code.

The idea: one call of the module is traced, and every call of a submodule in it becomes a layer of its
own, with its parameters and variables. When the tree runs, Flax executes each module's method, but
what it calls on its submodules is redirected to the layers in the tree, which may have been edited.

    net = unflaxify.unflaxify_apply(module, variables, x)
    edited = (
        select(net)
        .at(lambda layer: layer.submodule_calls[(1, "Dense_0.__call__")])
        .apply(lambda child: Sequential([child, ConstantRescale(0.0)]))
    )
    y = edited(unflaxify.ArgsAndKwargs.capture(x))

Modules made by a lifted transform (`nn.scan`, `nn.remat`, `nn.vmap`, ...) are not opened: they run as a
part of the module that calls them. Constructor attributes are those seen while tracing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from pz_core.auto_order_types import AutoOrderedAcrossTypes
from pz_core.colors import color_from_string
from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariable,
    StateVariableSlot,
    bind_variables,
)
from pz_nn.layer import Layer
from pz_toolshed._array_leaves import merge_arrays, split_arrays
from pz_toolshed._module_stubs import check_input
from pz_toolshed.args_and_kwargs import ArgsAndKwargs as ArgsAndKwargs

try:
    import flax.core.scope
    import flax.linen as nn
except ImportError as error:
    raise ImportError(
        "pz_toolshed.unflaxify needs flax: pip install 'pz-toolshed[flax]'"
    ) from error

__all__ = [
    "ArgsAndKwargs",
    "FlaxVarLabel",
    "InterceptedFlaxModuleMethod",
    "InterceptedFlaxScopeData",
    "unflaxify_apply",
]


@dataclasses.dataclass(frozen=True)
class FlaxVarLabel(AutoOrderedAcrossTypes):
    """Label of the state variable that holds a mutable Flax variable.

    Attributes:
      collection: The Flax collection, e.g. `batch_stats`.
      name: The module path and the variable's name, joined by dots.
    """

    collection: str
    name: str


@pytree_dataclass
class InterceptedFlaxScopeData(Struct):
    """What a module's own scope holds.

    Attributes:
      parameters: Its entries of the collection `params`.
      variables: Its entries of mutable collections, by collection and name.
      immutable_variables: Its entries of other collections, plain values.
      rng_names: The random streams that its method draws from.
    """

    parameters: dict[str, Parameter[Any]]
    variables: dict[str, dict[str, StateVariable[Any]]]
    immutable_variables: dict[str, dict[str, Any]]
    rng_names: frozenset[str] = dataclasses.field(metadata={"pytree_node": False})


@pytree_dataclass
class InterceptedFlaxModuleMethod(Layer):
    """Runs one method of a Flax module, with its submodules' calls redirected to layers.

    Attributes:
      module: The module, not bound to variables.
      method_name: Which of its methods.
      scope_data: Its own parameters and variables; None if it has none.
      submodule_calls: The layers that stand for the calls it makes on submodules, by the call's
        number and name. A replacement is called with an `ArgsAndKwargs`.
    """

    module: Any = dataclasses.field(metadata={"pytree_node": False})
    method_name: str = dataclasses.field(metadata={"pytree_node": False})
    scope_data: InterceptedFlaxScopeData | None
    submodule_calls: dict[tuple[int, str], Any]

    def treescope_color(self) -> str:
        """A colour for the module's class."""
        return color_from_string(type(self.module).__name__)

    def __call__(
        self,
        args_and_kwargs: ArgsAndKwargs,
        /,
        random_streams: Mapping[str, Any] | None = None,
        **side_inputs: Any,
    ) -> Any:
        """Runs the method.

        Args:
          args_and_kwargs: Its arguments.
          random_streams: A `RandomStream` for each random stream of Flax.
          **side_inputs: Given to the layers of the submodules.

        Returns:
          What the method returns.

        Raises:
          TypeError: If the argument is no `ArgsAndKwargs`, or a random stream is missing.
          KeyError: If the method makes a call on a submodule that it did not make when traced.
        """
        check_input(args_and_kwargs, self._name())
        variables, states = self._flax_variables()
        rngs = {name: self._stream(random_streams, name).next_key() for name in self._rng_names()}
        redirect = _Redirection(self, {"random_streams": random_streams, **side_inputs})
        with nn.intercept_methods(redirect):
            result = self.module.apply(
                variables,
                *args_and_kwargs.args,
                rngs=rngs,
                method=self.method_name,
                mutable=list(states) or False,
                **args_and_kwargs.kwargs,
            )
        if not states:
            return result
        output, changed = result
        for collection, entries in states.items():
            for name, variable in entries.items():
                variable.value = changed[collection][name]
        return output

    def _name(self) -> str:
        return f"{type(self.module).__name__}.{self.method_name}"

    def _rng_names(self) -> list[str]:
        return sorted(self.scope_data.rng_names) if self.scope_data else []

    def _stream(self, random_streams: Mapping[str, Any] | None, name: str) -> Any:
        if random_streams is None or name not in random_streams:
            raise TypeError(
                f"{self._name()} draws from the random stream {name!r}, which is missing in the "
                f"side input random_streams; it has {sorted(random_streams or {})}. Pass "
                f"random_streams={{{name!r}: RandomStream.from_base_key(key)}}."
            )
        return random_streams[name]

    def _flax_variables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The variables as Flax wants them, and the state variables behind the mutable ones."""
        data = self.scope_data
        if data is None:
            return {}, {}
        if "params" in data.variables or "params" in data.immutable_variables:
            raise ValueError(
                f"{self._name()}: the collection 'params' belongs into scope_data.parameters, not "
                "into its variables. Move it there."
            )
        variables: dict[str, Any] = {name: dict(v) for name, v in data.immutable_variables.items()}
        for collection, entries in data.variables.items():
            variables.setdefault(collection, {}).update({k: v.value for k, v in entries.items()})
        variables["params"] = {name: p.value for name, p in data.parameters.items()}
        return variables, data.variables


class _Redirection:
    """The interceptor of one running method: its submodules' calls go to the layers."""

    def __init__(self, layer: InterceptedFlaxModuleMethod, side_inputs: dict[str, Any]):
        self._layer = layer
        self._side_inputs = side_inputs
        self._calls = {
            number: (name, call) for (number, name), call in layer.submodule_calls.items()
        }
        self._count = 0
        self._is_redirecting = False

    def __call__(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if self._is_redirecting or _is_own_call(context.module, ()):
            return next_fun(*args, **kwargs)
        if context.method_name == "setup":
            return None  # the layer sets its own copy up
        number, self._count = self._count, self._count + 1
        name = f"{context.module.name}.{context.method_name}"
        traced, layer = self._calls.get(number, ("none", None))
        if layer is None or traced.rpartition(".")[2] != context.method_name:
            raise KeyError(
                f"{self._layer._name()}: call {number} on a submodule is {name!r}, but was {traced} "
                "when the module was traced; its calls may not depend on the arguments. Trace it "
                "again with arguments like these."
            )
        self._is_redirecting = True
        try:
            return layer(ArgsAndKwargs(args, kwargs), **self._side_inputs)
        finally:
            self._is_redirecting = False


def _is_own_call(module: Any, path: tuple[str, ...]) -> bool:
    """Whether a call stays within the module at `path`: on itself, or under a lifted transform."""
    scope = module.scope
    return scope is None or scope.path == path or _is_lifted(scope)


def _is_lifted(scope: Any) -> bool:
    return tuple(scope.debug_path) != tuple(scope.path)


# --- tracing ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Record:
    """What is known of a method that is running under the tracer."""

    module: Any
    method_name: str
    path: tuple[str, ...]
    variables: dict[str, dict[str, Any]]
    calls: dict[tuple[int, str], InterceptedFlaxModuleMethod] = dataclasses.field(
        default_factory=dict
    )
    lifted: set[str] = dataclasses.field(default_factory=set)


class _Tracer:
    """The interceptor that records one call as a tree of layers."""

    def __init__(self, rng_names: Iterable[str], mutable: Any):
        self._rng_names = frozenset(rng_names)
        self._mutable = mutable
        self._records: list[_Record] = []
        self.root: InterceptedFlaxModuleMethod | None = None
        self.leaf_paths: dict[Any, tuple[str, ...]] = {}

    def __call__(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        top = self._records[-1] if self._records else None
        if method == "setup" or (top is not None and _is_own_call(module, top.path)):
            if top is not None and module.scope is not None and _is_lifted(module.scope):
                top.lifted.add(module.scope.path[len(top.path)])
            return next_fun(*args, **kwargs)
        path = tuple(module.scope.path)
        entries = {c: dict(_at(v, ())) for c, v in module.scope.variables().items()}
        record = _Record(module, method, path, entries)
        self._records.append(record)
        try:
            result = next_fun(*args, **kwargs)
        finally:
            self._records.pop()
        layer = self._layer_of(record)
        if top is None:
            self.root = layer
        else:
            top.calls[len(top.calls), f"{module.name}.{method}"] = layer
        return result

    def _layer_of(self, record: _Record) -> InterceptedFlaxModuleMethod:
        scope = record.module.scope
        parameters: dict[str, Any] = {}
        variables: dict[str, dict[str, Any]] = {}
        immutable: dict[str, dict[str, Any]] = {}
        for collection, entries in record.variables.items():
            for name in entries:
                is_own = collection in scope.reservations.get(name, ())
                if not is_own and name not in record.lifted:
                    continue  # of a submodule, or not used
                where = (collection, *record.path, name)
                label = ".".join(where[1:])
                if collection == "params":
                    slot: Any = ParameterSlot(label)
                    parameters[name] = slot
                elif flax.core.scope.in_filter(self._mutable, collection):
                    slot = StateVariableSlot(FlaxVarLabel(collection, label))
                    variables.setdefault(collection, {})[name] = slot
                else:
                    immutable.setdefault(collection, {})[name] = _Where(where)
                    continue
                self.leaf_paths[slot] = where
        rngs = frozenset(n for n in self._rng_names if scope.rng_counters.get(n, 0) > 0)
        data = None
        if parameters or variables or immutable or rngs:
            data = InterceptedFlaxScopeData(parameters, variables, immutable, rngs)
        module, _ = record.module.unbind()
        return InterceptedFlaxModuleMethod(module, record.method_name, data, record.calls)


@dataclasses.dataclass(frozen=True)
class _Where:
    """Stands for a value until the trace is over: inside it there are only tracers."""

    path: tuple[str, ...]


def _at(tree: Any, path: Iterable[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def unflaxify_apply(
    module: nn.Module,
    variables: Mapping[str, Any],
    *dummy_args: Any,
    rngs: Mapping[str, Any] | None = None,
    method: Any = None,
    mutable: Any = False,
    **dummy_kwargs: Any,
) -> InterceptedFlaxModuleMethod:
    """Turns one call of a Flax module into a tree of layers.

    The arguments mean what they mean for `module.apply`; the call is traced, not run.

    Args:
      module: The module.
      variables: Its variables.
      *dummy_args: Arguments of the method; of arrays only shape and dtype matter.
      rngs: Its random streams by name, any keys.
      method: The method; default: `__call__`.
      mutable: Which collections are mutable. They become state variables.
      **dummy_kwargs: Keyword arguments.

    Returns:
      The layer for the call. Its parameters are labelled by module path and name, joined by dots;
      modules that are shared share their variables.

    Raises:
      TypeError: If `rngs` is a single key instead of a mapping.
    """
    if rngs is not None and not isinstance(rngs, Mapping):
        raise TypeError(
            f"unflaxify_apply: rngs must be a mapping from names to keys, got a "
            f"{type(rngs).__name__}. Write rngs={{'dropout': key}}."
        )
    tracer = _Tracer(rngs or {}, mutable)
    arrays, rest = split_arrays((variables, dict(rngs or {}), dummy_args, dummy_kwargs))

    def call(arrays: Any) -> Any:
        variables, rngs, args, kwargs = merge_arrays(arrays, rest)
        with nn.intercept_methods(tracer):
            return module.apply(
                variables, *args, rngs=rngs, method=method, mutable=mutable, **kwargs
            )

    jax.eval_shape(call, arrays)
    if tracer.root is None:
        raise ValueError(
            f"unflaxify_apply: {type(module).__name__} ran no method that Flax can intercept. Give a "
            "method of the module itself, not decorated with nn.nowrap."
        )
    with_values = jax.tree_util.tree_map(
        lambda leaf: _at(variables, leaf.path) if isinstance(leaf, _Where) else leaf,
        tracer.root,
        is_leaf=lambda leaf: isinstance(leaf, _Where),
    )
    layer: InterceptedFlaxModuleMethod = bind_variables(
        with_values,
        [_variable(slot, _at(variables, where)) for slot, where in tracer.leaf_paths.items()],
    )
    return layer


def _variable(slot: Any, value: Any) -> Parameter[Any] | StateVariable[Any]:
    if isinstance(slot, ParameterSlot):
        return Parameter(label=slot.label, value=value)
    return StateVariable(value, label=slot.label)
