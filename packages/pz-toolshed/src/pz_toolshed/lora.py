"""Low-rank adapters: finetunes a model by training a small correction of its linear layers.

For a frozen weight `W` of shape in x out, the adapted layer computes

    y = x W + (alpha / rank) * dropout(x) A B

with `A` (in x rank) drawn at random and `B` (rank x out) zero at first, so that the adapted model
starts as the original one. Only `A` and `B` are trained. With `use_dora` the magnitude of each output
feature's weights is trained too: see `dora`.

    from pz_toolshed import lora

    frozen = freeze_params(model)
    adapted = lora.loraify_linears_in_selection(
        select(frozen).at_instances_of(Attention), rank=8, init_base_rng=jax.random.key(0)
    )
    ...                                   # train; the trainer sees the adapters only
    final = lora.merge_adapters(adapted)  # plain linear layers again

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pz_core.selectors import Selection, select
from pz_core.struct import pytree_dataclass
from pz_core.tree_util import pretty_keystr
from pz_core.variables import Parameter, ParameterValue
from pz_named import named_axes as nx
from pz_named.named_axes import NamedArrayBase
from pz_nn.basic_ops import CastToDType
from pz_nn.combinators import BranchAndAddTogether
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import ConstantRescale, Linear, zero_initializer
from pz_nn.parameters import ParameterLike, make_parameter
from pz_toolshed._lora_options import check_options
from pz_toolshed._low_rank_update import adapted_weight, pretrained_linear
from pz_toolshed._low_rank_update import weight_update as weight_update
from pz_toolshed.dora import WeightDecomposedSum, feature_norms

__all__ = [
    "LowRankAdapter",
    "MergedAdapter",
    "loraify_linears_in_selection",
    "merge_adapters",
    "unmerge_adapters",
    "weight_update",
]


def _zeros_in_scanned_order(key: jax.Array, **axis_groups: Any) -> NamedArrayBase:
    # A layer stack scans over its axis, a parallel one; not in front, it would be moved at each call.
    zeros: NamedArrayBase = zero_initializer(key, **axis_groups)
    groups = ("parallel_axes", "input_axes", "output_axes")
    return zeros.order_as(*(name for group in groups for name in axis_groups[group]))


@pytree_dataclass
class LowRankAdapter(Sequential):
    """A linear layer and its low-rank correction, added.

    Attributes:
      sublayers: One `BranchAndAddTogether` (with DoRA one `WeightDecomposedSum`) of the groups
        `Pretrained` and `Update`; build it with `from_linear`.
    """

    sublayers: list[Layer]

    @classmethod
    def from_linear(
        cls,
        linear: Linear,
        name: str,
        init_base_rng: jax.Array | None,
        rank: int,
        lowrank_axis: str = "lowrank",
        *,
        alpha: float | None = None,
        dropout: float | None = None,
        dtype: Any = None,
        use_dora: bool = False,
    ) -> LowRankAdapter:
        """Builds the adapter of one linear layer, which it uses by reference.

        Args:
          linear: The layer to adapt. Freeze its parameter first, or it is trained along.
          name: Prefix of the labels `{name}/LoRA_A.weights` and `{name}/LoRA_B.weights`.
          init_base_rng: Key of the model's initialisation; None makes parameter slots.
          rank: Rank of the correction, at least 1.
          lowrank_axis: Name of the axis between A and B.
          alpha: The correction is scaled by `alpha / rank`, not 0; None does not scale it.
          dropout: Rate, from 0 to 1, of a dropout on the correction's input, drawn from the side input
            `random_stream`; None adds none.
          dtype: Dtype of A and B; default: the weight's, or float32 if that is no float. A
            correction of another dtype is cast back, so the layer's output keeps its dtype.
          use_dora: Train the magnitude of each output feature's weights too (`dora`), a parameter
            of the same dtype with the label `{name}/LoRA_magnitude`.

        Returns:
          The adapter. Axes of the weight that are neither input nor output (heads of a parallel
          layer, the axis of a layer stack) are parallel in A and in B.

        Raises:
          TypeError: If the rank is no whole number, or alpha or dropout is no number.
          ValueError: If the rank is not positive, alpha is 0 or not finite, or dropout is no
            probability.
          UnboundVariableError: If the weight is a slot.
        """
        call = f"LowRankAdapter.from_linear({name!r})"
        check_options(call, rank=rank, alpha=alpha, dropout=dropout)
        weight_dtype = linear.weights.value.dtype
        if dtype is None:
            is_float = jnp.issubdtype(weight_dtype, jnp.floating)
            dtype = weight_dtype if is_float else jnp.dtype(jnp.float32)
        from_config: Any = Linear.from_config
        factor = functools.partial(from_config, parallel_axes=linear.parallel_axes, dtype=dtype)
        matrix_a = factor(
            f"{name}/LoRA_A",
            init_base_rng,
            input_axes=linear.input_axes,
            output_axes={lowrank_axis: rank},
        )
        matrix_b = factor(
            f"{name}/LoRA_B",
            init_base_rng,
            input_axes={lowrank_axis: rank},
            output_axes=linear.output_axes,
            initializer=_zeros_in_scanned_order,
        )
        update: list[Layer] = [matrix_a, matrix_b]
        if dropout is not None:
            update.insert(0, StochasticDropout(dropout))
        if alpha is not None:
            update.append(ConstantRescale(alpha / rank))
        if jnp.dtype(dtype) != weight_dtype and jnp.issubdtype(weight_dtype, jnp.floating):
            update.append(CastToDType(weight_dtype))
        magnitude = None
        if use_dora:
            magnitude = make_parameter(
                f"{name}/LoRA_magnitude",
                init_base_rng,
                lambda _: feature_norms(linear).astype(dtype),
            )
        return cls([_adapted_sum(linear, NamedGroup("Update", update), magnitude)])

    @property
    def pretrained(self) -> Linear:
        """The adapted layer.

        Raises:
          ValueError: If it has been replaced by what is no `Linear`.
        """
        return pretrained_linear(self._branch("Pretrained"))

    @property
    def update(self) -> NamedGroup:
        """The correction: A, B, and what surrounds them."""
        update: NamedGroup = self._branch("Update")
        return update

    @property
    def magnitude(self) -> ParameterLike[NamedArrayBase] | None:
        """The parameter of the magnitudes; None without DoRA."""
        both = self.sublayers[0]
        return both.magnitude if isinstance(both, WeightDecomposedSum) else None

    def _branch(self, name: str) -> Any:
        both: Any = self.sublayers[0]
        (branch,) = [b for b in both.branches if b.name == name]
        return branch


def _adapted_sum(
    linear: Linear, update: NamedGroup, magnitude: ParameterLike[NamedArrayBase] | None
) -> Layer:
    branches = [NamedGroup("Pretrained", [linear]), update]
    if magnitude is None:
        return BranchAndAddTogether(branches)
    return WeightDecomposedSum(branches, magnitude)


@pytree_dataclass
class MergedAdapter(Layer):
    """A linear layer with a correction merged into its weight, and what takes it out again.

    Attributes:
      merged: The layer with the corrected weight; the only one that is called.
      update: The correction, kept for `unmerge_adapters`.
      magnitude: The magnitudes of a DoRA adapter, kept likewise; else None.
      scale: What the corrected weight was multiplied by then.
    """

    merged: Linear
    update: NamedGroup
    magnitude: ParameterLike[NamedArrayBase] | None = None
    scale: NamedArrayBase | None = None

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Calls the merged layer."""
        return self.merged(argument, **side_inputs)


def loraify_linears_in_selection(
    selection: Selection[Any],
    rank: int | Callable[[str, Linear], int | None],
    init_base_rng: jax.Array | None,
    *,
    alpha: float | None = None,
    dropout: float | None = None,
    dtype: Any = None,
    naming: Literal["path", "weight"] = "path",
    adapt_scales: bool = False,
    use_dora: bool = False,
) -> Any:
    """Adapts every linear layer in the selected parts of a model.

    Nothing is frozen: call `pz_core.variables.freeze_params` on the model first. A layer object
    that is used in two places gets two independent adapters.

    Args:
      selection: Parts of a model, e.g. its attention layers.
      rank: Rank of each adapter, or a function from a layer's path and the layer to its rank
        (None leaves that layer as it is).
      init_base_rng: Key of the initialisation; None makes parameter slots.
      alpha: See `LowRankAdapter.from_linear`.
      dropout: See there.
      dtype: See there.
      naming: What the adapters' labels are made of: `"path"`, the layer's path in the whole model
        (`LoRA:MLP.sublayers[0]/Affine.sublayers[0]/LoRA_A.weights`), or `"weight"`, the label of
        its weight (`LoRA:mlp/Affine_0/Linear/LoRA_A.weights`), which edits elsewhere in the model
        do not change.
      adapt_scales: Adapt layers without input axes too (the scales of norms).
      use_dora: See `LowRankAdapter.from_linear`.

    Returns:
      The whole model with the adapters.

    Raises:
      TypeError: If `selection` is none, or as `LowRankAdapter.from_linear` does.
      ValueError: If no linear layer is selected, `naming` is neither of the two or is `"weight"` and
        a weight has no text label, or as `LowRankAdapter.from_linear` does.
    """
    if not isinstance(selection, Selection):
        raise TypeError(
            "loraify_linears_in_selection: the first argument must be a selection of a model's parts, "
            f"got {type(selection).__name__}. Give select(model) to adapt all of it, or e.g. "
            "select(model).at_instances_of(Attention)."
        )
    if naming not in ("path", "weight"):
        raise ValueError(
            f'loraify_linears_in_selection: naming must be "path" or "weight", got {naming!r}. '
            'naming="path" is the default.'
        )
    model = selection.deselect()
    # From the root, so that paths do not depend on how the parts were selected.
    linears = selection.at_instances_of(Linear)
    if not adapt_scales:
        linears = linears.where(lambda linear: bool(linear.in_axis_names))
    if linears.is_empty():
        raise ValueError(
            "loraify_linears_in_selection: no linear layer is in the selected parts, so there is "
            f"nothing to adapt ({selection.count()} parts are selected). Select parts that hold "
            "Linear layers, e.g. select(model).at_instances_of(Attention)."
        )

    def adapt(path: Any, linear: Linear) -> Layer:
        place = pretty_keystr(path, model)
        this_rank = rank(place, linear) if callable(rank) else rank
        if this_rank is None:
            return linear
        return LowRankAdapter.from_linear(
            linear,
            name=f"LoRA:{place if naming == 'path' else _name_of_weight(linear)}",
            init_base_rng=init_base_rng,
            rank=this_rank,
            alpha=alpha,
            dropout=dropout,
            dtype=dtype,
            use_dora=use_dora,
        )

    return linears.apply(adapt, with_keypath=True)


def _name_of_weight(linear: Linear) -> str:
    label = getattr(linear.weights, "label", None)
    if not isinstance(label, str):
        raise ValueError(
            'loraify_linears_in_selection(naming="weight"): every adapted weight needs a text '
            f'label; one has {label!r}. Use naming="path" for this model.'
        )
    return label.removesuffix(".weights")


def merge_adapters(model: Any, *, keep: bool = False) -> Any:
    """Merges every adapter's correction (and magnitudes) into its layer's weight.

    Args:
      model: A model with adapters.
      keep: Keep the corrections beside the merged weights, so that `unmerge_adapters` can take
        them out again.

    Returns:
      The model with plain `Linear` layers in place of the adapters (`MergedAdapter` with `keep`).
      The merged weights are new parameters with the labels of the old; the input model does not
      change.

    Raises:
      ValueError: If the model has no adapter, or one adapts an adapter.
    """
    adapters = select(model).at_instances_of(LowRankAdapter)
    _require(adapters, "merge_adapters", "LowRankAdapter")

    def merge(adapter: LowRankAdapter) -> Layer:
        linear, both = adapter.pretrained, adapter.sublayers[0]
        scale = both.scale() if isinstance(both, WeightDecomposedSum) else None
        weight = adapted_weight(linear.weights.value, adapter.update)
        merged = _with_weight(linear, weight if scale is None else weight * scale)
        if not keep:
            return merged
        return MergedAdapter(merged, adapter.update, adapter.magnitude, scale)

    return adapters.apply(merge)


def unmerge_adapters(model: Any) -> Any:
    """Takes the corrections out of the weights again: undoes `merge_adapters(keep=True)`.

    The weights come back up to rounding in their dtype. Those of an output feature that a DoRA adapter
    scales to 0 come back as other ones that it scales to 0.

    Args:
      model: A model merged with `keep=True`.

    Returns:
      The model with adapters in place of the merged layers.

    Raises:
      ValueError: If the model has no merged adapter.
    """
    merged_adapters = select(model).at_instances_of(MergedAdapter)
    _require(merged_adapters, "unmerge_adapters", "MergedAdapter")

    def unmerge(merged: MergedAdapter) -> LowRankAdapter:
        old = merged.merged.weights.value
        weight = old if merged.scale is None else old / nx.nmap(_nonzero)(merged.scale)
        linear = _with_weight(merged.merged, adapted_weight(weight, merged.update, sign=-1))
        return LowRankAdapter([_adapted_sum(linear, merged.update, merged.magnitude)])

    return merged_adapters.apply(unmerge)


def _nonzero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)


def _with_weight(linear: Linear, weight: NamedArrayBase) -> Linear:
    old = linear.weights.value
    new = weight.order_as(*old.named_shape).astype(old.dtype)
    weights: Any
    if isinstance(linear.weights, Parameter | ParameterValue):
        make = type(linear.weights)
        weights = make(
            label=linear.weights.label, value=new, metadata=dict(linear.weights.metadata)
        )
    else:
        weights = ParameterValue(label="merged.weights", value=new, metadata={})
    return dataclasses.replace(linear, weights=weights)


def _require(selection: Selection[Any], function: str, wanted: str) -> None:
    if selection.is_empty():
        raise ValueError(
            f"{function}(model): the model has no {wanted}, so there is nothing to do. Adapt it "
            "with loraify_linears_in_selection first."
        )
