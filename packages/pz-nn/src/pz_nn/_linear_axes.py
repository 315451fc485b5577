"""Which weight axis is which: shared by linear layers and convolutions."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

from pz_core.variables import LabeledVariable, LabeledVariableValue
from pz_named.named_axes import NamedArrayBase
from pz_nn._axes import Names, axis_indices
from pz_nn._dtypes import is_floating

AxisSizes = dict[str, int]


class OperatorAxes:
    """Sizes of the axes of an operator's weights, by what they do; for layers with these three fields."""

    weights: Any
    in_axis_names: tuple[str, ...]
    out_axis_names: tuple[str, ...]

    @property
    def input_axes(self) -> dict[Hashable, int]:
        """Axes that are summed over, with sizes, in the order of the weights."""
        shape = self.weights.value.named_shape
        return {name: size for name, size in shape.items() if name in self.in_axis_names}

    @property
    def output_axes(self) -> dict[Hashable, int]:
        """Axes that are new in the output, with sizes, in the order of the weights."""
        shape = self.weights.value.named_shape
        return {name: size for name, size in shape.items() if name in self.out_axis_names}

    @property
    def parallel_axes(self) -> dict[Hashable, int]:
        """Axes of independent operators, with sizes; a stack's axis too, seen from outside the stack."""
        ends = (*self.in_axis_names, *self.out_axis_names)
        shape = self.weights.value.named_shape
        return {name: size for name, size in shape.items() if name not in ends}


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


@functools.lru_cache(maxsize=4096)
def contracted_names(
    summed: Names,
    left_names: Names,
    left_shape: tuple[int, ...],
    right_names: Names,
    right_shape: tuple[int, ...],
) -> Names:
    """Names of a contraction's result; raises as `contract` says."""
    axis_indices(left_names, summed, "contract (left operand)")
    axis_indices(right_names, summed, "contract (right operand)")
    left_sizes = dict(zip(left_names, left_shape, strict=True))
    right_sizes = dict(zip(right_names, right_shape, strict=True))
    conflicts = [n for n in left_names if n in right_sizes and left_sizes[n] != right_sizes[n]]
    if conflicts:
        raise ValueError(
            f"contract: axes of one name must agree in size, but {conflicts} do not. "
            f"left.named_shape={left_sizes}, right.named_shape={right_sizes}. Rename the axis of one "
            "operand if they are different things."
        )
    return (
        *(name for name in left_names if name not in summed),
        *(name for name in right_names if name not in left_sizes),
    )


def fits_linear(
    value: Any, weight_sizes: Mapping[Any, int], out_axis_names: tuple[str, ...]
) -> bool:
    """Whether an input fits; cheap, because every call asks and only a misfit needs a report."""
    if not isinstance(value, NamedArrayBase) or value.positional_shape:
        return False
    sizes = value.named_shape
    for name, size in weight_sizes.items():
        if name in out_axis_names:
            if name in sizes:
                return False
        elif sizes.get(name) != size:
            return False
    return is_floating(value.dtype)
