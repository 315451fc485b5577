"""Taking one block out of the stacked block: slice arrays, make variables of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.variables import (
    AbstractVariableSlot,
    AbstractVariableValue,
    LabeledVariable,
    LabeledVariableValue,
    Parameter,
    ParameterSlot,
    StateVariable,
    StateVariableSlot,
)
from pz_named import named_axes as nx


def is_unit(node: Any) -> bool:
    """Whether a node is a named array, a variable's value or its slot, to be handled as one."""
    return nx.is_namedarray(node) or isinstance(node, AbstractVariableValue | AbstractVariableSlot)


@dataclasses.dataclass
class Splitter:
    """Makes block `index` of a stack.

    Attributes:
        axis: The stack axis.
        index: The block's index along it.
        label: Label in the stack → label in the block.
        is_shared: Whether all blocks share a state variable.
    """

    axis: str
    index: int
    label: Callable[[Hashable], Hashable]
    is_shared: Callable[[StateVariable[Any]], bool]
    _made: dict[int, Any] = dataclasses.field(default_factory=dict)

    def split(self, tree: Any) -> Any:
        """The tree of this block."""
        return jax.tree.map(self._convert, tree, is_leaf=is_unit)

    def _convert(self, node: Any) -> Any:
        if nx.is_namedarray(node):
            return self._slice(node)
        if isinstance(node, LabeledVariable):
            if id(node) not in self._made:
                self._made[id(node)] = self._variable(node)
            return self._made[id(node)]
        if isinstance(node, LabeledVariableValue):
            if self._differs(node.value) or not jax.tree.leaves(node.value):
                return dataclasses.replace(node, **self._parts(node))
            return node
        if isinstance(node, ParameterSlot | StateVariableSlot):
            return type(node)(self.label(node.label))
        return node

    def _variable(self, variable: LabeledVariable[Any]) -> Any:
        if isinstance(variable, Parameter):
            if not self._differs(variable.value):
                return variable
            return Parameter(**self._parts(variable))
        assert isinstance(variable, StateVariable)
        return variable if self.is_shared(variable) else StateVariable(**self._parts(variable))

    def _parts(self, variable: Any) -> dict[str, Any]:
        metadata = dict(variable.metadata)
        axes = metadata.get("layerstack_axes")
        if isinstance(axes, dict) and self.axis in axes:
            rest = {name: behavior for name, behavior in axes.items() if name != self.axis}
            del metadata["layerstack_axes"]
            if rest:
                metadata["layerstack_axes"] = rest
        return {
            "label": self.label(variable.label),
            "value": jax.tree.map(self._slice, variable.value, is_leaf=nx.is_namedarray),
            "metadata": metadata,
        }

    def _differs(self, value: Any) -> bool:
        leaves = jax.tree.leaves(value, is_leaf=nx.is_namedarray)
        return any(nx.is_namedarray(leaf) and self.axis in leaf.named_shape for leaf in leaves)

    def _slice(self, leaf: Any) -> Any:
        if not (nx.is_namedarray(leaf) and self.axis in leaf.named_shape):
            return leaf
        # An index that is an array compiles one slice for all blocks, a Python integer one for each.
        return leaf[{self.axis: jnp.int32(self.index)}]
