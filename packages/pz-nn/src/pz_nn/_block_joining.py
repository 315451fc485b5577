"""Putting separate blocks of one structure together: stack arrays, join variables."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.selectors import select
from pz_core.variables import (
    AbstractVariableSlot,
    LabeledVariable,
    LabeledVariableValue,
    Parameter,
    ParameterSlot,
    StateVariable,
    StateVariableSlot,
)
from pz_named import named_axes as nx
from pz_nn._block_splitting import is_unit


@dataclasses.dataclass
class Joiner:
    """Makes the block of a stack from separate blocks.

    Attributes:
        axis: The stack axis.
        label: Labels in the blocks → label in the stack.
        per_layer: What metadata says of a state variable that differs per block.
    """

    axis: str
    label: Callable[[Sequence[Hashable]], Hashable]
    per_layer: Any
    _made: dict[tuple[int, ...], Any] = dataclasses.field(default_factory=dict)

    def join(self, blocks: Sequence[Any]) -> Any:
        """The block of the stack.

        Raises:
            ValueError: If the blocks differ in what a stack cannot vary.
        """
        blocks = _with_differing_numbers_as_leaves(blocks)
        flat = [jax.tree_util.tree_flatten_with_path(block, is_leaf=is_unit) for block in blocks]
        structures: list[Any] = [structure for _, structure in flat]
        for index, structure in enumerate(structures):
            if structure != structures[0]:
                raise ValueError(
                    f"restack: blocks 0 and {index} differ in structure or static settings: "
                    f"{_first_difference(flat[0][0], flat[index][0])}. Blocks of different kinds stack "
                    'with form="super_block" or form="scanned".'
                )
        joined = [
            self._join(jax.tree_util.keystr(column[0][0]), [leaf for _, leaf in column])
            for column in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        return jax.tree.unflatten(structures[0], joined)

    def _join(self, where: str, leaves: list[Any]) -> Any:
        first = leaves[0]
        if all(leaf is first for leaf in leaves) and not isinstance(first, AbstractVariableSlot):
            if len(leaves) > 1 or not isinstance(first, LabeledVariable | LabeledVariableValue):
                return first
        if any(type(leaf) is not type(first) for leaf in leaves):
            raise ValueError(
                f"restack: blocks hold different things at {where}: "
                f"{', '.join(sorted({type(leaf).__name__ for leaf in leaves}))}. Make them alike first: "
                "bind, or freeze, the variables of all blocks."
            )
        if nx.is_namedarray(first):
            return self._stack(where, leaves)
        if isinstance(first, LabeledVariable):
            ids = tuple(map(id, leaves))
            if ids not in self._made:
                self._made[ids] = self._variable(where, leaves)
            return self._made[ids]
        if isinstance(first, LabeledVariableValue):
            return dataclasses.replace(first, **self._parts(where, leaves))
        if isinstance(first, ParameterSlot | StateVariableSlot):
            return type(first)(self.label([leaf.label for leaf in leaves]))
        return self._plain(where, leaves)

    def _variable(self, where: str, variables: list[Any]) -> Any:
        parts = self._parts(where, variables)
        if isinstance(variables[0], Parameter):
            return Parameter(**parts)
        assert isinstance(variables[0], StateVariable)
        return StateVariable(**parts)

    def _parts(self, where: str, variables: list[Any]) -> dict[str, Any]:
        """Label, value and metadata of the variable that joins `variables`."""
        metadata = copy.deepcopy(variables[0].metadata)
        axes = metadata.get("layerstack_axes", {})
        if isinstance(variables[0].get_slot(), type(StateVariable(None).get_slot())) and isinstance(
            axes, dict
        ):
            metadata["layerstack_axes"] = {self.axis: self.per_layer, **axes}
        flat = [jax.tree.flatten(v.value, is_leaf=nx.is_namedarray) for v in variables]
        structures: list[Any] = [structure for _, structure in flat]
        if any(structure != structures[0] for structure in structures):
            raise ValueError(
                f"restack: the values of the variables at {where} must have one structure, but have "
                f"{structures[0]} and others. Run all blocks, or none, before they are stacked."
            )
        columns = zip(*(leaves for leaves, _ in flat), strict=True)
        stacked = [self._stack(where, list(column)) for column in columns]
        return {
            "label": self.label([v.label for v in variables]),
            "value": jax.tree.unflatten(structures[0], stacked),
            "metadata": metadata,
        }

    def _stack(self, where: str, arrays: list[Any]) -> Any:
        first = arrays[0]
        if not all(nx.is_namedarray(array) for array in arrays):
            raise ValueError(
                f"restack: arrays that differ per block must be named arrays, but {where} holds a "
                f"{type(first).__name__}. Wrap it: nx.wrap(array, ...names)."
            )
        for array in arrays:
            if (array.named_shape, array.positional_shape) != (
                first.named_shape,
                first.positional_shape,
            ):
                raise ValueError(
                    f"restack: arrays at {where} must have one named shape, but have "
                    f"{first.named_shape} and {array.named_shape}. Only blocks of equal sizes stack."
                )
            if self.axis in array.named_shape:
                raise ValueError(
                    f"restack: the array at {where} already has the stack axis {self.axis!r}: "
                    f"{array.named_shape}. Choose another stack_axis."
                )
        prefixed = [array.order_like(first).with_positional_prefix() for array in arrays]
        data = jnp.stack([array.data_array for array in prefixed])
        return dataclasses.replace(prefixed[0], data_array=data).tag_prefix(self.axis)

    def _plain(self, where: str, leaves: list[Any]) -> Any:
        first = leaves[0]
        if all(_same(leaf, first) for leaf in leaves):
            return first
        if all(isinstance(leaf, _PerBlock) for leaf in leaves):
            return nx.wrap(jnp.array([leaf.number for leaf in leaves]), self.axis)
        raise ValueError(
            f"restack: blocks differ at {where}, which holds a {type(first).__name__} and can therefore "
            "not vary along a stack. Make it a named array, or give all blocks the same."
        )


@dataclasses.dataclass(frozen=True)
class _PerBlock:
    """A number in which blocks differ. In a field that may hold a static number, this is a leaf."""

    number: complex


def _with_differing_numbers_as_leaves(blocks: Sequence[Any]) -> list[Any]:
    """The blocks with their numbers as leaves wherever not all have the same number in one place."""
    numbers = [select(block).at_instances_of((bool, int, float, complex)) for block in blocks]
    found = [selection.get_by_path() for selection in numbers]
    differing = {
        path
        for path, number in found[0].items()
        if any(path in other and not _same(other[path], number) for other in found[1:])
    }
    return [
        selection.where(lambda path, _: path in differing, with_keypath=True).apply(_PerBlock)
        for selection in numbers
    ]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, jax.Array | np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(jnp.array_equal(a, b))
    return type(a) is type(b) and bool(a == b)


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> str:
    """Where two flattened blocks part, in words."""
    for (path_a, _), (path_b, _) in zip(a, b, strict=False):
        if path_a != path_b:
            return f"{jax.tree_util.keystr(path_a)} stands against {jax.tree_util.keystr(path_b)}"
    if len(a) != len(b):
        return f"{len(a)} leaves against {len(b)}"
    return "the classes or static fields of some layers"
