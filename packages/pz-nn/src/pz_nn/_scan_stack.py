"""The loop of a layer stack: take variables out, scan over blocks, put results back.

An eager call goes through one jitted function whose static arguments are the structure of everything
(`_run_flat`), so a stack that is called again is not traced again; under an outer `jax.jit` that
function is inlined and leaves just the `scan`. Arrays that differ per block are inputs of the scan,
which slices them where they stand; nothing is copied or transposed if the stack axis is the first.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pz_core.variables import AbstractVariable, StateVariable, bind_variables
from pz_named import named_axes as nx
from pz_nn import _stack_variables
from pz_nn._stacked_state import StackedStateVariable

Checkpoint: TypeAlias = str | tuple[str, ...] | Callable[..., Any] | None


class Loop(NamedTuple):
    """The static facts of a loop; attributes as the fields of `LayerStack`."""

    axis: str
    size: int
    unroll: int
    checkpoint: Checkpoint


IsShared = Callable[[StateVariable[Any]], bool]


class Inputs(NamedTuple):
    """Everything a loop reads, without mutable variables; values are frozen variables.

    `in_place` pairs a frozen variable, whose value is the buffer, with the indices that outer stacks
    have fixed in it.
    """

    block: Any
    argument: Any
    side_inputs: Any
    side_parameters: Any
    shared: Any
    per_layer: Any
    in_place: Any


class Results(NamedTuple):
    """What a loop returns: the last block's output and the new values of the variables."""

    output: Any
    shared: Any
    per_layer: Any
    in_place: Any


def run(
    block: Any, argument: Any, side_inputs: dict[str, Any], loop: Loop, is_shared: IsShared
) -> Any:
    """Runs the blocks and assigns their state variables; see `LayerStack.__call__`."""
    for layer in _stack_variables.layers_with_state_in_place(block):
        side_inputs = layer.prepare_for_stack(argument, side_inputs)
    unbound = _stack_variables.unbind(block, side_inputs, loop.axis, is_shared)
    _require_no_variables(argument)
    results = _run_cached(
        Inputs(
            unbound.block,
            argument,
            unbound.side_inputs,
            tuple(v.freeze() for v in unbound.side_parameters),
            tuple(v.freeze() for v in unbound.shared),
            tuple(v.freeze() for v in unbound.per_layer),
            tuple(_buffer_of(v) for v in unbound.in_place),
        ),
        loop,
    )
    for variable, value in zip(unbound.shared, results.shared, strict=True):
        variable.value = value
    for variable, value in zip(unbound.per_layer, results.per_layer, strict=True):
        variable.value = value
    for variable, value in zip(unbound.in_place, results.in_place, strict=True):
        if isinstance(variable, StackedStateVariable):
            variable.stacked = value
        else:
            variable.value = value
    return results.output


def _buffer_of(variable: StateVariable[Any]) -> Any:
    """(frozen variable that holds the whole buffer, indices fixed by outer stacks)."""
    if isinstance(variable, StackedStateVariable):
        whole = StateVariable(variable.stacked, label=variable.label, metadata=variable.metadata)
        return whole.freeze(), variable.indices
    return variable.freeze(), {}


def _require_no_variables(argument: Any) -> None:
    for leaf in jax.tree.leaves(argument):
        if isinstance(leaf, AbstractVariable):
            raise TypeError(
                f"LayerStack: the argument must not hold variables, but holds a {type(leaf).__name__}. "
                "Pass it as a side input, or freeze it."
            )


# --- calling the loop without tracing it again ------------------------------------------------------


class _Constant:
    """A leaf that is no array; part of the structure, compared by type and value."""

    def __init__(self, value: Any):
        self.value = value
        # NaN differs from itself and 0.0 equals -0.0: the text of a float does neither.
        self._key = (type(value), repr(value) if isinstance(value, (float, complex)) else value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _run_cached(inputs: Inputs, loop: Loop) -> Results:
    leaves, structure = jax.tree.flatten(inputs)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]
    arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
    constants = tuple(
        None if yes else _Constant(leaf) for leaf, yes in zip(leaves, is_array, strict=True)
    )
    try:
        hash((constants, loop))
    except TypeError:  # a leaf or policy that cannot be told from another: trace each time
        return scan_blocks(inputs, loop)
    results: Results = _run_flat(arrays, structure, constants, loop)
    return results


@functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _run_flat(arrays: list[Any], structure: Any, constants: tuple[Any, ...], loop: Loop) -> Results:
    remaining = iter(arrays)
    leaves = [next(remaining) if c is None else c.value for c in constants]
    return scan_blocks(jax.tree.unflatten(structure, leaves), loop)


# --- the loop ---------------------------------------------------------------------------------------


def scan_blocks(inputs: Inputs, loop: Loop) -> Results:
    """The loop as a pure function."""
    block_slices, put_into_block = _split(inputs.block, loop)
    states = [value.value for value in inputs.per_layer]
    state_slices, put_into_states = _split(states, loop)
    argument = jax.tree.map(jnp.asarray, inputs.argument)

    def body(carry: Any, slices: Any) -> tuple[Any, Any]:
        argument, shared, buffers = carry
        index, block_slice, state_slice = slices
        shared_variables = _copies(inputs.shared, shared)
        per_layer = _copies(inputs.per_layer, put_into_states(state_slice))
        in_place = [
            StackedStateVariable(
                label=frozen.label,
                metadata=frozen.metadata,
                stacked=buffer,
                indices={**indices, loop.axis: index},
            )
            for (frozen, indices), buffer in zip(inputs.in_place, buffers, strict=True)
        ]
        block, side_inputs = bind_variables(
            (put_into_block(block_slice), inputs.side_inputs),
            [
                *shared_variables,
                *per_layer,
                *in_place,
                *(value.unfreeze_as_copy() for value in inputs.side_parameters),
            ],
        )
        output = block(argument, **side_inputs)
        new_carry = (
            _like(output, argument, "the argument"),
            [
                _like(v.value, old, f"shared state variable {v.label!r}")
                for v, old in zip(shared_variables, shared, strict=True)
            ],
            [variable.stacked for variable in in_place],
        )
        stacked = [
            _sliceable(v.value, v.label, started_empty=not jax.tree.leaves(old))
            for v, old in zip(per_layer, states, strict=True)
        ]
        return new_carry, stacked

    if loop.checkpoint is not None:
        # A scan's body is compiled by itself: nothing outside could be merged with its recomputation.
        body = jax.checkpoint(body, policy=_policy(loop.checkpoint), prevent_cse=False)
    carry = (
        argument,
        [value.value for value in inputs.shared],
        [frozen.value for frozen, _ in inputs.in_place],
    )
    indices = jnp.arange(loop.size) if inputs.in_place else None
    (output, shared, buffers), stacked = lax.scan(
        body, carry, (indices, block_slices, state_slices), length=loop.size, unroll=loop.unroll
    )
    per_layer = _map_named(lambda leaf: leaf.tag_prefix(loop.axis), stacked)
    return Results(output, shared, per_layer, buffers)


def _copies(frozen: Any, values: Any) -> list[StateVariable[Any]]:
    return [
        StateVariable(value, label=f.label, metadata=f.metadata)
        for f, value in zip(frozen, values, strict=True)
    ]


def _map_named(function: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(function, tree, is_leaf=nx.is_namedarray)


def _split(tree: Any, loop: Loop) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The named arrays of a tree that have the stack axis, and how to put slices in their place.

    Returns:
        The arrays with the stack axis as first, positional one; a function from slices of them to the
        tree of one block.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=nx.is_namedarray)
    leaves = [leaf for _, leaf in flat]
    places = [
        i
        for i, leaf in enumerate(leaves)
        if nx.is_namedarray(leaf) and loop.axis in leaf.named_shape
    ]
    for i in places:
        if leaves[i].named_shape[loop.axis] != loop.size:
            raise ValueError(
                f"LayerStack: every array with the stack axis {loop.axis!r} must have size {loop.size} "
                f"(stack_axis_size) along it, but {jax.tree_util.keystr(flat[i][0])} has "
                f"named_shape={leaves[i].named_shape}. Change stack_axis_size, or give the array as many "
                "slices as there are blocks."
            )

    def put_into(slices: list[Any]) -> Any:
        merged = list(leaves)
        for i, piece in zip(places, slices, strict=True):
            merged[i] = piece
        return jax.tree.unflatten(structure, merged)

    leading = [leaves[i].untag_prefix(loop.axis).with_positional_prefix() for i in places]
    return leading, put_into


def _sliceable(value: Any, label: Any, *, started_empty: bool) -> Any:
    """A state of one block in the form that stacks by a new first axis."""

    def convert(leaf: Any) -> Any:
        if nx.is_namedarray(leaf):
            return leaf.with_positional_prefix()
        if started_empty:
            return nx.wrap(leaf)
        raise ValueError(
            f"LayerStack: state variable {label!r} is PER_LAYER, so a block must leave named arrays in "
            f"it, but left a {type(leaf).__name__} without names. Wrap it: nx.wrap(array, ...names)."
        )

    return _map_named(convert, value)


def _like(new: Any, old: Any, what: str) -> Any:
    """`new` with axes in the order of `old`, if they agree in all else."""
    outer_new: Any
    outer_old: Any
    outer_new, outer_old = (
        jax.tree.structure(_map_named(lambda _: 0, tree)) for tree in (new, old)
    )
    if outer_new != outer_old:
        raise ValueError(
            f"LayerStack: a block must keep the structure of {what}: it got {outer_old} and returned "
            f"{outer_new}. Return what the next block expects."
        )
    return jax.tree.map(
        functools.partial(_leaf_like, what=what), new, old, is_leaf=nx.is_namedarray
    )


def _leaf_like(new: Any, old: Any, *, what: str) -> Any:
    if nx.is_namedarray(old) != nx.is_namedarray(new) or _shapes(new) != _shapes(old):
        raise ValueError(
            f"LayerStack: a block must keep names and sizes of {what}: it got "
            f"{_describe(old)} and returned {_describe(new)}. Reduce or rename the axes inside the block, "
            "so that the next one can run on its output."
        )
    if new.dtype != old.dtype and not getattr(_data(old), "weak_type", False):
        raise TypeError(
            f"LayerStack: a block must keep the dtype of {what}: it got {_describe(old)} and returned "
            f"{_describe(new)}. Cast inside the block (CastToDType), or give its parameters the dtype "
            f"{old.dtype}."
        )
    return new.order_like(old) if nx.is_namedarray(old) else new


def _data(leaf: Any) -> Any:
    return leaf.data_array if nx.is_namedarray(leaf) else leaf


def _shapes(leaf: Any) -> tuple[Any, Any]:
    if nx.is_namedarray(leaf):
        return leaf.positional_shape, leaf.named_shape
    return jnp.shape(leaf), {}


def _describe(leaf: Any) -> str:
    positional, named = _shapes(leaf)
    kind = "named array" if nx.is_namedarray(leaf) else "array"
    sizes = ", ".join([*map(str, positional), *(f"{n}: {s}" for n, s in named.items())])
    return f"{kind} {_data(leaf).dtype}{{{sizes}}}"


def _policy(checkpoint: str | tuple[str, ...] | Callable[..., Any]) -> Callable[..., Any]:
    if callable(checkpoint):
        return checkpoint
    name, arguments = (
        (checkpoint, ()) if isinstance(checkpoint, str) else (checkpoint[0], checkpoint[1:])
    )
    known = [policy for policy in dir(jax.checkpoint_policies) if not policy.startswith("_")]
    if name not in known:
        close = difflib.get_close_matches(name, known)
        raise ValueError(
            "LayerStack: checkpoint must be None, a policy, the name of one in jax.checkpoint_policies, or "
            f"a name and its arguments, but is {checkpoint!r}. "
            + (f"Did you mean {' or '.join(map(repr, close))}?" if close else f"They are {known}.")
        )
    policy: Callable[..., Any] = getattr(jax.checkpoint_policies, name)
    return policy(*arguments) if arguments else policy
