"""Which weight axis is which: shared by linear layers and convolutions."""

from __future__ import annotations

from typing import Any

from pz_core.variables import LabeledVariable, LabeledVariableValue

AxisSizes = dict[str, int]


def primed_output_names(
    user: str,
    input_axes: AxisSizes,
    output_axes: AxisSizes,
    parallel_axes: AxisSizes,
    broadcast_axes: AxisSizes,
    may_rename: bool,
) -> dict[str, str]:
    """Names under which the weights hold output axes that are input axes too.

    Raises:
        ValueError: If the groups of axes overlap otherwise, or such a name is taken.
    """
    primed = {n: f"{n}_out" for n in output_axes if n in input_axes}
    groups = (
        f"input_axes={input_axes}, output_axes={output_axes}, parallel_axes={parallel_axes}, "
        f"parallel_broadcast_axes={broadcast_axes}"
    )
    if primed and not may_rename:
        raise ValueError(
            f"{user}: with rename_outputs_if_necessary=False no axis may be both input and output "
            f"axis, but {list(primed)} are: {groups}. Rename the output axes, or allow the renaming."
        )
    others = (input_axes, parallel_axes, broadcast_axes, output_axes)
    taken = [new for new in primed.values() if any(new in group for group in others)]
    if taken:
        raise ValueError(
            f"{user}: the weights hold an output axis that is also an input axis under its name with "
            f"`_out`, so {taken} must be free: {groups}. Give the output axes other names and put a "
            "RenameAxes after the layer."
        )
    held = [*input_axes, *(primed.get(n, n) for n in output_axes), *parallel_axes, *broadcast_axes]
    repeated = sorted({n for n in held if held.count(n) > 1})
    if repeated:
        raise ValueError(
            f"{user}: parallel and broadcast axes must differ from each other and from input and output "
            f"axes, but {repeated} stand in several groups: {groups}. Leave each axis in the one group "
            "that says what it does."
        )
    return primed


def check_disjoint(user: str, **groups: AxisSizes) -> None:
    """Checks that no axis name stands in two groups.

    Raises:
        ValueError: If one does.
    """
    names = [name for group in groups.values() for name in group]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        shown = ", ".join(f"{label}={group}" for label, group in groups.items())
        raise ValueError(
            f"{user}: each axis name may stand in one group only, but {repeated} stand in several: "
            f"{shown}. Give one of them another name."
        )


def label_prefix(parameter: Any) -> str:
    """`(layer name) ` from the label of its weights, or nothing."""
    if isinstance(parameter, LabeledVariable | LabeledVariableValue):
        label = parameter.label
        if isinstance(label, str) and label.endswith(".weights"):
            return f"({label.removesuffix('.weights')}) "
    return ""
