"""Recurrent cells, and a combinator that runs one along a named axis.

    cell = LSTMCell.from_config("lstm", key, {"features": 8}, {"hidden": 16})
    ScanOver(cell, "seq")(x)                                          # {batch, seq, features} -> hidden
    ConcatBranches([ScanOver(cell, "seq"), ScanOver(other, "seq", reverse=True)], "hidden")  # both ways

A cell is a layer from (state, input) to (new state, output) that also knows its initial state; anything of
that form can be scanned.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_core.variables import StateVariable, freeze_params, unbind_variables
from pz_named import named_axes as nx
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import axis_indices, names_and_data, with_names
from pz_nn._linear_axes import check_disjoint
from pz_nn.initializers import (
    LinearOperatorWeightInitializer,
    xavier_uniform_initializer,
    zero_initializer,
)
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Affine, Linear

__all__ = ["GRUCell", "LSTMCell", "RecurrentCell", "ScanOver"]

AxisSizes = dict[str, int]
_GATES = "gates"


class RecurrentCell(Layer):
    """Abstract base class of cells: layers from (state, input) to (new state, output)."""

    @abc.abstractmethod
    def initial_state(self, value: NamedArrayBase) -> Any:
        """The state before the first input.

        Args:
            value: One input, for its batch axes and dtype.

        Returns:
            A pytree of named arrays.
        """


@pytree_dataclass
class GRUCell(RecurrentCell):
    """Gated recurrent unit, with the reset gate applied after the recurrent product.

    With i = input(x) and s = recurrent(h), each of which has the gates r, z, n:

        r = sigmoid(i_r + s_r),  z = sigmoid(i_z + s_z),  n = tanh(i_n + r · s_n),  h' = (1 - z) · n + z · h

    Attributes:
        input: Affine layer from the input axes to {gates: 3, hidden}.
        recurrent: Affine layer from the hidden axes to {gates: 3, hidden}.
        input_axes: Names of the input axes.
        hidden_axes: Pairs of name and size of the hidden axes.

    Reference: Cho et al. (2014), in the form of cuDNN and PyTorch.
    """

    input: Any
    recurrent: Any
    input_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    hidden_axes: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(
        self, argument: tuple[NamedArrayBase, NamedArrayBase], /, **side_inputs: Any
    ) -> tuple[NamedArrayBase, NamedArrayBase]:
        """Runs one step.

        Args:
            argument: The state h with the hidden axes, and the input with the input axes.
            **side_inputs: Passed on to the affine layers.

        Returns:
            The new state, twice: it is also the output.
        """
        hidden, value = argument
        inputs = self.input(value, **side_inputs)
        states = self.recurrent(hidden, **side_inputs)
        (i_reset, i_update, i_new), (s_reset, s_update, s_new) = _gates(inputs), _gates(states)
        reset, update = _sigmoid(i_reset + s_reset), _sigmoid(i_update + s_update)
        new = _tanh(i_new + reset * s_new)
        hidden = (1 - update) * new + update * hidden
        return hidden, hidden

    def initial_state(self, value: NamedArrayBase) -> NamedArray:
        """Zeros with the batch axes of one input and the hidden axes."""
        return _zeros(self, value)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        hidden_axes: AxisSizes,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        dtype: Any = jnp.float32,
    ) -> GRUCell:
        """Builds a cell.

        Args:
            name: Name of the cell; its parts are called `{name}/input` and `{name}/recurrent`.
            init_base_rng: Key of the model, or None for slots.
            input_axes: Axes of one input, with sizes.
            hidden_axes: Axes of the state, with sizes.
            initializer: Draws the weights; biases start at 0.
            dtype: Dtype of the parameters.

        Returns:
            The cell.
        """
        parts = _affine_parts(name, init_base_rng, input_axes, hidden_axes, 3, initializer, dtype)
        return cls(*parts, tuple(input_axes), tuple(hidden_axes.items()))


@pytree_dataclass
class LSTMCell(RecurrentCell):
    """Long short-term memory.

    With the gates i, f, g, o of input(x) + recurrent(h):

        c' = sigmoid(f) · c + sigmoid(i) · tanh(g),  h' = sigmoid(o) · tanh(c')

    Attributes:
        input: Affine layer from the input axes to {gates: 4, hidden}.
        recurrent: Linear layer from the hidden axes to {gates: 4, hidden}.
        input_axes: Names of the input axes.
        hidden_axes: Pairs of name and size of the hidden axes.

    Reference: Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    input: Any
    recurrent: Any
    input_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    hidden_axes: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(
        self,
        argument: tuple[tuple[NamedArrayBase, NamedArrayBase], NamedArrayBase],
        /,
        **side_inputs: Any,
    ) -> tuple[tuple[NamedArrayBase, NamedArrayBase], NamedArrayBase]:
        """Runs one step.

        Args:
            argument: The state (h, c), each with the hidden axes, and the input with the input axes.
            **side_inputs: Passed on to the linear layers.

        Returns:
            The new state, and h' as the output.
        """
        (hidden, memory), value = argument
        gates = self.input(value, **side_inputs) + self.recurrent(hidden, **side_inputs)
        input_gate, forget_gate, candidate, output_gate = _gates(gates)
        memory = _sigmoid(forget_gate) * memory + _sigmoid(input_gate) * _tanh(candidate)
        hidden = _sigmoid(output_gate) * _tanh(memory)
        return (hidden, memory), hidden

    def initial_state(self, value: NamedArrayBase) -> tuple[NamedArray, NamedArray]:
        """Zeros with the batch axes of one input and the hidden axes, for h and for c."""
        zeros = _zeros(self, value)
        return zeros, zeros

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        hidden_axes: AxisSizes,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        bias_initializer: LinearOperatorWeightInitializer = zero_initializer,
        dtype: Any = jnp.float32,
    ) -> LSTMCell:
        """Builds a cell.

        Args:
            name: Name of the cell; its parts are called `{name}/input` and `{name}/recurrent`.
            init_base_rng: Key of the model, or None for slots.
            input_axes: Axes of one input, with sizes.
            hidden_axes: Axes of the state, with sizes.
            initializer: Draws the weights.
            bias_initializer: Draws the bias.
            dtype: Dtype of the parameters.

        Returns:
            The cell.
        """
        gates = _gate_axes(f"LSTMCell.from_config({name!r})", 4, hidden_axes)
        inputs = Affine.from_config(
            f"{name}/input",
            init_base_rng,
            input_axes,
            gates,
            linear_initializer=initializer,
            bias_initializer=bias_initializer,
            dtype=dtype,
        )
        recurrent = Linear.from_config(
            f"{name}/recurrent",
            init_base_rng,
            hidden_axes,
            gates,
            initializer=initializer,
            dtype=dtype,
        )
        return cls(inputs, recurrent, tuple(input_axes), tuple(hidden_axes.items()))


def _affine_parts(
    name: str,
    init_base_rng: jax.Array | None,
    input_axes: AxisSizes,
    hidden_axes: AxisSizes,
    gates: int,
    initializer: LinearOperatorWeightInitializer,
    dtype: Any,
) -> tuple[Affine, Affine]:
    gate_axes = _gate_axes(f"GRUCell.from_config({name!r})", gates, hidden_axes)

    def affine(part: str, axes: AxisSizes) -> Affine:
        return Affine.from_config(
            f"{name}/{part}",
            init_base_rng,
            axes,
            gate_axes,
            linear_initializer=initializer,
            dtype=dtype,
        )

    return affine("input", input_axes), affine("recurrent", hidden_axes)


def _gate_axes(user: str, gates: int, hidden_axes: AxisSizes) -> AxisSizes:
    check_disjoint(user, hidden_axes=hidden_axes, own_axes={_GATES: gates})
    return {_GATES: gates, **hidden_axes}


def _gates(value: NamedArrayBase) -> list[Any]:
    return [value[{_GATES: index}] for index in range(value.named_shape[_GATES])]


def _sigmoid(value: NamedArrayBase) -> Any:
    return nx.nmap(jax.nn.sigmoid)(value)


def _tanh(value: NamedArrayBase) -> Any:
    return nx.nmap(jnp.tanh)(value)


def _zeros(cell: GRUCell | LSTMCell, value: NamedArrayBase) -> NamedArray:
    user = type(cell).__name__
    names, data = names_and_data(value, user)
    axis_indices(names, cell.input_axes, user)
    sizes = dict(zip(names, data.shape, strict=True))
    batch = {name: size for name, size in sizes.items() if name not in cell.input_axes}
    return nx.zeros({**batch, **dict(cell.hidden_axes)}, data.dtype)


@pytree_dataclass
class ScanOver(Layer):
    """Runs a cell along an axis, one entry after the other, in a compiled loop.

    State variables that the cell or the side inputs hold (a random stream, a counter) are carried from step
    to step; parameters can be read but not written.

    Attributes:
        cell: A `RecurrentCell`, or any layer from (state, input) to (new state, output) with a method
            `initial_state(one_input)`.
        axis: Name of the axis.
        reverse: Whether the last entry comes first.
        unroll: Steps in one round of the loop.
        return_state: Whether the result is (outputs, final state) instead of the outputs alone.
        state_input_name: Side input with the first state, if it is there; otherwise it is the cell's
            initial one. The state must keep its dtype and shape from step to step.

    Example:
        >>> cell = LSTMCell.from_config("lstm", jax.random.key(0), {"features": 2}, {"hidden": 3})
        >>> ScanOver(cell, "seq")(nx.ones({"batch": 2, "seq": 4, "features": 2})).named_shape
        {'seq': 4, 'batch': 2, 'hidden': 3}
    """

    cell: Any
    axis: str = dataclasses.field(metadata={"pytree_node": False})
    reverse: bool = dataclasses.field(default=False, metadata={"pytree_node": False})
    unroll: int = dataclasses.field(default=1, metadata={"pytree_node": False})
    return_state: bool = dataclasses.field(default=False, metadata={"pytree_node": False})
    state_input_name: str = dataclasses.field(
        default="recurrent_state", metadata={"pytree_node": False}
    )

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> Any:
        """Runs the cell along the axis.

        Args:
            value: Named array with the axis.
            **side_inputs: Passed to the cell at each step, whole.

        Returns:
            The outputs with the axis in front, or (outputs, final state).

        Raises:
            ValueError: If the axis is missing.
        """
        axis_indices(names_and_data(value, "ScanOver")[0], (self.axis,), "ScanOver")
        state = side_inputs.get(self.state_input_name)
        (slots, sides), variables = unbind_variables(
            (freeze_params(self.cell), side_inputs),
            lambda variable: isinstance(variable, StateVariable),
        )
        values = tuple(variable.freeze() for variable in variables)
        if state is None:
            entry = jax.eval_shape(_without(self.axis), value)
            state = self.cell.initial_state(entry)
            (after, _), _ = jax.eval_shape(_step, slots, sides, (state, values), entry)
            # Weights wider than the input widen the state in the first step; a loop cannot.
            state = jax.tree_util.tree_map(
                lambda now, then: now.astype(then.dtype), state, after, is_leaf=nx.is_namedarray
            )
        operands = (slots, sides, (state, values), value)
        run = _compiled_scan if _has_only_arrays(operands) else _scan
        (state, values), outputs = run(self.axis, self.reverse, self.unroll, *operands)
        for variable, final in zip(variables, values, strict=True):
            variable.update(final)
        return (outputs, state) if self.return_state else outputs


def _step(slots: Any, sides: dict[str, Any], carry: Any, entry: NamedArrayBase) -> Any:
    state, values = carry
    (state, output), values = slots.stateless_call(values, (state, entry), **sides)
    return (state, values), output


def _scan(
    axis: str, reverse: bool, unroll: int, slots: Any, sides: dict[str, Any], carry: Any, xs: Any
) -> Any:
    return nx.scan(
        functools.partial(_step, slots, sides), axis, carry, xs, reverse=reverse, unroll=unroll
    )


# One jitted function for all eager calls: a scan over a fresh closure would be compiled again each time.
_compiled_scan = functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)(_scan)


def _has_only_arrays(tree: Any) -> bool:
    kinds = jax.Array | np.ndarray | np.generic | float | int | complex
    return all(isinstance(leaf, kinds) for leaf in jax.tree_util.tree_leaves(tree))


def _without(axis: str) -> Callable[[NamedArrayBase], NamedArrayBase]:
    """A function that drops an axis, for the structure of one entry; it works for size 0 as well."""

    def drop(value: NamedArrayBase) -> NamedArrayBase:
        names, data = names_and_data(value, "ScanOver")
        rest = tuple(name for name in names if name != axis)
        sizes = tuple(size for name, size in zip(names, data.shape, strict=True) if name != axis)
        return with_names(rest, jnp.zeros(sizes, data.dtype))

    return drop
