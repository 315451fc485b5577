"""Which variables a layer stack finds, and how each takes part in the loop.

Parameters are frozen. State variables are sorted into three groups by their metadata, their values and
the layers that own them:

* shared: in the carry;
* per layer: sliced as inputs of the loop and stacked as outputs;
* in place: per layer as well, but the stacked buffer is in the carry (`_stacked_state`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from pz_core.variables import (
    AbstractVariable,
    Parameter,
    StateVariable,
    bind_variables,
    unbind_variables,
)
from pz_named import named_axes as nx
from pz_nn._stacked_state import (
    LayerWithStateInPlace,
    StackedStateVariable,
    can_be_kept_stacked,
)


@dataclasses.dataclass(frozen=True)
class Unbound:
    """A stack's block and side inputs without mutable variables, and the variables.

    Attributes:
        block: The block; parameters frozen, slots for state variables.
        side_inputs: The side inputs, with slots.
        side_parameters: Parameters of the side inputs.
        shared: State variables in the carry, those of side inputs included.
        per_layer: State variables sliced and stacked.
        in_place: State variables whose stacked buffer is in the carry.
    """

    block: Any
    side_inputs: dict[str, Any]
    side_parameters: tuple[Parameter[Any], ...]
    shared: tuple[StateVariable[Any], ...]
    per_layer: tuple[StateVariable[Any], ...]
    in_place: tuple[StateVariable[Any], ...]


def unbind(
    block: Any,
    side_inputs: dict[str, Any],
    axis: str,
    is_shared: Callable[[StateVariable[Any]], bool],
) -> Unbound:
    """Takes the variables out of a block and the side inputs and sorts them.

    Args:
        block: The block.
        side_inputs: The side inputs of the stack.
        axis: The stack axis.
        is_shared: Whether all blocks share a state variable of the block; raises where it says nothing.

    Raises:
        ValueError: If a state variable breaks the rules for `axis`, or a variable is of another kind.
        VariableConflictError: If two variables of the block have one label.
    """
    slots, variables = unbind_variables(block)
    side_slots, side_variables = unbind_variables(side_inputs)
    _reject_other_kinds(variables, "the blocks")
    _reject_other_kinds(side_variables, "the side inputs")
    parameters = [v.freeze() for v in variables if isinstance(v, Parameter)]
    side_states = [v for v in side_variables if isinstance(v, StateVariable)]
    wants_in_place = {
        id(v) for layer in layers_with_state_in_place(block) for v in layer.state_updated_in_place()
    }
    shared: list[StateVariable[Any]] = list(side_states)
    per_layer: list[StateVariable[Any]] = []
    in_place: list[StateVariable[Any]] = []
    side_by_slot = {v.get_slot(): v for v in side_states}
    for variable in variables:
        if not isinstance(variable, StateVariable):
            continue
        elsewhere = side_by_slot.get(variable.get_slot())
        if is_shared(variable):
            _check_shared(variable, axis, elsewhere)
            if elsewhere is None:
                shared.append(variable)
        else:
            _check_per_layer(variable, axis, elsewhere)
            kept = id(variable) in wants_in_place and can_be_kept_stacked(stored_value(variable))
            (in_place if kept else per_layer).append(variable)
    return Unbound(
        bind_variables(slots, parameters),
        side_slots,
        tuple(v for v in side_variables if isinstance(v, Parameter)),
        tuple(shared),
        tuple(per_layer),
        tuple(in_place),
    )


def layers_with_state_in_place(block: Any) -> list[LayerWithStateInPlace]:
    """The layers of a block that update their state in place."""
    leaves = jax.tree.leaves(block, is_leaf=lambda x: isinstance(x, LayerWithStateInPlace))
    return [leaf for leaf in leaves if isinstance(leaf, LayerWithStateInPlace)]


def stored_value(variable: StateVariable[Any]) -> Any:
    """What a variable holds: for a slice of an outer stack's buffer, the buffer."""
    return variable.stacked if isinstance(variable, StackedStateVariable) else variable.value


def named_leaves(variable: StateVariable[Any]) -> list[Any]:
    """The arrays that a variable holds, named ones whole."""
    return jax.tree.leaves(stored_value(variable), is_leaf=nx.is_namedarray)


def _check_shared(variable: StateVariable[Any], axis: str, elsewhere: Any) -> None:
    with_axis = [
        x.named_shape
        for x in named_leaves(variable)
        if nx.is_namedarray(x) and axis in x.named_shape
    ]
    if with_axis:
        raise ValueError(
            f"LayerStack: state variable {variable.label!r} is SHARED along the stack axis {axis!r}, so no "
            f"array in it may have that axis; named shapes {with_axis} do. Mark it "
            "LayerStackVarBehavior.PER_LAYER, or drop the axis."
        )
    if elsewhere is not None and elsewhere is not variable:
        raise ValueError(
            f"LayerStack: two different state variables are labelled {variable.label!r}, one in the blocks "
            "and one in the side inputs. Pass the very same variable, or give one another label."
        )


def _check_per_layer(variable: StateVariable[Any], axis: str, elsewhere: Any) -> None:
    if elsewhere is not None:
        raise ValueError(
            f"LayerStack: state variable {variable.label!r} is PER_LAYER along {axis!r}, so it may not stand "
            "in the side inputs as well, which all blocks share. Remove it there, or mark it "
            "LayerStackVarBehavior.SHARED."
        )
    flat = jax.tree_util.tree_flatten_with_path(stored_value(variable), is_leaf=nx.is_namedarray)[0]
    bad = [
        f"value{jax.tree_util.keystr(path)}: "
        + (
            f"named_shape={x.named_shape}"
            if nx.is_namedarray(x)
            else f"a {type(x).__name__} without names"
        )
        for path, x in flat
        if not (nx.is_namedarray(x) and axis in x.named_shape)
    ]
    if bad:
        raise ValueError(
            f"LayerStack: state variable {variable.label!r} is PER_LAYER along the stack axis {axis!r}, so "
            f"every array in it must be a named array with that axis; these are not: {'; '.join(bad)}. "
            f"Stack one value per block: nx.stack(values, {axis!r})."
        )


def _reject_other_kinds(variables: Iterable[AbstractVariable], where: str) -> None:
    others = sorted(
        {type(v).__name__ for v in variables if not isinstance(v, (Parameter, StateVariable))}
    )
    if others:
        raise ValueError(
            f"LayerStack: variables inside a stack must be Parameters or StateVariables, but {where} hold "
            f"{', '.join(others)}. Freeze them first: freeze_variables(model)."
        )
