"""The weight of an adapter, and what its two matrices add to it."""

from __future__ import annotations

import jax.numpy as jnp

from pz_named.named_axes import NamedArrayBase
from pz_nn.contraction import contract
from pz_nn.grouping import NamedGroup
from pz_nn.linear_and_affine import ConstantRescale, Linear

__all__ = ["adapted_weight", "low_rank_matrices", "pretrained_linear", "weight_update", "widened"]


def pretrained_linear(pretrained: NamedGroup) -> Linear:
    """The adapted layer.

    Args:
      pretrained: The group `Pretrained` of an adapter.

    Raises:
      ValueError: If it is not one linear layer.
    """
    layers = pretrained.sublayers
    if len(layers) != 1 or not isinstance(layers[0], Linear):
        raise ValueError(
            f"LowRankAdapter: the adapted layer must be one Linear, but the group {pretrained.name!r} "
            f"has {[type(layer).__name__ for layer in layers]}. To adapt or replace the layer again, "
            "merge the adapter first (merge_adapters)."
        )
    return layers[0]


def low_rank_matrices(update: NamedGroup) -> tuple[Linear, Linear]:
    """The layers A and B.

    Args:
      update: The group `Update` of an adapter.

    Raises:
      ValueError: If there are not two linear layers.
    """
    matrices = [layer for layer in update.sublayers if isinstance(layer, Linear)]
    if len(matrices) != 2:
        raise ValueError(
            "LowRankAdapter: a correction must have the two Linear layers A and B, but the group "
            f"{update.name!r} has {[type(layer).__name__ for layer in update.sublayers]}. To adapt "
            "adapters again, merge them first (merge_adapters)."
        )
    return matrices[0], matrices[1]


def weight_update(update: NamedGroup, like: NamedArrayBase) -> NamedArrayBase:
    """The correction as one array, to be added to the weight.

    Args:
      update: The group `Update` of an adapter.
      like: The adapted weight.

    Returns:
      `(alpha / rank) * A B`, with the axis order and dtype of the weight.

    Raises:
      ValueError: If the correction is not made of two linear layers.
    """
    matrix_a, matrix_b = low_rank_matrices(update)
    a, b = (widened(layer.weights.value) for layer in (matrix_a, matrix_b))
    product: NamedArrayBase = contract(matrix_b.in_axis_names, a, b)
    for layer in update.sublayers:
        if isinstance(layer, ConstantRescale):
            product = product * layer.by
    return product.order_as(*like.named_shape).astype(like.dtype)


def adapted_weight(weight: NamedArrayBase, update: NamedGroup, *, sign: int = 1) -> NamedArrayBase:
    """The weight plus (or minus) its correction, widened, with the axis order of the weight."""
    wide = widened(weight)
    return (wide + sign * weight_update(update, wide)).order_as(*weight.named_shape)


def widened(array: NamedArrayBase) -> NamedArrayBase:
    """The array in float32, or in its own dtype if that is wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
