"""Layers that run other layers side by side and join the results.

Residual(delta)                              # y = delta(x) + x
BranchAndAddTogether([f, g])                 # y = f(x) + g(x)
BranchAndMultiplyTogether([gate, up])        # y = gate(x) * up(x), the heart of a gated MLP
ConcatBranches([f, g], axis="features")      # y = f(x) beside g(x)
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn.layer import Layer

__all__ = [
    "BranchAndAddTogether",
    "BranchAndMultiplyTogether",
    "ConcatBranches",
    "Residual",
]


@pytree_dataclass
class Residual(Layer):
    """Adds the input to the output of a layer: y = delta(x) + x.

    Attributes:
        delta: The layer. The order of its output axes leads.

    Example:
        >>> Residual(lambda x, **_: 10 * x)(2)
        22
    """

    delta: Any

    def __call__(self, value: Any, /, **side_inputs: Any) -> Any:
        """Runs the layer and adds its input."""
        return self.delta(value, **side_inputs) + value


@pytree_dataclass
class BranchAndAddTogether(Layer):
    """Runs every branch on the same input and adds the results, from left to right.

    Attributes:
        branches: At least one layer.
    """

    branches: list[Any]

    def __call__(self, value: Any, /, **side_inputs: Any) -> Any:
        """Runs the branches in order and adds their outputs.

        Raises:
            ValueError: If there is no branch.
        """
        # operator.add, never an in-place add: the first branch may hand over the caller's own array.
        return functools.reduce(operator.add, _run_branches(self, value, side_inputs))


@pytree_dataclass
class BranchAndMultiplyTogether(Layer):
    """Runs every branch on the same input and multiplies the results, from left to right.

    Attributes:
        branches: At least one layer.
    """

    branches: list[Any]

    def __call__(self, value: Any, /, **side_inputs: Any) -> Any:
        """Runs the branches in order and multiplies their outputs.

        Raises:
            ValueError: If there is no branch.
        """
        return functools.reduce(operator.mul, _run_branches(self, value, side_inputs))


@pytree_dataclass
class ConcatBranches(Layer):
    """Runs every branch on the same input and concatenates the results along one axis.

    Attributes:
        branches: At least one layer; their outputs agree in every other axis.
        axis: The axis, which every output has. It comes last in the result.
    """

    branches: list[Any]
    axis: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: Any, /, **side_inputs: Any) -> nx.NamedArrayBase:
        """Runs the branches in order and concatenates their outputs.

        Raises:
            ValueError: If there is no branch, or an output lacks the axis.
        """
        return nx.concatenate(_run_branches(self, value, side_inputs), self.axis)


def _run_branches(layer: Any, value: Any, side_inputs: dict[str, Any]) -> list[Any]:
    if not layer.branches:
        raise ValueError(
            f"{type(layer).__name__}: at least one branch is needed, but `branches` is empty. "
            "Give it a layer, or use Identity() to pass the input on."
        )
    return [branch(value, **side_inputs) for branch in layer.branches]
