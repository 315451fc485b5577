"""The interface of variables: a mutable object, its frozen value, and the slot it leaves behind.

* A *variable* is a mutable Python object that JAX sees as one opaque leaf.
* A *value* is a struct holding a snapshot of a variable.
* A *slot* is a leafless, hashable struct that stands where a variable was taken out. It is the
  identity of the variable: two variables with equal slots conflict.

`pz_core.variables` has the classes to use; subclass these to make another kind of variable.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from typing import Any, TypeAlias, final

from pz_core.struct import Struct

__all__ = [
    "AbstractVariable",
    "AbstractVariableSlot",
    "AbstractVariableValue",
    "ClosedOverVariableError",
    "UnboundVariableError",
    "VariableConflictError",
    "VariableLabel",
]

VariableLabel: TypeAlias = Hashable


class VariableConflictError(Exception):
    """Two variables of one tree have the same slot.

        model = [Parameter(label="w", value=1.0), Parameter(label="w", value=2.0)]
        unbind_variables(model)  # error: which one is "w"?

    Or two slots that were made apart, each with a `DistinctLabel`, are to be filled by one variable.

    Repair: use one object in both places, if they are meant to be shared, or two labels.
    """


class UnboundVariableError(AttributeError):
    """The value of a slot was asked for.

        slots, params = unbind_params(model)
        slots.weight.value  # error: the slot has no value

    Repair: `bind_variables(slots, params).weight.value`.
    """


class ClosedOverVariableError(Exception):
    """A function under one of our transforms used a variable that is not among its arguments.

        counter = StateVariable(0, label="counter")

        @variable_jit
        def count():
            counter.value += 1  # error: the change would be lost, the value baked in

    Repair: pass the variable, alone or within a tree, as an argument: `def count(counter): ...`.
    """


class AbstractVariable(abc.ABC):
    """A mutable value with an identity."""

    @abc.abstractmethod
    def freeze(self) -> AbstractVariableValue:
        """Returns an immutable snapshot."""

    @abc.abstractmethod
    def get_slot(self) -> AbstractVariableSlot:
        """Returns the slot that identifies this variable."""

    @abc.abstractmethod
    def update(self, new_frozen_value: Any) -> None:
        """Takes over the value of a snapshot that has the same slot."""

    @final
    def __get_state_as_jax_pytree__(self) -> AbstractVariableValue:
        return self.freeze()

    @final
    def __set_state_from_jax_pytree__(self, value: AbstractVariableValue) -> None:
        self.update(value)


class AbstractVariableValue(Struct, abc.ABC):
    """A snapshot of a variable, as a pytree."""

    @abc.abstractmethod
    def unfreeze_as_copy(self) -> AbstractVariable:
        """Returns a new variable with this value and the same slot."""

    @abc.abstractmethod
    def get_slot(self) -> AbstractVariableSlot:
        """Returns the slot of the variable that this was taken from."""

    @final
    def __jax_pytree_state_to_new_variable__(self) -> AbstractVariable:
        return self.unfreeze_as_copy()


class AbstractVariableSlot(Struct, abc.ABC):
    """What stands in a tree where a variable was taken out: leafless and hashable."""
