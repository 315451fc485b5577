"""Weight-decomposed low-rank adapters (DoRA): magnitude and direction of a weight, trained apart.

The adapted layer of a frozen weight `W` computes, for each output feature,

    y = m * x (W + (alpha / rank) A B) / norm(W + (alpha / rank) A B)

where the norm is over the input axes and `m`, which starts as `norm(W)`, is trained along with `A` and
`B`. So `m` alone sets how large the weights of an output feature are, and `A B` where they point.

    from pz_toolshed import lora

    adapted = lora.loraify_linears_in_selection(
        select(freeze_params(model)), rank=8, init_base_rng=jax.random.key(0), use_dora=True
    )

Reference: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_named.named_axes import NamedArrayBase
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Linear
from pz_nn.parameters import ParameterLike
from pz_toolshed._low_rank_update import adapted_weight, pretrained_linear, widened

__all__ = ["WeightDecomposedSum", "feature_norms"]


def feature_norms(linear: Linear, weight: NamedArrayBase | None = None) -> NamedArrayBase:
    """The Euclidean norm of each output feature's weights.

    Args:
      linear: Says which axes are input axes, over which the norm is taken.
      weight: Weight in place of the layer's own.

    Returns:
      Array with the parallel and the output axes of the weight, in its order; float32 or wider.
    """
    weight = linear.weights.value if weight is None else weight
    norms: NamedArrayBase = nx.nmap(lambda w: jnp.sqrt(jnp.sum(jnp.square(w))))(
        widened(weight).untag(*linear.in_axis_names)
    )
    return norms


@pytree_dataclass
class WeightDecomposedSum(Layer):
    """The sum of a linear layer and its correction, each output feature scaled to a magnitude.

    With the scale `s = m / norm(W + (alpha / rank) A B)`, which does not depend on the input,

        y = x W + (s - 1) * dropout(x) W + s * (alpha / rank) * dropout(x) A B

    which without dropout is the equation of this module. Gradients take the norm as a constant, as
    the paper's section 4.3 advises; dropout acts as in the `peft` library. An output feature whose
    weights are all zero has the scale 1.

    Attributes:
      branches: The groups `Pretrained` and `Update`, as in a `LowRankAdapter` without magnitude.
      magnitude: Parameter m, with the parallel and the output axes of the weight.
    """

    branches: list[NamedGroup]
    magnitude: ParameterLike[NamedArrayBase]

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArrayBase:
        """Applies the adapted operator.

        Args:
          value: As for the linear layer.
          **side_inputs: The random stream, if there is dropout.

        Returns:
          Array with the axes and dtype of the linear layer's output.

        Raises:
          ValueError: If the adapted layer is no `Linear`, or A or B is none.
        """
        pretrained_group, update = self.branches
        linear, scale = pretrained_linear(pretrained_group), self.scale()
        steps = update.sublayers
        first = next(i for i, layer in enumerate(steps) if isinstance(layer, Linear))  # A
        dropped = Sequential(list(steps[:first]))(value, **side_inputs)
        correction = Sequential(list(steps[first:]))(dropped, **side_inputs)
        pretrained = linear(value, **side_inputs)
        again = pretrained if dropped is value else linear(dropped, **side_inputs)
        # Products in float32 or wider: in bfloat16 a scale near 1 would be 1.
        total: NamedArrayBase = pretrained + (scale - 1) * again + scale * correction
        return total.order_as(*pretrained.named_shape).astype(pretrained.dtype)

    def scale(self) -> NamedArrayBase:
        """The scale s of each output feature, float32 or wider; its gradient is that of m alone.

        Raises:
          ValueError: As for calls.
        """
        pretrained_group, update = self.branches
        linear, magnitude = pretrained_linear(pretrained_group), self.magnitude.value
        norms = feature_norms(linear, adapted_weight(linear.weights.value, update))
        # Rounded as m was, so that the scale of a fresh adapter is 1 in any dtype.
        constant = jax.lax.stop_gradient(norms.astype(magnitude.dtype))
        ratio = nx.nmap(lambda m, n: jnp.where(n > 0, m / jnp.where(n > 0, n, 1), 1))
        scale: NamedArrayBase = ratio(widened(magnitude), widened(constant))
        return scale
