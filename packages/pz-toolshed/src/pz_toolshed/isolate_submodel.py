"""Cuts one layer out of a running model, with the inputs and the state it saw.

The idea: the layer is replaced, for one call of the whole model, by a capturer that runs it and
records what went in and what came out. The record holds everything needed to run the layer
alone, again, on other inputs.

    from pz_toolshed import isolate_submodel

    block = select(model).at_instances_of(TransformerFeedForward).pick_nth_selected(3)
    isolated = isolate_submodel.call_and_extract_submodel(block, tokens)
    doubled = isolate_submodel.replay(isolated, isolated.saved_arg * 2)

Inside a layer stack the layer runs once per stacked layer, and each run gives a record.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from pz_core.selectors import Selection, select
from pz_core.struct import Struct, pytree_dataclass
from pz_core.tree_util import pretty_keystr
from pz_core.variables import (
    AbstractVariableSlot,
    AbstractVariableValue,
    Parameter,
    StateVariable,
    freeze_params,
    unbind_variables,
)
from pz_named.named_axes import is_namedarray, wrap
from pz_nn.layer import Layer
from pz_nn.layer_stack import layerstack_axes_from_keypath
from pz_toolshed._array_leaves import TreeWithoutArrays, merge_arrays, split_arrays

__all__ = [
    "IsolatedSubmodel",
    "IsolationCapturer",
    "call_and_extract_submodel",
    "extract_submodel_calls",
    "replay",
]


@pytree_dataclass
class IsolatedSubmodel(Struct):
    """A layer and one call of it: what it got, what it gave, and the state before and after.

    Variables are taken out: `submodel`, `saved_arg` and `saved_side_inputs` hold slots where
    state variables were, and frozen values where parameters were. A variable used in several of
    them has one value.

    Attributes:
      submodel: The layer.
      saved_arg: The argument of the call.
      saved_side_inputs: Its side inputs.
      saved_output: Its result.
      initial_var_values: Values of the state variables before the call.
      final_var_values: Their values after it, in the same order.
    """

    submodel: Any
    saved_arg: Any
    saved_side_inputs: dict[str, Any]
    saved_output: Any
    initial_var_values: tuple[AbstractVariableValue, ...] | None
    final_var_values: tuple[AbstractVariableValue, ...] | None


@pytree_dataclass
class _PackedRecord(Struct):
    """An `IsolatedSubmodel` in a form that a state variable inside layer stacks can hold.

    Attributes:
      arrays: Its arrays, all as named arrays (a stack stacks only those).
      was_named: For each, whether it was one.
      rest: The record without its arrays, so that Python scalars do not become arrays.
    """

    arrays: list[Any]
    was_named: tuple[bool, ...] = dataclasses.field(metadata={"pytree_node": False})
    rest: TreeWithoutArrays = dataclasses.field(metadata={"pytree_node": False})


def _pack(record: IsolatedSubmodel) -> _PackedRecord:
    arrays, rest = split_arrays(record, named=True)
    was_named = tuple(is_namedarray(array) for array in arrays)
    named = [x if is_namedarray(x) else wrap(jnp.asarray(x)) for x in arrays]
    return _PackedRecord(named, was_named, rest)


def _unpack(packed: _PackedRecord, stack_indices: dict[str, int]) -> IsolatedSubmodel:
    """Restores the record of one layer of the stacks that it was packed in."""
    arrays = []
    for array, was_named in zip(packed.arrays, packed.was_named, strict=True):
        indices = {a: i for a, i in stack_indices.items() if a in array.named_shape}
        array = array[indices] if indices else array
        arrays.append(array if was_named else array.unwrap())
    record: IsolatedSubmodel = merge_arrays(arrays, packed.rest)
    return record


@pytree_dataclass
class IsolationCapturer(Layer):
    """Runs a layer and appends a record of the call to a list.

    Attributes:
      saved_calls: Holds the records, in a packed form that only this module reads.
      wrapped: The layer.
    """

    saved_calls: StateVariable[list[Any]]
    wrapped: Layer

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the wrapped layer and records the call."""
        frozen = freeze_params(self.wrapped)
        (layer, arg, side), variables = unbind_variables((frozen, argument, side_inputs))
        for variable in variables:
            if not isinstance(variable, Parameter | StateVariable):
                raise ValueError(
                    "call_and_extract_submodel: the selected layer was called with a variable of "
                    f"type {type(variable).__name__}; only Parameter and StateVariable are "
                    f"known. Freeze it first: {variable!r}"
                )
        initial = tuple(variable.freeze() for variable in variables)
        output = self.wrapped(argument, **side_inputs)
        final = tuple(variable.freeze() for variable in variables)
        record = IsolatedSubmodel(layer, arg, side, output, initial, final)
        self.saved_calls.value = [*self.saved_calls.value, _pack(record)]
        return output


def extract_submodel_calls(
    submodel_selection: Selection[Any], argument: Any, /, **side_inputs: Any
) -> list[IsolatedSubmodel]:
    """Calls a model once and returns a record for every call of the selected layer.

    State variables of the model change as in any call.

    Args:
      submodel_selection: One layer of a model that is itself a layer.
      argument: The model's input.
      **side_inputs: The model's side inputs.

    Returns:
      The records in the order of the calls; empty if the layer was not called. Inside layer
      stacks: one record per stacked layer (and call), stack index by stack index, its arrays
      without the stack axes.

    Raises:
      ValueError: If not exactly one layer of a layer is selected, or it uses variables of an
        unknown class.
    """
    model = submodel_selection.deselect()
    if submodel_selection.count() != 1:
        raise ValueError(
            "call_and_extract_submodel: exactly one layer must be selected, but "
            f"{submodel_selection.count()} are. Pick one with .pick_nth_selected(0)."
        )
    (path,) = submodel_selection.get_keypaths()
    submodel = submodel_selection.get()
    for name, value in (("the selected value", submodel), ("the whole tree", model)):
        if not isinstance(value, Layer):
            raise ValueError(
                f"call_and_extract_submodel: {name} must be a layer, to be called, but it is a "
                f"{type(value).__name__} (at {pretty_keystr(path, model) or 'the root'}). Select "
                "a layer in a model that is a layer."
            )
    capturer = IsolationCapturer(StateVariable([]), submodel)
    capturing = submodel_selection.set(capturer)
    capturing(argument, **side_inputs)
    axes = layerstack_axes_from_keypath(path)
    return [
        _unpack(packed, dict(zip(axes, indices, strict=True)))
        for indices in np.ndindex(*axes.values())
        for packed in capturer.saved_calls.value
    ]


def call_and_extract_submodel(
    submodel_selection: Selection[Any], argument: Any, /, **side_inputs: Any
) -> IsolatedSubmodel | list[IsolatedSubmodel]:
    """As `extract_submodel_calls`, but a single record stands alone.

    Args:
      submodel_selection: One layer of a model that is itself a layer.
      argument: The model's input.
      **side_inputs: The model's side inputs.

    Returns:
      The record if the layer was called exactly once, else the list of records. A layer that was
      never called gives an empty list and a warning.

    Raises:
      ValueError: As `extract_submodel_calls`.
    """
    calls = extract_submodel_calls(submodel_selection, argument, **side_inputs)
    if not calls:
        warnings.warn(
            "call_and_extract_submodel: the model did not call the selected layer, so there is "
            "nothing to extract. Check that the selected path is used in this call.",
            stacklevel=2,
        )
    return calls[0] if len(calls) == 1 else calls


class _Unchanged:
    def __repr__(self) -> str:
        return "<the saved argument>"


_SAVED = _Unchanged()


def replay(isolated: IsolatedSubmodel, argument: Any = _SAVED, /, **side_inputs: Any) -> Any:
    """Runs an isolated layer again, from the state that it saw first.

    Neither the record nor the original model changes.

    Args:
      isolated: A record.
      argument: A new input; default: the saved one.
      **side_inputs: Side inputs that replace or add to the saved ones.

    Returns:
      The layer's output. Without a new argument or side input it equals `isolated.saved_output`.
    """
    argument = isolated.saved_arg if argument is _SAVED else argument
    side = {**isolated.saved_side_inputs, **side_inputs}
    needed = set(_slots_in((isolated.submodel, argument, side)))
    values = [v for v in isolated.initial_var_values or () if v.get_slot() in needed]
    output, _ = isolated.submodel.stateless_call(values, argument, **side)
    return output


def _slots_in(tree: Any) -> tuple[Any, ...]:
    slots: tuple[Any, ...] = select(tree).at_instances_of(AbstractVariableSlot).get_sequence()
    return slots
