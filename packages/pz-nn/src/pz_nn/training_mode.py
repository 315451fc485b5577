"""Switching a whole model between training and inference.

The switch exchanges layers: there is no flag that a call could get wrong, and the two models can be
shown, compared and saved.
"""

from __future__ import annotations

from typing import TypeVar

from pz_core.selectors import select
from pz_nn.batch_norm import InferenceBatchNorm, TrainingBatchNorm
from pz_nn.dropout import DisabledDropout, StochasticDropout

__all__ = ["set_training"]

Model = TypeVar("Model")


def set_training(model: Model, training: bool) -> Model:
    """Puts every dropout and batch norm of a model into training or inference mode.

    Args:
        model: Any pytree. It is not changed.
        training: True enables dropout and makes batch norms use and record the statistics of the batch;
            False disables dropout and makes batch norms use their running statistics.

    Returns:
        The model in the mode asked for, with the same variables.

    Example:
        >>> set_training([StochasticDropout(0.1)], False)[0].drop_rate
        0.1
        >>> type(set_training([StochasticDropout(0.1)], False)[0]).__name__
        'DisabledDropout'
    """
    if training:
        model = select(model).at_instances_of(DisabledDropout).apply(lambda layer: layer.enable())
        norms = select(model).at_instances_of(InferenceBatchNorm)
        return norms.apply(lambda layer: layer.for_training())  # type: ignore[no-any-return]
    model = select(model).at_instances_of(StochasticDropout).apply(lambda layer: layer.disable())
    norms = select(model).at_instances_of(TrainingBatchNorm)
    return norms.apply(lambda layer: layer.for_inference())  # type: ignore[no-any-return]
