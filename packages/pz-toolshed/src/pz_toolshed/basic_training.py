"""A trainer: one model, one loss, one optax optimizer, one compiled step.

The idea: the trainer takes the variables out of the model once; each step is a pure function of
their values, compiled as a whole, and its results are written back. In short:

    (loss, (new_state, aux)), grads = value_and_grad(loss_fn)(trainable values, ...)
    updates, opt_state = optimizer.update(grads, opt_state, trainable values)
    trainable values = optax.apply_updates(trainable values, updates)

Example:

    def loss_fn(model, state, rng, xs, ys):
        error = (model(xs) - ys).unwrap("batch", "features")
        return jnp.mean(error**2), state, {}

    trainer = StatefulTrainer.build(
        root_rng=jax.random.key(0), model=model, optimizer_def=optax.adam(1e-2), loss_fn=loss_fn
    )
    for batch in batches:
        loss, aux = trainer.step_with_loss(xs=batch.xs, ys=batch.ys)

Trained are the model's `Parameter`s, unless their metadata says `trainable: False` or the caller
says otherwise; parameters frozen by `freeze_params` are no `Parameter`s any more. The optimizer
has state for what is trained, and only for that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import Parameter, StateVariable
from pz_toolshed._packed_tree import Packed
from pz_toolshed._training_step import (
    ModelParts,
    StepResult,
    compiled_step,
    gradients,
    nonfinite_labels,
    packed_values,
    parameter_values,
    placed_beside,
    pure_step,
    take_apart,
    unbind_kwargs,
)

try:
    import optax
except ImportError as error:
    raise ImportError(
        "pz_toolshed.basic_training needs optax: pip install 'pz-toolshed[training]'"
    ) from error

__all__ = [
    "AuxOutPyTree",
    "InternalTrainerState",
    "LossFunction",
    "LossStatePyTree",
    "ModelPyTree",
    "NonFiniteLossError",
    "OptimizerStatePyTree",
    "PRNGKeyArray",
    "StatefulTrainer",
]

ModelPyTree: TypeAlias = Any
AuxOutPyTree: TypeAlias = Any
LossStatePyTree: TypeAlias = Any
OptimizerStatePyTree: TypeAlias = Any
PRNGKeyArray: TypeAlias = jax.Array

_RESERVED = ("model", "state", "rng")


class LossFunction(Protocol):
    """What a trainer minimises."""

    def __call__(
        self, *, model: ModelPyTree, state: LossStatePyTree, rng: PRNGKeyArray, **kwargs: Any
    ) -> tuple[jax.Array, LossStatePyTree, AuxOutPyTree]:
        """Evaluates the loss; called with keywords only, under a gradient.

        Args:
          model: The model; its parameters are read-only.
          state: The loss function's own state, from the step before.
          rng: Key of this step.
          **kwargs: The arguments of `StatefulTrainer.step`.

        Returns:
          The loss (a scalar array), the new state (of the same structure), and any pytree of
          arrays that is to be returned by the step.
        """
        ...


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite; training stopped before anything was changed.

    For example, `optax.sgd(1e6)` makes the parameters overflow, and the loss after that. Resume from
    an earlier checkpoint with a smaller learning rate or with clipped gradients
    (`optax.chain(optax.clip_by_global_norm(1.0), ...)`), or build the trainer with
    `stop_if_not_finite=False`.

    Attributes:
      step: The step, counted from 0.
      loss: The loss.
      labels: The parameters that hold a value that is not finite, or else those whose gradient
        does.
    """

    def __init__(self, message: str, step: int, loss: float, labels: list[Any]):
        super().__init__(message)
        self.step = step
        self.loss = loss
        self.labels = labels


@pytree_dataclass
class InternalTrainerState(Struct):
    """What changes in a trainer from step to step, the model aside.

    Attributes:
      step: Number of steps made, an int32 array.
      opt_state: State of the optimizer, for the trained parameters.
      loss_fn_state: State of the loss function.
    """

    step: jax.Array | int
    opt_state: OptimizerStatePyTree
    loss_fn_state: LossStatePyTree


def _is_marked_trainable(parameter: Parameter[Any]) -> bool:
    return bool(parameter.metadata.get("trainable", True))


class _TrainerStateVariable(StateVariable[InternalTrainerState]):
    """Holds the trainer's state packed, as steps use it, and unpacks it when somebody looks."""

    def __init__(self, value: InternalTrainerState, *, label: str):
        self._packed: tuple[Any, Packed, Any] | None = None
        self._is_stale = False
        super().__init__(value, label=label)

    @property
    def value(self) -> InternalTrainerState:
        """The state."""
        if self._is_stale and self._packed is not None:
            step, opt_state, loss_state = self._packed
            unpacked = InternalTrainerState(step, opt_state.tree(), loss_state)
            StateVariable.value.fset(self, unpacked)  # type: ignore[attr-defined]
            self._is_stale = False
        current: InternalTrainerState = super().value
        return current

    @value.setter
    def value(self, new_value: InternalTrainerState) -> None:
        self._packed, self._is_stale = None, False
        StateVariable.value.fset(self, new_value)  # type: ignore[attr-defined]

    def packed(self) -> tuple[Any, Packed, Any]:
        """Step, packed optimizer state, and loss state."""
        if self._packed is None:
            self._packed = _packed_state(self.value)
        return self._packed

    def set_packed(self, packed: tuple[Any, Packed, Any]) -> None:
        """Takes over the results of a step."""
        self._packed, self._is_stale = packed, True

    def __repr__(self) -> str:
        _ = self.value  # unpacked for the text
        return super().__repr__()


def _packed_state(state: InternalTrainerState) -> tuple[Any, Packed, Any]:
    return state.step, Packed.of(state.opt_state), state.loss_fn_state


@pytree_dataclass
class StatefulTrainer(Struct):
    """Trains a model in place; make it with `build`.

    Attributes:
      root_rng: Key from which each step's key is made: `fold_in(root_rng, step)`.
      model: The model, by reference: its `Parameter` objects are written to by each step.
      state: Holds the `InternalTrainerState`.
      optimizer_def: The optax optimizer.
      loss_fn: The loss function.
      step_fn: The pure step function, compiled unless built with `jit=False`.
      is_trainable: Tells which parameters are trained.
      stop_if_not_finite: Whether a NaN or infinite loss or gradient is an error.
      donate_states: Whether the step writes into the buffers of the old values.
    """

    root_rng: PRNGKeyArray
    model: ModelPyTree
    state: StateVariable[InternalTrainerState]
    optimizer_def: optax.GradientTransformation = dataclasses.field(metadata={"pytree_node": False})
    loss_fn: LossFunction = dataclasses.field(metadata={"pytree_node": False})
    step_fn: Callable[..., StepResult] = dataclasses.field(metadata={"pytree_node": False})
    is_trainable: Callable[[Parameter[Any]], bool] = dataclasses.field(
        default=_is_marked_trainable, metadata={"pytree_node": False}
    )
    stop_if_not_finite: bool = dataclasses.field(default=True, metadata={"pytree_node": False})
    donate_states: bool = dataclasses.field(default=False, metadata={"pytree_node": False})

    @classmethod
    def build(
        cls,
        root_rng: PRNGKeyArray,
        model: ModelPyTree,
        optimizer_def: optax.GradientTransformation,
        loss_fn: LossFunction,
        initial_loss_fn_state: LossStatePyTree = None,
        jit: bool = True,
        donate_states: bool = False,
        *,
        is_trainable: Callable[[Parameter[Any]], bool] | None = None,
        stop_if_not_finite: bool = True,
    ) -> StatefulTrainer:
        """Makes a trainer, with the optimizer's state for the parameters that are trained.

        Args:
          root_rng: Key for the random numbers of all steps.
          model: The model. Training changes its variables in place.
          optimizer_def: An optax optimizer. It sees a tuple of `ParameterValue`s, whose labels and
            metadata a mask can look at.
          loss_fn: The loss function. Hashable; compiled code is kept by its identity, so do not
            make it anew.
          initial_loss_fn_state: First value of its state.
          jit: Compile the step.
          donate_states: Let the compiled step write into the old buffers of parameters, state and
            optimizer state. Arrays taken from the variables before (frozen copies of the model,
            too) are deleted by the next step.
          is_trainable: Tells for a `Parameter` whether to train it. Default: unless its metadata has
            a false `trainable`. Parameters without floating-point values never are.
          stop_if_not_finite: Raise `NonFiniteLossError` when the loss or its gradient is NaN or
            infinite. Looking waits for each step to end. Say no for an optimizer that skips such
            steps itself (`optax.apply_if_finite`).

        Returns:
          The trainer.

        Raises:
          TypeError: If the optimizer is no optax optimizer.
          ValueError: If the model has a variable of an unknown class, or `is_trainable` chooses
            none of its parameters.
        """
        if not (hasattr(optimizer_def, "init") and hasattr(optimizer_def, "update")):
            raise TypeError(
                "StatefulTrainer.build: optimizer_def must be an optax optimizer, which has init and "
                f"update, got a {type(optimizer_def).__name__}. Give e.g. optax.adam(1e-3), called."
            )
        is_chosen = is_trainable is not None
        is_trainable = _is_marked_trainable if is_trainable is None else is_trainable
        parts = take_apart(model, is_trainable)
        if is_chosen and parts.frozen and not parts.trainable:
            labels = [str(parameter.label) for parameter in parts.frozen]
            raise ValueError(
                "StatefulTrainer.build: is_trainable chooses none of the model's "
                f"{len(labels)} parameters, e.g. {labels[:5]}. Choose by whole labels, and only "
                "parameters that hold floating-point values."
            )
        opt_state = optimizer_def.init(tuple(p.freeze() for p in parts.trainable))
        internal = InternalTrainerState(jnp.int32(0), opt_state, initial_loss_fn_state)
        internal = placed_beside(internal, [p.value for p in parts.trainable])
        return cls(
            root_rng=root_rng,
            model=model,
            state=_TrainerStateVariable(internal, label="StatefulTrainer.state"),
            optimizer_def=optimizer_def,
            loss_fn=loss_fn,
            step_fn=compiled_step(donate_states) if jit else pure_step,
            is_trainable=is_trainable,
            stop_if_not_finite=stop_if_not_finite,
            donate_states=donate_states and jit,
        )

    @functools.cached_property
    def _parts(self) -> ModelParts:
        return take_apart(self.model, self.is_trainable)

    def step(self, **kwargs: Any) -> AuxOutPyTree:
        """Makes one step.

        Args:
          **kwargs: Arguments of the loss function: pytrees of arrays, which may hold variables
            (a random stream, say) that are not in the model.

        Returns:
          The loss function's aux.

        Raises:
          TypeError: If an argument is called `model`, `state` or `rng`, or holds a string or other
            non-array; if the loss function does not return three results, a scalar array first.
          ValueError: If the optimizer's state is not that of the trained parameters.
          NonFiniteLossError: If the loss or its gradient is not finite; nothing has changed then.
        """
        return self.step_with_loss(**kwargs)[1]

    def step_with_loss(self, **kwargs: Any) -> tuple[jax.Array, AuxOutPyTree]:
        """Makes one step; as `step`, but returns the loss (before the step) and the aux."""
        for name in _RESERVED:
            if name in kwargs:
                raise TypeError(
                    f"StatefulTrainer.step: the trainer itself passes {name!r} to the loss "
                    f"function (as it does {', '.join(_RESERVED)}). Call your argument otherwise."
                )
        parts = self._parts
        slots, variables = unbind_kwargs(kwargs, parts)
        state = self.state
        before = (
            packed_values(parts.trainable),
            tuple(v.freeze() for v in parts.states),
            state.packed()
            if isinstance(state, _TrainerStateVariable)
            else _packed_state(state.value),
        )
        constant = (
            [p.value for p in parts.frozen],
            parts.constants,
            self.root_rng,
            slots,
            tuple(v.freeze() for v in variables),
        )
        result = self.step_fn(
            *before,
            *constant,
            loss_fn=self.loss_fn,
            optimizer_def=self.optimizer_def,
            plan=parts.plan,
            check_finite=self.stop_if_not_finite,
            keep_if_not_finite=self.donate_states and self.stop_if_not_finite,
        )
        if self.stop_if_not_finite and not _is_true(result.is_finite):  # waits for the step
            if self.donate_states:
                # The old buffers are gone; the result holds their contents.
                self._write_back(result, ())
                before = (result.trainable, result.states, result.internal)
            raise self._nonfinite_error(result.loss, before, constant)
        self._write_back(result, variables)
        return result.loss, result.aux

    def _write_back(self, result: StepResult, kwarg_variables: Any) -> None:
        parts = self._parts
        for parameter, value in zip(parts.trainable, result.trainable.tree(), strict=True):
            if type(parameter) is Parameter:
                # The setter would take each value apart to convert its leaves, a fifth of the time of
                # a small step; these are arrays already, as in pz_core's `variable_jit`.
                parameter._value = value
            else:
                parameter.value = value
        for variable, value in zip(
            (*parts.states, *kwarg_variables),
            (*result.states, *result.kwarg_states)[: len(parts.states) + len(kwarg_variables)],
            strict=True,
        ):
            variable.update(value)
        if isinstance(self.state, _TrainerStateVariable):
            self.state.set_packed(result.internal)
        else:
            step, opt_state, loss_state = result.internal
            self.state.value = InternalTrainerState(step, opt_state.tree(), loss_state)

    def _nonfinite_error(self, loss: Any, before: Any, constant: Any) -> NonFiniteLossError:
        plan = self._parts.plan
        trainable, states, internal = before
        frozen, constants, *rest = constant
        values = parameter_values((*plan.trainable, *plan.frozen), (*trainable.tree(), *frozen))
        labels, what = nonfinite_labels(values), "parameters that are not finite"
        repair = (
            "They were so before this step: go back to an earlier checkpoint, and lower the learning "
            "rate or clip the gradients"
        )
        if not labels:
            found = gradients(
                trainable,
                frozen,
                constants,
                states,
                internal,
                *rest,
                loss_fn=self.loss_fn,
                plan=plan,
            )
            labels, what = nonfinite_labels(found), "gradients that are not finite"
            repair = "Lower the learning rate, clip the gradients, look at this batch"
        shown = ", ".join(map(repr, labels[:5])) or "none"
        step, but = int(internal[0]), ""
        if math.isfinite(float(loss)):
            but = ", but its gradient is not finite"
        return NonFiniteLossError(
            f"StatefulTrainer.step: the loss of step {step} is {float(loss)}{but}; {what}: {shown}"
            f"{f' and {len(labels) - 5} more' if len(labels) > 5 else ''}. This step changed "
            f"nothing. {repair}, or build the trainer with stop_if_not_finite=False.",
            step,
            float(loss),
            labels,
        )


def _is_true(flag: jax.Array) -> bool:
    return isinstance(flag, jax.core.Tracer) or bool(flag)
