"""Building the block of a layer stack: the builder of one block, vmapped over keys.

The implementation is just:

    arrays = jax.vmap(lambda key: named_arrays_of(builder(init_base_rng=key)))(split(key, n))

with the stack axis named in front of each array, and fresh variables around them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.variables import (
    Parameter,
    ParameterValue,
    StateVariable,
    StateVariableValue,
    bind_variables,
    unbind_variables,
)
from pz_named import named_axes as nx
from pz_nn.parameters import unique_parameter_names


@dataclasses.dataclass(frozen=True)
class Stacking:
    """How blocks are stacked; attributes as the arguments of `from_sublayer_builder`.

    `shared` and `per_layer` are what the metadata of a state variable says for either.
    """

    axis: str
    size: int
    is_shared_state: Callable[[StateVariable[Any]], bool]
    shared: Any
    per_layer: Any


class _Skeleton(NamedTuple):
    """A tree without its arrays: in their places stand `_NAMED` and `_PLAIN`."""

    structure: Any
    leaves: list[Any]


_NAMED = object()
_PLAIN = object()


def build_stacked(
    builder: Callable[..., Any],
    stacking: Stacking,
    init_base_rng: jax.Array | None,
    builder_kwargs: dict[str, Any],
) -> Any:
    """Builds the block; see `LayerStack.from_sublayer_builder`."""
    skeletons: list[_Skeleton] = []
    shared_structures: list[Any] = []

    def build(key: Any) -> tuple[list[Any], list[Any], list[Any]]:
        with unique_parameter_names():
            block = builder(init_base_rng=None if init_base_rng is None else key, **builder_kwargs)
        slots, variables = unbind_variables(block)
        shared, own = _frozen_and_sorted(variables, stacking)
        named, plain, skeleton = _take_apart((slots, own), stacking.axis)
        shared_leaves, shared_structure = jax.tree.flatten(shared)
        skeletons.append(skeleton)
        shared_structures.append(shared_structure)
        return named, plain, shared_leaves

    if init_base_rng is None:
        keys = jnp.zeros(stacking.size)  # only says how many
    else:
        keys = jax.random.split(init_base_rng, stacking.size)
    # Plain and shared arrays may not depend on the key: vmap refuses them as unmapped outputs.
    built = jax.vmap(build, out_axes=(0, None, None), axis_size=stacking.size)(keys)
    named, plain, shared_leaves = built
    slots, own = _put_together(skeletons[0], named, plain, stacking.axis)
    shared = jax.tree.unflatten(shared_structures[0], shared_leaves)
    return bind_variables(
        slots,
        [
            *(_fresh(value, stacking.axis, stacking.per_layer) for value in own),
            *(_fresh(value, stacking.axis, stacking.shared) for value in shared),
        ],
    )


def _frozen_and_sorted(
    variables: Iterable[Any], stacking: Stacking
) -> tuple[list[StateVariableValue[Any]], list[Any]]:
    """Values of shared states, and of all other variables; all fit for a stack."""
    shared, own = [], []
    for variable in variables:
        if not isinstance(variable, (Parameter, StateVariable)):
            raise ValueError(
                "LayerStack.from_sublayer_builder: a block may own Parameters and StateVariables, but "
                f"the builder made a {type(variable).__name__}. Freeze it in the builder: "
                "variable.freeze()."
            )
        if isinstance(variable, StateVariable):
            _require_undeclared(variable, stacking.axis)
            if stacking.is_shared_state(variable):
                shared.append(variable.freeze())
                continue
        _require_named(variable)
        own.append(variable.freeze())
    return shared, own


def _require_undeclared(variable: StateVariable[Any], axis: str) -> None:
    declared = variable.metadata.get("layerstack_axes", {})
    if axis in declared:
        raise ValueError(
            f"LayerStack.from_sublayer_builder: state variable {variable.label!r} already says how it "
            f"behaves along {axis!r} ({declared[axis]}), which is for the stack to decide. Leave the "
            "entry out, and pass is_shared_state for a shared one."
        )


def _require_named(variable: Parameter[Any] | StateVariable[Any]) -> None:
    flat = jax.tree_util.tree_flatten_with_path(variable.value, is_leaf=nx.is_namedarray)[0]
    plain = [f"value{jax.tree_util.keystr(path)}" for path, x in flat if not nx.is_namedarray(x)]
    if plain:
        raise ValueError(
            f"LayerStack.from_sublayer_builder: variable {variable.label!r} differs per block, so every "
            f"array in it must be a named array; {', '.join(plain)} is not. Wrap it: "
            "nx.wrap(array, ...names)."
        )


def _take_apart(tree: Any, axis: str) -> tuple[list[Any], list[Any], _Skeleton]:
    """Splits a tree into named arrays (positional axes first), plain arrays, and the rest."""
    named: list[Any] = []
    plain: list[Any] = []
    rest: list[Any] = []
    flat, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=nx.is_namedarray)
    for path, leaf in flat:
        if nx.is_namedarray(leaf):
            if axis in leaf.named_shape:
                raise ValueError(
                    f"LayerStack.from_sublayer_builder: the builder's arrays may not have the stack "
                    f"axis {axis!r} yet, but {jax.tree_util.keystr(path)} has "
                    f"named_shape={leaf.named_shape}. Give the stack another axis name."
                )
            named.append(leaf.with_positional_prefix())
            rest.append(_NAMED)
        elif isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            plain.append(leaf)
            rest.append(_PLAIN)
        elif isinstance(leaf, (bool, int, float, complex)):
            rest.append(leaf)  # stays a Python number, so that it promotes nothing
        else:
            raise TypeError(
                "LayerStack.from_sublayer_builder: leaves of a block must be arrays or numbers, but "
                f"{jax.tree_util.keystr(path)} is a {type(leaf).__name__}. Make the field static: "
                'dataclasses.field(metadata={"pytree_node": False}).'
            )
    return named, plain, _Skeleton(structure, rest)


def _put_together(skeleton: _Skeleton, named: list[Any], plain: list[Any], axis: str) -> Any:
    """Inverse of `_take_apart`, for named arrays that gained a first axis."""
    next_named, next_plain = iter(named), iter(plain)
    leaves = [
        next(next_named).tag_prefix(axis)
        if leaf is _NAMED
        else next(next_plain)
        if leaf is _PLAIN
        else leaf
        for leaf in skeleton.leaves
    ]
    return jax.tree.unflatten(skeleton.structure, leaves)


def _fresh(value: Any, axis: str, behavior: Any) -> Any:
    """A new variable; a state variable's metadata says how it behaves along the stack axis."""
    if isinstance(value, ParameterValue):
        return value.unfreeze_as_copy()
    metadata = copy.deepcopy(value.metadata)
    metadata["layerstack_axes"] = {axis: behavior, **metadata.get("layerstack_axes", {})}
    return StateVariable(value.value, label=value.label, metadata=metadata)
