"""Switching a whole model between training and inference.

The switch exchanges layers: there is no flag that a call could get wrong, and the two models can be
shown, compared and saved.

    set_training(model, False)                                    # the whole model
    set_training(select(model).at_instances_of(Encoder), False)   # a part of it
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

from pz_core.selectors import Selection, select
from pz_nn.batch_norm import InferenceBatchNorm, TrainingBatchNorm
from pz_nn.dropout import DisabledDropout, StochasticDropout

__all__ = ["set_training"]

Model = TypeVar("Model")


@overload
def set_training(model: Selection[Any], training: bool) -> Any: ...


@overload
def set_training(model: Model, training: bool) -> Model: ...


def set_training(model: Any, training: bool) -> Any:
    """Puts every dropout and batch norm of a model into training or inference mode.

    Args:
        model: Any pytree, or a selection of the parts that shall change. It is not changed itself.
        training: True enables dropout and makes batch norms use and record the statistics of the batch;
            False disables dropout and makes batch norms use their running statistics.

    Returns:
        The whole model, its parts in the mode asked for, with the same variables.

    Example:
        >>> set_training([StochasticDropout(0.1)], False)[0].drop_rate
        0.1
        >>> type(set_training([StochasticDropout(0.1)], False)[0]).__name__
        'DisabledDropout'
    """
    parts = model if isinstance(model, Selection) else select(model)
    if training:
        return parts.at_instances_of((DisabledDropout, InferenceBatchNorm)).apply(_for_training)
    return parts.at_instances_of((StochasticDropout, TrainingBatchNorm)).apply(_for_inference)


def _for_training(layer: DisabledDropout | InferenceBatchNorm) -> Any:
    return layer.enable() if isinstance(layer, DisabledDropout) else layer.for_training()


def _for_inference(layer: StochasticDropout | TrainingBatchNorm) -> Any:
    return layer.disable() if isinstance(layer, StochasticDropout) else layer.for_inference()
