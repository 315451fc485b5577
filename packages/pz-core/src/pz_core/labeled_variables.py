"""Variables that are identified by a label: what parameters and state variables have in common."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Generic, TypeVar, cast

from pz_core import _text
from pz_core._variable_scope import check_scope, current_scope
from pz_core._variable_values import as_arrays, fresh_containers
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue, VariableLabel
from pz_core.struct import pytree_dataclass

__all__ = ["DistinctLabel", "LabeledVariable", "LabeledVariableValue"]

T = TypeVar("T")


class DistinctLabel(str):
    """The label of a slot that was made as a new variable, instead of taking one out of a tree.

    It equals the text it was made of, but knows whether it is the same object: `bind_variables`
    refuses to put one variable into two slots whose labels were made apart, as `unbind_variables`
    refuses two variables of one label. A slot that occurs twice keeps its label through every
    rebuilding of the tree, and stays shared.

    Example:
      >>> from pz_core.variables import Parameter, ParameterSlot, bind_variables
      >>> slot, another = ParameterSlot(DistinctLabel("w")), ParameterSlot(DistinctLabel("w"))
      >>> first, second = bind_variables([slot, slot], [Parameter(label="w", value=1.0)])
      >>> first is second  # and with [slot, another] a VariableConflictError
      True
    """

    __slots__ = ()


class LabeledVariable(AbstractVariable, Generic[T], abc.ABC):
    """A variable that is identified by its type and a label.

    Attributes:
      label: Any hashable value.
      metadata: What else is to be known about the variable; part of the tree structure when frozen.
    """

    label: VariableLabel
    metadata: dict[Any, Any]

    # Set in the body of a class (not inherited) whose `freeze` and `update` do nothing but copy the
    # three fields: `variable_jit` then carries the bare value, which is many times faster.
    _plain_value_type: ClassVar[type[LabeledVariableValue[Any]] | None] = None

    def __init__(
        self, *, label: VariableLabel, value: T, metadata: dict[Any, Any] | None = None
    ) -> None:
        self._scope = current_scope()
        self.label = label
        self.metadata = metadata or {}
        self._value = as_arrays(label, value)

    @property
    def value(self) -> T:
        """The current value; leaves that are assigned become JAX arrays."""
        check_scope(self, self._scope)
        return cast(T, self._value)

    @value.setter
    def value(self, new_val: T) -> None:
        check_scope(self, self._scope)
        self._value = as_arrays(self.label, new_val)

    def set_value(self, new_val: T) -> None:
        """Assigns the value."""
        self.value = new_val

    def update(self, new_frozen_value: LabeledVariableValue[T]) -> None:
        """Takes over the value, not the metadata, of a snapshot of this variable.

        Args:
          new_frozen_value: A value with the same slot. Its tree structure, shapes and dtypes may
            differ from the present ones.

        Raises:
          ValueError: If the slots differ.
        """
        if self.get_slot() != new_frozen_value.get_slot():
            raise ValueError(
                f"{type(self).__name__}.update: this variable is {self.get_slot()!r}, the new "
                f"value is of {new_frozen_value.get_slot()!r}. Update a variable with a value of "
                f"its own type and label; to copy between variables assign `.value`."
            )
        self.value = new_frozen_value.value

    @abc.abstractmethod
    def treescope_color(self) -> str | tuple[str, str]:
        """Returns the colour to display the variable in."""

    def _snapshot_fields(self) -> dict[str, Any]:
        """Returns the arguments of the value class; nothing mutable is shared with them."""
        return {
            "label": self.label,
            "value": as_arrays(self.label, self.value),
            "metadata": fresh_containers(self.metadata),
        }

    def _fields_for_text(self) -> list[tuple[str, Any]]:
        return [("label", self.label), ("value", self._value), ("metadata", self.metadata)]

    __repr__ = _text.named_call_text

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_scope"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _scope=current_scope())


@pytree_dataclass
class LabeledVariableValue(AbstractVariableValue, Generic[T], abc.ABC):
    """A snapshot of a `LabeledVariable`.

    Attributes:
      label: The variable's label.
      value: Its value.
      metadata: Its metadata.
    """

    label: VariableLabel = dataclasses.field(metadata={"pytree_node": False})
    value: T
    metadata: dict[Any, Any] = dataclasses.field(
        default_factory=dict, metadata={"pytree_node": False}
    )

    def _variable_arguments(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "value": self.value,
            "metadata": fresh_containers(self.metadata),
        }
