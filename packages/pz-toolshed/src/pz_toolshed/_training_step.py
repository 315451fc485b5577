"""The pure step behind `basic_training.StatefulTrainer`, and the plan of what goes into it.

A plan holds everything about a model that is not an array: it is the static argument of the
compiled step. It is made once per trainer, so that a step does no work in Python that depends on
the number of layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pz_core.variables import (
    AbstractVariable,
    Parameter,
    ParameterValue,
    StateVariable,
    bind_variables,
    unbind_variables,
)
from pz_toolshed._array_leaves import TreeWithoutArrays, merge_arrays, split_arrays
from pz_toolshed._packed_tree import Packed

__all__ = [
    "ModelParts",
    "StepPlan",
    "StepResult",
    "compiled_step",
    "gradients",
    "nonfinite_labels",
    "packed_values",
    "parameter_values",
    "placed_beside",
    "pure_step",
    "take_apart",
    "unbind_kwargs",
]


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
    """What a model is, without its arrays; compares by content, hashes once.

    Attributes:
      model: The model with slots in place of variables, its arrays taken out.
      trainable: Label and metadata of each trained parameter.
      frozen: The same of each parameter that is not trained.
    """

    model: TreeWithoutArrays
    trainable: tuple[tuple[Any, dict[Any, Any]], ...]
    frozen: tuple[tuple[Any, dict[Any, Any]], ...]

    @functools.cached_property
    def _hash(self) -> int:
        labels = tuple(label for label, _ in (*self.trainable, *self.frozen))
        return hash((self.model.treedef, labels))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, StepPlan) or hash(self) != hash(other):
            return False
        mine, theirs = ((plan.model, plan.trainable, plan.frozen) for plan in (self, other))
        return bool(mine == theirs)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelParts:
    """A model taken apart: the plan, and the variables and constants that fill it.

    Attributes:
      plan: The rest.
      constants: The arrays in the model that are in no variable.
      trainable: The trained parameters, in tree order.
      frozen: The other parameters.
      states: The state variables.
    """

    plan: StepPlan
    constants: list[Any]
    trainable: tuple[Parameter[Any], ...]
    frozen: tuple[Parameter[Any], ...]
    states: tuple[StateVariable[Any], ...]


def take_apart(model: Any, is_trainable: Callable[[Parameter[Any]], bool]) -> ModelParts:
    """Takes a model apart.

    Args:
      model: The model, with its variables bound.
      is_trainable: Asked for every parameter. One that holds no floating-point value is not trained
        in any case.

    Returns:
      Its parts.

    Raises:
      ValueError: If a variable is neither a `Parameter` nor a `StateVariable`.
    """
    slots, variables = unbind_variables(model)
    for variable in variables:
        if not isinstance(variable, Parameter | StateVariable):
            raise ValueError(
                "StatefulTrainer: the model has a variable of a class that the trainer does not "
                f"know, {type(variable).__name__}; it knows Parameter and StateVariable. Freeze it "
                f"first: {variable!r}"
            )
    parameters = [v for v in variables if isinstance(v, Parameter)]
    trainable = tuple(p for p in parameters if _is_floating(p.value) and is_trainable(p))
    chosen = {id(p) for p in trainable}
    frozen = tuple(p for p in parameters if id(p) not in chosen)
    constants, rest = split_arrays(slots)
    plan = StepPlan(rest, _names(trainable), _names(frozen))
    states = tuple(v for v in variables if isinstance(v, StateVariable))
    return ModelParts(plan, constants, trainable, frozen, states)


def _is_floating(value: Any) -> bool:
    leaves = jax.tree_util.tree_leaves(value)
    return bool(leaves) and all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)


def _names(parameters: Sequence[Parameter[Any]]) -> tuple[tuple[Any, dict[Any, Any]], ...]:
    return tuple((p.label, dict(p.metadata)) for p in parameters)


def parameter_values(
    names: Sequence[tuple[Any, dict[Any, Any]]], values: Sequence[Any]
) -> tuple[ParameterValue[Any], ...]:
    """Frozen parameters from their names and values."""
    return tuple(
        ParameterValue(label=label, value=value, metadata=metadata)
        for (label, metadata), value in zip(names, values, strict=True)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step returns.

    Attributes:
      loss: The loss before the update.
      is_finite: Whether the loss and its gradient are; true where nothing looked.
      aux: The loss function's third result.
      trainable: New values of the trained parameters, packed.
      states: New frozen values of the model's state variables.
      kwarg_states: New frozen values of the variables in the keyword arguments.
      internal: New `(step, packed optimizer state, loss state)`.
    """

    loss: Any
    is_finite: Any
    aux: Any
    trainable: Packed
    states: tuple[Any, ...]
    kwarg_states: tuple[Any, ...]
    internal: tuple[Any, Any, Any]


def _loss_and_rest(
    trainable: tuple[ParameterValue[Any], ...],
    frozen: Sequence[Any],
    constants: Sequence[Any],
    states: tuple[Any, ...],
    internal: tuple[Any, Any, Any],
    root_rng: Any,
    kwargs: dict[str, Any],
    kwarg_states: tuple[Any, ...],
    *,
    loss_fn: Callable[..., Any],
    plan: StepPlan,
) -> tuple[Any, tuple[Any, Any, tuple[Any, ...], tuple[Any, ...]]]:
    """Calls the loss function on the reassembled model; state goes through temporary variables."""
    step, _, loss_state = internal
    inside = tuple(value.unfreeze_as_copy() for value in states)
    inside_kwargs = tuple(value.unfreeze_as_copy() for value in kwarg_states)
    model = bind_variables(
        merge_arrays(constants, plan.model),
        (*trainable, *parameter_values(plan.frozen, frozen), *inside),
    )
    results = loss_fn(
        model=model,
        state=loss_state,
        rng=jax.random.fold_in(root_rng, step),
        **bind_variables(kwargs, inside_kwargs),
    )
    if not isinstance(results, tuple | list) or len(results) != 3:
        raise TypeError(
            "StatefulTrainer.step: the loss function must return three results, the loss, its new "
            f"state and aux, got {_describe(results)}. Write e.g. `return loss, state, {{}}`."
        )
    loss, loss_state, aux = results
    if not isinstance(loss, jax.Array) or loss.ndim or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            "StatefulTrainer.step: the loss function must return a scalar floating-point array "
            f"as its first result, got {_describe(loss)}. Reduce it with .mean(), and unwrap a "
            "named array with .unwrap()."
        )
    finals = tuple(tuple(v.freeze() for v in group) for group in (inside, inside_kwargs))
    return loss, (loss_state, aux, *finals)


def _describe(loss: Any) -> str:
    if hasattr(loss, "named_shape"):
        return f"a {type(loss).__name__} with axes {loss.named_shape}"
    if isinstance(loss, jax.Array):
        return f"an array of shape {loss.shape} and dtype {loss.dtype}"
    if isinstance(loss, tuple | list):
        return f"a {type(loss).__name__} of {len(loss)}"
    return f"a {type(loss).__module__}.{type(loss).__qualname__}".replace("builtins.", "")


def pure_step(
    trainable: Packed,
    states: tuple[Any, ...],
    internal: tuple[Any, Any, Any],
    frozen: Sequence[Any],
    constants: Sequence[Any],
    root_rng: Any,
    kwargs: dict[str, Any],
    kwarg_states: tuple[Any, ...],
    *,
    loss_fn: Callable[..., Any],
    optimizer_def: Any,
    plan: StepPlan,
    check_finite: bool,
    keep_if_not_finite: bool,
) -> StepResult:
    """One training step, a pure function of arrays.

    Args:
      trainable: Values of the trained parameters, a packed list.
      states: Frozen values of the state variables.
      internal: `(step, packed optimizer state, loss state)`.
      frozen: Values of the other parameters.
      constants: Arrays of the model that are in no variable.
      root_rng: Key that the step counter is folded into.
      kwargs: Arguments of the loss function, with slots in place of variables.
      kwarg_states: Frozen values of those variables.
      loss_fn: The loss function.
      optimizer_def: The optax optimizer.
      plan: The rest of the model.
      check_finite: Look whether the loss and its gradient are finite.
      keep_if_not_finite: Return everything unchanged where they are not (for donated buffers, whose
        old contents are gone).

    Returns:
      The loss, its aux, and all that changed.
    """
    import optax

    values = parameter_values(plan.trainable, trainable.tree())
    old_opt_state = internal[1].tree()
    _check_optimizer_state(optimizer_def, values, old_opt_state)
    function = jax.value_and_grad(
        functools.partial(_loss_and_rest, loss_fn=loss_fn, plan=plan), has_aux=True
    )
    (loss, (loss_state, aux, new_states, new_kwarg_states)), grads = function(
        values, frozen, constants, states, internal, root_rng, kwargs, kwarg_states
    )

    def updated() -> tuple[Packed, Packed]:
        updates, opt_state = optimizer_def.update(grads, old_opt_state, values)
        new_values = optax.apply_updates(values, updates)
        new = trainable.like([value.value for value in new_values])
        return new, internal[1].like(opt_state)

    is_finite = _all_finite(loss, grads) if check_finite else jnp.bool_(True)
    rest = (new_states, internal[0] + 1, loss_state)
    if keep_if_not_finite:
        # A branch: to choose element by element, XLA would first copy every donated buffer.
        new_trainable, opt_state = jax.lax.cond(
            is_finite, updated, lambda: (trainable, internal[1])
        )
        old = (states, internal[0], internal[2])
        rest = jax.tree_util.tree_map(lambda n, o: jnp.where(is_finite, n, o), rest, old)
    else:
        new_trainable, opt_state = updated()
    new_states, step, loss_state = rest
    new_internal = (step, opt_state, loss_state)
    return StepResult(
        loss, is_finite, aux, new_trainable, new_states, new_kwarg_states, new_internal
    )


def _all_finite(loss: Any, grads: Any) -> Any:
    # A sum passes on every NaN and infinity, and is read six times as fast as `isfinite(...).all()`.
    sums = [jnp.sum(g, dtype=_wide(g.dtype)) for g in jax.tree_util.tree_leaves(grads)]
    return jnp.isfinite(loss) & jnp.isfinite(sum(sums, start=jnp.float32(0)))


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _check_optimizer_state(optimizer: Any, values: tuple[Any, ...], opt_state: Any) -> None:
    """Compares the optimizer state with the one that these parameters need; costs only at tracing."""
    needed_state = jax.eval_shape(optimizer.init, values)
    needed, found = _state_entries(needed_state), _state_entries(opt_state)
    structures: list[Any] = [jax.tree_util.tree_structure(t) for t in (needed_state, opt_state)]
    if structures[0] == structures[1] and needed == found:
        return
    differences = [
        f"{name} {f'has {found[name]}' if name in found else 'is missing'}, needed is {shapes}"
        for name, shapes in needed.items()
        if found.get(name) != shapes
    ]
    surplus = [f"{name} is there, but nothing needs it" for name in found if name not in needed]
    shown = [*differences[:3], *surplus[:3]]
    hidden = len(differences) + len(surplus) - len(shown)
    more = f" (and {hidden} more)" if hidden else ""
    told = "; ".join(shown) or f"its structure is {structures[1]}, needed is {structures[0]}"
    raise ValueError(
        "StatefulTrainer.step: the optimizer state does not fit the trained parameters: "
        f"{told}{more}. Build the trainer anew after the model, the choice of "
        "trained parameters or the optimizer has changed."
    )


def _state_entries(opt_state: Any) -> dict[str, list[tuple[int, ...]]]:
    """The shapes in an optimizer state by place, for what belongs to a parameter by its label."""
    entries: dict[str, list[tuple[int, ...]]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, ParameterValue)
    ):
        name = jax.tree_util.keystr(path)
        if isinstance(node, ParameterValue):
            # The position in its tuple says less than the label, and changes with the model.
            name = f"{jax.tree_util.keystr(path[:-1])} of {node.label!r}"
        entries[name] = [jnp.shape(leaf) for leaf in jax.tree_util.tree_leaves(node)]
    return entries


def packed_values(parameters: Sequence[Parameter[Any]]) -> Packed:
    """The values of parameters as a packed list."""
    return Packed.of([parameter.value for parameter in parameters])


@functools.cache
def compiled_step(donate: bool) -> Callable[..., StepResult]:
    """`pure_step` compiled, one function per choice so that trainers share its cache."""
    return jax.jit(
        pure_step,
        static_argnames=(
            "loss_fn",
            "optimizer_def",
            "plan",
            "check_finite",
            "keep_if_not_finite",
        ),
        donate_argnames=("trainable", "states", "internal") if donate else (),
    )


@functools.partial(jax.jit, static_argnames=("loss_fn", "plan"))
def gradients(trainable: Packed, *rest: Any, loss_fn: Any, plan: StepPlan) -> Any:
    """The gradient by parameter, for the report on a loss that is not finite."""
    function = functools.partial(_loss_and_rest, loss_fn=loss_fn, plan=plan)
    values = parameter_values(plan.trainable, trainable.tree())
    return jax.grad(function, has_aux=True)(values, *rest)[0]


def placed_beside(tree: Any, values: Any) -> Any:
    """Copies what lies on one device to all devices of the values.

    A step leaves its results there; were the first inputs elsewhere, the second step would compile
    again.
    """
    shardings = [getattr(value, "sharding", None) for value in jax.tree_util.tree_leaves(values)]
    spread = [s for s in shardings if isinstance(s, NamedSharding) and len(s.device_set) > 1]
    if not spread:
        return tree
    replicated = NamedSharding(spread[0].mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    return jax.tree_util.tree_map(lambda leaf: _moved(leaf, replicated), tree)


def _moved(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) == 1:
        return jax.device_put(leaf, sharding)
    return leaf


def unbind_kwargs(
    kwargs: dict[str, Any], parts: ModelParts
) -> tuple[dict[str, Any], tuple[AbstractVariable, ...]]:
    """Takes the variables out of a step's keyword arguments; almost always there are none."""
    leaves = jax.tree_util.tree_leaves(kwargs)
    if not any(isinstance(leaf, AbstractVariable) for leaf in leaves):
        return kwargs, ()
    slots, variables = unbind_variables(kwargs)
    in_model = {id(v) for v in (*parts.trainable, *parts.frozen, *parts.states)}
    for variable in variables:
        if id(variable) in in_model:
            raise ValueError(
                "StatefulTrainer.step: the variable "
                f"{getattr(variable, 'label', variable)!r} is given as an argument but is in the "
                "model already. Use it from the model in the loss function."
            )
    return slots, variables


def nonfinite_labels(values: Sequence[ParameterValue[Any]]) -> list[Any]:
    """Labels of the values that hold a NaN or an infinity."""
    return [
        value.label
        for value in values
        if any(not bool(jnp.isfinite(leaf).all()) for leaf in jax.tree_util.tree_leaves(value))
    ]
