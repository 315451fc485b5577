"""Mutable values inside pytrees: parameters and state.

The one idea: a variable is a Python object with a label, which can be taken out of a tree (leaving
a slot), so that what remains is an ordinary pytree that every JAX transform accepts.

>>> model = {"scale": Parameter(label="scale", value=2.0), "count": StateVariable(0, label="n")}
>>> slots, params = unbind_params(model, freeze=True)
>>> slots["scale"]
ParameterSlot(label='scale')
>>> @variable_jit
... def call(model, x):
...     model["count"].value += 1
...     return model["scale"].value * x
>>> float(call(model, 3.0)), int(model["count"].value)
(6.0, 1)

A variable is not a pytree node: passing one to plain `jax.jit` is an error, and one that plain
`jax.jit` closes over is baked in as a constant. `variable_jit` and its siblings carry variables
that are passed as arguments, and refuse those that are closed over.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import Any, TypeVar

from pz_core._variable_jit import variable_jit as variable_jit
from pz_core.abstract_variables import AbstractVariable as AbstractVariable
from pz_core.abstract_variables import AbstractVariableSlot as AbstractVariableSlot
from pz_core.abstract_variables import AbstractVariableValue as AbstractVariableValue
from pz_core.abstract_variables import ClosedOverVariableError as ClosedOverVariableError
from pz_core.abstract_variables import UnboundVariableError as UnboundVariableError
from pz_core.abstract_variables import VariableConflictError as VariableConflictError
from pz_core.abstract_variables import VariableLabel as VariableLabel
from pz_core.auto_order_types import AutoOrderedAcrossTypes
from pz_core.labeled_variables import LabeledVariable as LabeledVariable
from pz_core.labeled_variables import LabeledVariableValue as LabeledVariableValue
from pz_core.struct import pytree_dataclass
from pz_core.variable_binding import VariablePredicate, check_predicate
from pz_core.variable_binding import bind_variables as bind_variables
from pz_core.variable_binding import freeze_variables as freeze_variables
from pz_core.variable_binding import unbind_variables as unbind_variables

__all__ = [
    "AbstractVariable",
    "AbstractVariableSlot",
    "AbstractVariableValue",
    "AutoStateVarLabel",
    "ClosedOverVariableError",
    "LabeledVariable",
    "LabeledVariableValue",
    "Parameter",
    "ParameterSlot",
    "ParameterValue",
    "ScopedStateVarLabel",
    "StateVariable",
    "StateVariableSlot",
    "StateVariableValue",
    "UnboundVariableError",
    "VariableConflictError",
    "VariableLabel",
    "bind_variables",
    "freeze_params",
    "freeze_state_vars",
    "freeze_variables",
    "scoped_auto_state_var_labels",
    "unbind_params",
    "unbind_state_vars",
    "unbind_variables",
    "variable_jit",
]

T = TypeVar("T")


class Parameter(LabeledVariable[T]):
    """A variable that is learned."""

    def freeze(self) -> ParameterValue[T]:
        """Returns an immutable snapshot."""
        return ParameterValue(**self._snapshot_fields())

    def get_slot(self) -> ParameterSlot:
        """Returns the slot that identifies this parameter."""
        return ParameterSlot(self.label)

    def treescope_color(self) -> str:
        """Returns the colour of parameters."""
        return "#93cce1"


@pytree_dataclass(has_implicitly_inherited_fields=True)
class ParameterValue(LabeledVariableValue[T]):
    """A snapshot of a `Parameter`."""

    def unfreeze_as_copy(self) -> Parameter[T]:
        """Returns a new parameter with this label and value."""
        return Parameter(**self._variable_arguments())

    def get_slot(self) -> ParameterSlot:
        """Returns the slot of the parameter that this was taken from."""
        return ParameterSlot(self.label)

    def treescope_color(self) -> str:
        """Returns the colour of frozen parameters."""
        return "#a0b0c9"


def _unbound_value_error(slot: AbstractVariableSlot) -> UnboundVariableError:
    return UnboundVariableError(
        f"{slot!r} is an empty slot and has no value. Put the variable back with "
        f"`bind_variables(tree, variables)` first."
    )


Parameter._plain_value_type = ParameterValue


@pytree_dataclass
class ParameterSlot(AbstractVariableSlot):
    """Stands where a `Parameter` was taken out.

    Attributes:
      label: The parameter's label.
    """

    label: VariableLabel = dataclasses.field(metadata={"pytree_node": False})

    @property
    def value(self) -> Any:
        """Raises `UnboundVariableError`: a slot has no value."""
        raise _unbound_value_error(self)

    def treescope_color(self) -> tuple[str, str]:
        """Returns the border and fill colours of parameter slots."""
        return "#93cce1", "#cdcdcd"


@dataclasses.dataclass(frozen=True)
class AutoStateVarLabel(AutoOrderedAcrossTypes):
    """The label of a state variable that was given none, outside of any scope.

    Attributes:
      var_id: A number that no other label of this process has, nor, most likely, of another one.
    """

    var_id: int


@dataclasses.dataclass(frozen=True)
class ScopedStateVarLabel(AutoOrderedAcrossTypes):
    """The label of a state variable that was given none, within a scope.

    Attributes:
      group: The group of the scope.
      index: How many such labels the scope gave before.
    """

    group: Any
    index: int


# A random start keeps labels apart from those that come back in a pickle of another process.
# `next` on a count is one step of the interpreter, so threads never draw the same number.
_AUTO_LABELS = itertools.count(int.from_bytes(os.urandom(5)) << 20)


@dataclasses.dataclass(frozen=True)
class _LabelScope:
    group: Any
    indices: Iterator[int] = dataclasses.field(default_factory=itertools.count)


_LABEL_SCOPE: contextvars.ContextVar[_LabelScope | None] = contextvars.ContextVar(
    "pz_core_label_scope", default=None
)


@contextlib.contextmanager
def scoped_auto_state_var_labels(group: Any = None) -> Iterator[None]:
    """Gives state variables that are made without a label a repeatable one.

    Labels are part of tree structure, so fresh ones force JAX to trace again. Within this scope
    they count from 0, and a program that makes the same variables again gets the same labels. The
    scope belongs to its thread (or asynchronous task). Two scopes of the same group give the same
    labels: variables of both in one tree conflict.

    Args:
      group: Any hashable value, part of the labels.

    Yields:
      None.
    """
    token = _LABEL_SCOPE.set(_LabelScope(group))
    try:
        yield
    finally:
        _LABEL_SCOPE.reset(token)


def _next_auto_label() -> AutoStateVarLabel | ScopedStateVarLabel:
    scope = _LABEL_SCOPE.get()
    if scope is None:
        return AutoStateVarLabel(next(_AUTO_LABELS))
    return ScopedStateVarLabel(scope.group, next(scope.indices))


class StateVariable(LabeledVariable[T]):
    """A variable that changes when the model runs: a cache, a counter, a collected value."""

    def __init__(
        self,
        value: T,
        *,
        label: VariableLabel | None = None,
        metadata: dict[Any, Any] | None = None,
    ) -> None:
        if label is None:
            label = _next_auto_label()
        super().__init__(label=label, value=value, metadata=metadata)

    def freeze(self) -> StateVariableValue[T]:
        """Returns an immutable snapshot."""
        return StateVariableValue(**self._snapshot_fields())

    def get_slot(self) -> StateVariableSlot:
        """Returns the slot that identifies this variable."""
        return StateVariableSlot(self.label)

    def treescope_color(self) -> str:
        """Returns the colour of state variables."""
        return "#f57603"


@pytree_dataclass(has_implicitly_inherited_fields=True)
class StateVariableValue(LabeledVariableValue[T]):
    """A snapshot of a `StateVariable`."""

    def unfreeze_as_copy(self) -> StateVariable[T]:
        """Returns a new state variable with this label and value."""
        return StateVariable(**self._variable_arguments())

    def get_slot(self) -> StateVariableSlot:
        """Returns the slot of the variable that this was taken from."""
        return StateVariableSlot(self.label)

    def treescope_color(self) -> str:
        """Returns the colour of frozen state variables."""
        return "#d4af27"


StateVariable._plain_value_type = StateVariableValue


@pytree_dataclass
class StateVariableSlot(AbstractVariableSlot):
    """Stands where a `StateVariable` was taken out.

    Attributes:
      label: The variable's label.
    """

    label: VariableLabel = dataclasses.field(metadata={"pytree_node": False})

    @property
    def value(self) -> Any:
        """Raises `UnboundVariableError`: a slot has no value."""
        raise _unbound_value_error(self)

    def treescope_color(self) -> tuple[str, str]:
        """Returns the border and fill colours of state variable slots."""
        return "#f57603", "#cdcdcd"


def _of_type(kind: type, caller: str, predicate: VariablePredicate | None) -> VariablePredicate:
    check_predicate(caller, predicate)
    return lambda var: isinstance(var, kind) and (predicate is None or bool(predicate(var)))


def unbind_params(
    tree: Any, predicate: VariablePredicate | None = None, freeze: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """Replaces parameters by slots; see `unbind_variables`."""
    return unbind_variables(tree, _of_type(Parameter, "unbind_params", predicate), freeze)


def freeze_params(tree: Any, predicate: VariablePredicate | None = None) -> Any:
    """Replaces parameters by their frozen values; see `freeze_variables`."""
    return freeze_variables(tree, _of_type(Parameter, "freeze_params", predicate))


def unbind_state_vars(
    tree: Any, predicate: VariablePredicate | None = None, freeze: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """Replaces state variables by slots; see `unbind_variables`."""
    return unbind_variables(tree, _of_type(StateVariable, "unbind_state_vars", predicate), freeze)


def freeze_state_vars(tree: Any, predicate: VariablePredicate | None = None) -> Any:
    """Replaces state variables by their frozen values; see `freeze_variables`."""
    return freeze_variables(tree, _of_type(StateVariable, "freeze_state_vars", predicate))
