"""Mixtures of experts: each token runs through the few experts that a router chooses for it.

No token is dropped and no expert is padded: tokens are sorted by expert, and the linear layers of all experts
are one grouped matrix product (`jax.lax.ragged_dot`, or on CPUs, where that multiplies every token by every
expert, short blocks of tokens one after another). An expert is any layer built from `ExpertLinear`:

    MixtureOfExperts.from_config("moe", key, {"embedding": 64}, {"neurons": 128}, experts=8, top_k=2)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_core.variables import StateVariable
from pz_named.named_axes import NamedArray, NamedArrayBase, wrap
from pz_nn._axes import axis_indices, names_and_data, reordered, with_names
from pz_nn._grouped_matmul import grouped_matmul
from pz_nn._linear_axes import check_disjoint
from pz_nn._side_inputs import required
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import BranchAndMultiplyTogether
from pz_nn.grouping import Sequential
from pz_nn.initializers import LinearOperatorWeightInitializer, xavier_uniform_initializer
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Linear
from pz_nn.parameters import ParameterLike, make_parameter

__all__ = ["ExpertLinear", "MixtureOfExperts"]

AxisSizes = dict[str, int]
_TOKENS = "tokens"


@pytree_dataclass
class ExpertLinear(Layer):
    """One linear operator for each expert, applied to tokens sorted by expert.

    y[t, out] = Σ_in x[t, in] · W[e(t), in, out], where the first g_0 tokens belong to expert 0, the next g_1
    to expert 1, and so on.

    Attributes:
        weights: Parameter W with `experts_axis`, the input and the output axes.
        in_axis_names: Names of input axes.
        out_axis_names: Names of output axes.
        experts_axis: Name of the axis of experts.
        group_sizes_input_name: Side input with the g, an integer array; `MixtureOfExperts` provides it.
    """

    weights: ParameterLike[NamedArrayBase]
    in_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    out_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    experts_axis: str = dataclasses.field(default="experts", metadata={"pytree_node": False})
    group_sizes_input_name: str = dataclasses.field(
        default="expert_group_sizes", metadata={"pytree_node": False}
    )

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArray:
        """Applies the operators.

        Args:
            value: Array with the axis `tokens` and the input axes, no others.
            **side_inputs: The sizes of the groups.

        Returns:
            Array with `tokens` and the output axes.

        Raises:
            KeyError: If the sizes are missing.
            ValueError: If the input has other axes or sizes.
        """
        group_sizes = required(side_inputs, self.group_sizes_input_name, "ExpertLinear")
        names, data = names_and_data(value, "ExpertLinear")
        weight_names, weights = names_and_data(self.weights.value, "ExpertLinear")
        sizes = dict(zip(weight_names, weights.shape, strict=True))
        wanted = {name: sizes[name] for name in self.in_axis_names}
        given = {n: s for n, s in zip(names, data.shape, strict=True) if n != _TOKENS}
        if given != wanted or _TOKENS not in names:
            raise ValueError(
                f"ExpertLinear: the input must have the axis {_TOKENS!r} and {wanted}, no others, but has "
                f"{value.named_shape}. Put the layer inside a MixtureOfExperts, which folds batch axes."
            )
        outputs = {name: sizes[name] for name in self.out_axis_names}
        dtype = jnp.result_type(data, weights)
        rows = reordered(names, data, (_TOKENS, *wanted)).astype(dtype)
        rows = rows.reshape(len(rows), math.prod(wanted.values()))
        # The matrices are used as they lie, inputs or outputs first, as moving them takes long.
        transposed = next(n for n in weight_names if n != self.experts_axis) in outputs
        ends = (outputs, wanted) if transposed else (wanted, outputs)
        stack = reordered(weight_names, weights, (self.experts_axis, *ends[0], *ends[1]))
        stack = stack.astype(dtype).reshape(len(stack), *(math.prod(e.values()) for e in ends))
        result = grouped_matmul(rows, stack, group_sizes, transposed=transposed)
        return with_names((_TOKENS, *outputs), result.reshape(len(rows), *outputs.values()))

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        experts: int,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        dtype: Any = jnp.float32,
    ) -> ExpertLinear:
        """Builds the layer.

        Args:
            name: Name of the layer; the label is `{name}.weights`.
            init_base_rng: Key of the model, or None for a slot.
            input_axes: Axes to sum over, with sizes.
            output_axes: Axes to make; they differ from the input axes.
            experts: Number of experts.
            initializer: Draws the weights; the experts are a parallel axis.
            dtype: Dtype of the weights.

        Returns:
            The layer.
        """
        check_disjoint(
            f"ExpertLinear.from_config({name!r})",
            input_axes=input_axes,
            output_axes=output_axes,
            own_axes={"experts": experts, _TOKENS: 0},
        )
        weights = make_parameter(
            f"{name}.weights",
            init_base_rng,
            initializer,
            input_axes=input_axes,
            output_axes=output_axes,
            parallel_axes={"experts": experts},
            convolution_spatial_axes={},
            dtype=dtype,
        )
        return cls(weights, tuple(input_axes), tuple(output_axes))


@pytree_dataclass
class MixtureOfExperts(Layer):
    """Token-choice mixture of experts: y = Σ_k p_k · expert_{e_k}(x) over the `top_k` best experts.

    With p = softmax(router(x)) in float32, e_k are the experts of the largest p, which are divided by their
    sum if `normalise_weights`.

    Attributes:
        router: Layer from x to logits over `experts_axis`.
        expert: Layer on {tokens, features}, built from `ExpertLinear`.
        load_balancing_loss: State variable that each call sets to E · Σ_e f_e · P_e, with f_e the share of
            tokens that chose e (summed over the k choices) and P_e the mean of p_e: at least `top_k`, and
            equal to it when all experts get the same. Add it to the loss with a small factor. None
            records nothing.
        feature_axes: Names of the axes of one token; all others are folded into one axis of tokens.
        top_k: How many experts each token uses.
        experts_axis: Name of the axis of experts.
        normalise_weights: Whether the chosen weights are made to sum to 1.

    References: Shazeer et al., Outrageously Large Neural Networks (2017); Fedus et al., Switch Transformers
    (2021), for the loss; Gale et al., MegaBlocks (2022), for dropless routing.
    """

    router: Any
    expert: Any
    load_balancing_loss: Any
    feature_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    top_k: int = dataclasses.field(metadata={"pytree_node": False})
    experts_axis: str = dataclasses.field(default="experts", metadata={"pytree_node": False})
    normalise_weights: bool = dataclasses.field(default=True, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArray:
        """Routes each token through its experts.

        Args:
            value: Array with the feature axes.
            **side_inputs: Passed to router and expert; the expert also gets `expert_group_sizes`.

        Returns:
            Array with the batch axes, then the axes that the expert makes, in the dtype of the input.

        Raises:
            ValueError: If a feature axis is missing, or there are fewer experts than `top_k`.
        """
        names, data = names_and_data(value, "MixtureOfExperts")
        axis_indices(names, self.feature_axes, "MixtureOfExperts")
        sizes = dict(zip(names, data.shape, strict=True))
        batch = {name: size for name, size in sizes.items() if name not in self.feature_axes}
        # ragged_dot cannot be mapped over group sizes, so every batch axis becomes one of tokens.
        count = math.prod(batch.values())
        features = tuple(sizes[name] for name in self.feature_axes)
        folded = reordered(names, data, (*batch, *self.feature_axes)).reshape(count, *features)
        tokens = with_names((_TOKENS, *self.feature_axes), folded)
        probabilities = self._probabilities(tokens, side_inputs)  # (tokens, experts)
        weights, chosen = jax.lax.top_k(probabilities, self.top_k)  # (tokens, choices)
        if self.load_balancing_loss is not None:
            self.load_balancing_loss.value = wrap(_imbalance(probabilities, chosen))
        if self.normalise_weights:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)

        # Sort the (token, choice) pairs by expert, run the experts, sort back, add the choices up.
        flat = chosen.reshape(-1)
        order = jnp.argsort(flat, stable=True)
        sides = {**side_inputs, "expert_group_sizes": _uses(flat, probabilities.shape[-1])}
        inputs = with_names(tokens.named_axes, tokens.data_array[order // self.top_k])
        output_names, outputs = names_and_data(
            self.expert(inputs, **sides).astype(data.dtype), "MixtureOfExperts"
        )
        made = tuple(name for name in output_names if name != _TOKENS)
        outputs = reordered(output_names, outputs, (_TOKENS, *made))
        choices = outputs[jnp.argsort(order)].reshape(count, self.top_k, *outputs.shape[1:])
        summed = jnp.einsum("tk...,tk->t...", choices, weights.astype(data.dtype))
        return with_names((*batch, *made), summed.reshape(*batch.values(), *outputs.shape[1:]))

    def _probabilities(self, tokens: NamedArray, side_inputs: dict[str, Any]) -> jax.Array:
        names, logits = names_and_data(self.router(tokens, **side_inputs), "MixtureOfExperts")
        logits = reordered(names, logits, (_TOKENS, self.experts_axis))
        if logits.shape[-1] < self.top_k:
            raise ValueError(
                f"MixtureOfExperts: top_k must not exceed the number of experts, but is {self.top_k} of "
                f"{logits.shape[-1]} (axis {self.experts_axis!r} of the router). Choose a smaller top_k."
            )
        return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        embedding_axes: AxisSizes,
        neuron_axes: AxisSizes,
        experts: int,
        top_k: int,
        activation_fn: Callable[[Any], Any] = jax.nn.silu,
        normalise_weights: bool = True,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        dtype: Any = jnp.float32,
    ) -> MixtureOfExperts:
        """Builds a mixture of gated experts: y = (f(x · G_e) ⊙ (x · U_e)) · D_e.

        Args:
            name: Name of the layer; its parts are called `{name}/router`, `{name}/gating_linear`,
                `{name}/value_linear` and `{name}/out_linear`, the loss `{name}.load_balancing_loss`.
            init_base_rng: Key of the model, or None for slots.
            embedding_axes: Axes of input and output, with sizes.
            neuron_axes: Axes in between, with sizes.
            experts: Number of experts.
            top_k: How many of them each token uses.
            activation_fn: f.
            normalise_weights: Whether the weights of the chosen experts are made to sum to 1.
            initializer: Draws all weights.
            dtype: Dtype of the parameters.

        Returns:
            The layer.
        """

        def linear(part: str, inputs: AxisSizes, outputs: AxisSizes) -> ExpertLinear:
            full_name = f"{name}/{part}"
            return ExpertLinear.from_config(
                full_name, init_base_rng, inputs, outputs, experts, initializer, dtype
            )

        router = Linear.from_config(
            f"{name}/router",
            init_base_rng,
            embedding_axes,
            {"experts": experts},
            initializer=initializer,
            dtype=dtype,
        )
        gate = [linear("gating_linear", embedding_axes, neuron_axes), Elementwise(activation_fn)]
        value = linear("value_linear", embedding_axes, neuron_axes)
        expert = [
            BranchAndMultiplyTogether([Sequential(gate), value]),
            linear("out_linear", neuron_axes, embedding_axes),
        ]
        loss = StateVariable(wrap(jnp.zeros(())), label=f"{name}.load_balancing_loss")
        features = tuple(embedding_axes)
        return cls(
            router, Sequential(expert), loss, features, top_k, normalise_weights=normalise_weights
        )


def _imbalance(probabilities: jax.Array, chosen: jax.Array) -> jax.Array:
    """E · Σ_e f_e · P_e; see `MixtureOfExperts`."""
    tokens, experts = probabilities.shape
    share = _uses(chosen.reshape(-1), experts) / max(tokens, 1)
    return experts * jnp.sum(share * jnp.sum(probabilities, axis=0) / max(tokens, 1))


def _uses(chosen: jax.Array, experts: int) -> jax.Array:
    """How often each expert was chosen."""
    return jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0)
