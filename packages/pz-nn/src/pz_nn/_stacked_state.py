"""State of one layer inside a layer stack, kept in the buffer of the whole stack.

A layer stack slices the state of its layers for each turn of its loop and stacks what comes back. For
a key/value cache that would move the whole cache at every token. A layer can ask (by
`LayerWithStateInPlace`) to get a `StackedStateVariable` instead: the buffer of all layers travels in
the carry of the loop, reading takes a slice, and `update_slice` writes only what is new:

    buffer = lax.dynamic_update_slice(buffer, new, (layer, 0, 0, 0, position))   # in place for XLA

Scanning a cache as input and output costs a copy of it at every step; emitting the new part as output
and writing it after the loop costs the same as this, but then a layer could not read what it wrote.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax import lax

from pz_core.variables import StateVariable
from pz_named import named_axes as nx
from pz_nn.layer import Layer


class LayerWithStateInPlace(Layer):
    """A layer some of whose state should stay in the buffer of the stack around it."""

    @abc.abstractmethod
    def state_updated_in_place(self) -> tuple[Any, ...]:
        """The variables that the layer writes with `update_slice`.

        Returns:
            Contents of fields of this layer: variables, frozen values or slots.
        """

    @abc.abstractmethod
    def prepare_for_stack(self, argument: Any, side_inputs: dict[str, Any]) -> dict[str, Any]:
        """Checks what can only be checked before the stack's loop is traced.

        Args:
            argument: The argument of the stack.
            side_inputs: The side inputs of the stack.

        Returns:
            The side inputs; one whose every value runs the same program may be made an array, which
            spares a compilation for each value.
        """


class StackedStateVariable(StateVariable[Any]):
    """The part of a stacked state variable that belongs to one turn of a loop.

    `value` behaves as that of any state variable: reading slices the buffer, assigning writes the
    slice back. `update_slice` writes less than a slice.

    Attributes:
        stacked: The buffers of all layers, a tree of named arrays without positional axes.
        indices: Which slice is meant: stack axis → (traced) index, outermost stack first.
    """

    def __init__(
        self,
        *,
        label: Hashable,
        metadata: dict[Any, Any],
        stacked: Any,
        indices: Mapping[str, Any],
    ) -> None:
        self.stacked = stacked
        self.indices = dict(indices)
        super().__init__(None, label=label, metadata=metadata)  # `value` answers from the buffer

    @property
    def value(self) -> Any:
        """The slice of this layer."""
        return _map_named(lambda buffer: take_slice(buffer, self.indices), self.stacked)

    @value.setter
    def value(self, new_value: Any) -> None:
        self.update_slice(new_value, {})

    def update_slice(self, update: Any, starts: Mapping[Hashable, Any]) -> None:
        """Writes `update` into this layer's slice, beginning at `starts`.

        Args:
            update: A tree like the value; each array at most as large as its slice.
            starts: Where the update begins, by axis; 0 along other axes. `lax.dynamic_update_slice`
                rules hold: a start too large is moved back, so check it before.

        Raises:
            TypeError: If structure or dtype differ from the buffer's.
            ValueError: If axis names differ from the buffer's.
        """
        _require_same_structure(self.label, update, self.stacked)
        self.stacked = jax.tree.map(
            lambda buffer, new: write_slice(buffer, new, {**self.indices, **starts}),
            self.stacked,
            update,
            is_leaf=nx.is_namedarray,
        )


def can_be_kept_stacked(value: Any) -> bool:
    """Whether a state value can be a `StackedStateVariable`'s buffer."""
    leaves = jax.tree.leaves(value, is_leaf=nx.is_namedarray)
    return bool(leaves) and all(
        isinstance(leaf, nx.NamedArray) and not leaf.positional_shape for leaf in leaves
    )


def take_slice(buffer: nx.NamedArray, indices: Mapping[Any, Any]) -> nx.NamedArray:
    """The slice of a buffer at one index along each axis of `indices`; those axes are gone."""
    names = tuple(buffer.named_axes)
    data = buffer.data_array
    starts = [indices.get(name, 0) for name in names]
    sizes = [1 if name in indices else data.shape[i] for i, name in enumerate(names)]
    gone = [i for i, name in enumerate(names) if name in indices]
    sliced = lax.squeeze(lax.dynamic_slice(data, starts, sizes), gone)
    kept = [name for name in names if name not in indices]
    return nx.NamedArray(collections.OrderedDict(zip(kept, sliced.shape, strict=True)), sliced)


def write_slice(
    buffer: nx.NamedArray, update: nx.NamedArrayBase, starts: Mapping[Any, Any]
) -> nx.NamedArray:
    """The buffer with `update` written at `starts`, by one real dynamic-update-slice.

    Args:
        buffer: Named array without positional axes.
        update: Named array with the buffer's axes; one that it lacks counts as size 1 where `starts`
            has it.
        starts: Index along each axis, 0 where it is missing.

    Returns:
        An array laid out as the buffer.
    """
    names = tuple(buffer.named_axes)
    sizes = update.named_shape
    ordered = update.order_as(*(name for name in names if name in sizes)).data_array
    shape = tuple(sizes.get(name, 1) for name in names)
    whole = buffer.data_array.shape
    # Leading axes written in full are one axis meanwhile. Products with the result merge them too,
    # and a write that has to be reshaped for its reader is done by XLA twice, each time in a copy.
    merged = _leading_axes_in_full(names, shape, whole, starts)
    data = lax.dynamic_update_slice(
        buffer.data_array.reshape(math.prod(whole[:merged]), *whole[merged:]),
        ordered.reshape(math.prod(whole[:merged]), *shape[merged:]),
        [0, *(starts.get(name, 0) for name in names[merged:])],
    )
    return dataclasses.replace(buffer, data_array=data.reshape(whole))


def _leading_axes_in_full(
    names: tuple[Any, ...],
    shape: tuple[int, ...],
    whole: tuple[int, ...],
    starts: Mapping[Any, Any],
) -> int:
    """How many of the first axes an update of `shape` fills, the last two of all left out."""
    count = 0
    while count < len(names) - 2 and names[count] not in starts and shape[count] == whole[count]:
        count += 1
    return count


def _map_named(function: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(function, tree, is_leaf=nx.is_namedarray)


def _require_same_structure(label: Hashable, new: Any, old: Any) -> None:
    outer: list[Any] = [jax.tree.structure(_map_named(lambda _: 0, tree)) for tree in (new, old)]
    if outer[0] != outer[1]:
        raise TypeError(
            f"State variable {label!r} is updated in place inside a layer stack, so its structure must "
            f"stay {outer[1]}; the new value has {outer[0]}. Give it the structure it will have later "
            "before the stack runs."
        )
