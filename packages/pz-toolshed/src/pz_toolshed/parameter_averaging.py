"""Keeps an exponential moving average of a model's parameters while it is trained.

    average = ExponentialMovingAverage.of(model, decay=0.999)
    for batch in batches:
        trainer.step(**batch)
        average.update(model)
    smooth_model = average.averaged(model)

The average is `a <- decay * a + (1 - decay) * p`, starting at the parameters as they are.
Reference: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import (
    Parameter,
    ParameterValue,
    StateVariable,
    bind_variables,
    unbind_params,
)

__all__ = ["ExponentialMovingAverage"]


@jax.jit
def _blended(old: Any, new: Any, decay: Any) -> Any:
    return jax.tree_util.tree_map(lambda a, p: a + (1 - decay) * (p - a).astype(a.dtype), old, new)


@pytree_dataclass
class ExponentialMovingAverage(Struct):
    """A moving average of parameters; make it with `of`.

    Attributes:
      average: Holds the averages, a tuple of frozen parameters.
      decay: How much of the average stays at each update, from 0 to 1.
    """

    average: StateVariable[tuple[ParameterValue[Any], ...]]
    decay: float = dataclasses.field(metadata={"pytree_node": False})

    @classmethod
    def of(cls, model: Any, decay: float) -> ExponentialMovingAverage:
        """Starts an average at a model's parameters.

        Args:
          model: A model with parameters.
          decay: How much of the average stays at each update.

        Returns:
          The average.

        Raises:
          ValueError: If the decay is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(
                f"ExponentialMovingAverage: decay must be at least 0 and below 1, got {decay}. "
                "With 0.999, about the last thousand steps count."
            )
        values = unbind_params(model, freeze=True)[1]
        # Copies: a step that donates its buffers would delete the parameters' own.
        copies = jax.tree_util.tree_map(lambda array: array.copy(), values)
        return cls(StateVariable(copies, label="ExponentialMovingAverage"), decay)

    def update(self, model: Any) -> None:
        """Takes the present parameters of the model into the average.

        Args:
          model: The model that the average was started with.

        Raises:
          ValueError: If it has other parameters.
        """
        now = unbind_params(model, freeze=True)[1]
        self._check(now)
        self.average.value = _blended(self.average.value, now, self.decay)

    def averaged(self, model: Any) -> Any:
        """A copy of the model with the averages as its parameters.

        Args:
          model: The model; it does not change.

        Returns:
          The copy, with new parameters.

        Raises:
          ValueError: If it has other parameters than the average was started with.
        """
        slots, parameters = unbind_params(model)
        self._check(parameters)
        return bind_variables(
            slots,
            [
                Parameter(label=p.label, value=a.value, metadata=dict(p.metadata))
                for p, a in zip(parameters, self.average.value, strict=True)
            ],
        )

    def _check(self, parameters: Any) -> None:
        mine = [value.label for value in self.average.value]
        theirs = [parameter.label for parameter in parameters]
        if mine != theirs:
            raise ValueError(
                "ExponentialMovingAverage: the model has other parameters than the average was "
                f"started with; only in the average: {sorted(map(str, set(mine) - set(theirs)))}, "
                f"only in the model: {sorted(map(str, set(theirs) - set(mine)))}. Start an average "
                "of this model with ExponentialMovingAverage.of(model, decay)."
            )
