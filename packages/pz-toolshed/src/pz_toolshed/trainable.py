"""Says which parameters are trained, decayed or left alone: by label, or by selection.

The idea: a filter is a function of a parameter; it serves the trainer (`is_trainable`), the optimizer
(a mask) and the model itself (freezing) alike.

    from pz_toolshed import trainable

    only_head = trainable.with_labels("*/lm_head.*")  # or a compiled regular expression
    in_block_3 = trainable.in_selection(select(model).at(lambda m: m.body.sublayers[3]))
    optimizer = optax.masked(optax.add_decayed_weights(0.1), trainable.optax_mask(only_head))
    smaller = trainable.freeze_except(model, in_block_3)
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from pz_core.selectors import Selection
from pz_core.variables import (
    Parameter,
    ParameterSlot,
    ParameterValue,
    freeze_params,
    unbind_params,
)

__all__ = ["ParameterFilter", "freeze_except", "in_selection", "optax_mask", "with_labels"]

ParameterFilter: TypeAlias = Callable[[Any], bool]
"""Tells for a `Parameter` (or its frozen value) whether it is meant."""


def with_labels(*patterns: str | re.Pattern[str]) -> ParameterFilter:
    """Parameters whose label matches one of the patterns.

    Args:
      *patterns: Shell patterns for the whole label (`"*/mlp/*"`, where `*` crosses slashes), or
        compiled regular expressions, which are searched for.

    Returns:
      The filter.
    """
    compiled = [
        re.compile(fnmatch.translate(pattern)) if isinstance(pattern, str) else pattern
        for pattern in patterns
    ]
    return lambda parameter: any(c.search(str(parameter.label)) for c in compiled)


def in_selection(selection: Selection[Any]) -> ParameterFilter:
    """Parameters that stand in the selected parts of a model.

    Args:
      selection: Parts of a model.

    Returns:
      The filter; it goes by label.

    Raises:
      ValueError: If the parts hold no parameter.
    """
    parts = selection.get_sequence()
    nodes = jax.tree_util.tree_leaves(
        parts, is_leaf=lambda node: isinstance(node, ParameterValue | ParameterSlot)
    )
    labels = {
        node.label for node in nodes if isinstance(node, Parameter | ParameterValue | ParameterSlot)
    }
    if not labels:
        raise ValueError(
            f"in_selection: the {len(parts)} selected parts hold no parameter, so the filter would "
            "match nothing. Select layers that have parameters."
        )
    return lambda parameter: parameter.label in labels


def optax_mask(wanted: ParameterFilter) -> Callable[[Any], Any]:
    """A mask for `optax.masked`, `optax.add_decayed_weights` and their like.

    Args:
      wanted: A filter.

    Returns:
      A function from the trained parameters (a tree of `ParameterValue`s) to a tree of booleans.
    """

    def mask(parameters: Any) -> Any:
        return jax.tree_util.tree_map(
            lambda leaf: wanted(leaf) if isinstance(leaf, ParameterValue) else True,
            parameters,
            is_leaf=lambda leaf: isinstance(leaf, ParameterValue),
        )

    return mask


def freeze_except(model: Any, wanted: ParameterFilter) -> Any:
    """Freezes all parameters but those that are wanted.

    Args:
      model: A model; it does not change.
      wanted: A filter.

    Returns:
      The model with frozen values in place of the other parameters.

    Raises:
      ValueError: If no parameter is wanted.
    """
    parameters = unbind_params(model)[1]
    if not any(wanted(parameter) for parameter in parameters):
        labels = [str(parameter.label) for parameter in parameters]
        raise ValueError(
            "freeze_except: the filter matches no parameter, so nothing could be trained. The "
            f"model has {len(labels)}, e.g. {labels[:5]}. Write the pattern so that it matches "
            "whole labels."
        )
    return freeze_params(model, lambda parameter: not wanted(parameter))
