"""Linear operators by axis name: linear and affine layers, biases, renaming, constant factors.

The named shape of a weight says what each of its axes does: input axes are summed over, output axes are
new in the result, all others are parallel (one independent operator for each index).

    layer = Linear.from_config("attn/query", key, {"embedding": 64}, {"heads": 4, "projection": 16})
    layer(x)  # {batch, seq, embedding} -> {batch, seq, heads, projection}

A `Linear` without parallel axes becomes one `dot_general` in which neither operand is transposed (in compiled
programs for CPUs between reshapes, which are free).

Contractions live in `pz_nn.contraction` and initializers in `pz_nn.initializers`; both are named here too,
where Penzai has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_named import shapecheck as chk
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn._axes import Names, as_names, axis_indices, names_and_data, near_misses, with_names
from pz_nn._display import BIAS, LINEAR, tinted
from pz_nn._linear_axes import (
    OperatorAxes,
    check_disjoint,
    fits_linear,
    label_prefix,
    primed_output_names,
)
from pz_nn.contraction import NamedEinsum, contract
from pz_nn.grouping import Sequential
from pz_nn.initializers import (
    LinearOperatorWeightInitializer,
    check_unique_axis_names_for_initializer,
    constant_initializer,
    variance_scaling_initializer,
    xavier_normal_initializer,
    xavier_uniform_initializer,
    zero_initializer,
)
from pz_nn.layer import Layer
from pz_nn.parameters import ParameterLike, make_parameter

__all__ = [
    "AddBias",
    "Affine",
    "ConstantRescale",
    "Linear",
    "LinearInPlace",
    "LinearOperatorWeightInitializer",
    "NamedEinsum",
    "RenameAxes",
    "check_unique_axis_names_for_initializer",
    "constant_initializer",
    "contract",
    "variance_scaling_initializer",
    "xavier_normal_initializer",
    "xavier_uniform_initializer",
    "zero_initializer",
]

AxisSizes = dict[str, int]


@pytree_dataclass
class RenameAxes(Layer):
    """Gives axes other names, all at once (so two may swap); no data moves.

    Attributes:
        old: Name or names that the input has.
        new: Name or names for them, in the same order.
    """

    old: str | tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    new: str | tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Renames.

        Raises:
            ValueError: If an old name is missing, a new one is taken, their numbers differ, or the input
                has positional axes.
        """
        old, new = as_names(self.old), as_names(self.new)
        names, data = names_and_data(value, "RenameAxes")
        if len(old) != len(new):
            raise ValueError(
                f"RenameAxes: `old` and `new` must have the same length, but are {old} and {new}. Give "
                "each old name one new name."
            )
        axis_indices(names, old, "RenameAxes")
        renamed = dict(zip(old, new, strict=True))
        result: Names = tuple(renamed.get(name, name) for name in names)
        if len(set(result)) != len(result):
            clashing = [name for name in new if result.count(name) > 1]
            raise ValueError(
                f"RenameAxes: the new names must be free, but {list(dict.fromkeys(clashing))} would "
                f"occur twice: input axes {names}, renaming {old} to {new}. Choose other new names, or "
                "rename the clashing axis as well."
            )
        return with_names(result, data)


@pytree_dataclass
class Linear(OperatorAxes, Layer):
    """Linear operator: y[B, P, out] = Σ_in x[B, P, in] · W[P, in, out].

    Attributes:
        weights: Parameter W. Of its axes, those in `in_axis_names` are summed over, those in
            `out_axis_names` are new in the output, all others are parallel: the input has them too.
        in_axis_names: Names of input axes.
        out_axis_names: Names of output axes.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`; by default the dtype is JAX's promotion of x
            and W.

    Example:
        >>> layer = Linear.from_config("query", jax.random.key(0), {"embedding": 4}, {"heads": 2})
        >>> layer(nx.ones({"batch": 3, "embedding": 4})).named_shape
        {'batch': 3, 'heads': 2}
    """

    weights: ParameterLike[NamedArrayBase]
    in_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    out_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    precision: Any = dataclasses.field(default=None, metadata={"pytree_node": False})
    preferred_element_type: Any = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Applies the operator.

        Args:
            value: Floating named array with the input and parallel axes; others are batch axes.

        Returns:
            Array with the remaining axes of the input, then the new axes in the order of the weights.

        Raises:
            StructureMismatchError: If an axis is missing or has the wrong size, the dtype is not
                floating, there are positional axes, or an output axis is in the input already.
            UnboundVariableError: If the weights are an unfilled slot.
        """
        weights = self.weights.value
        if not fits_linear(value, weights.named_shape, self.out_axis_names):
            self._raise_misfit(value, weights.named_shape)
        return contract(
            self.in_axis_names,
            value,
            weights,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )

    def _raise_misfit(self, value: Any, weight_sizes: Mapping[Any, int]) -> None:
        prefix = f"{label_prefix(self.weights)}Error while checking the input of a Linear layer:\n"
        required = {n: size for n, size in weight_sizes.items() if n not in self.out_axis_names}
        pattern = chk.ArraySpec(
            named_shape={**chk.var("batch"), **required},
            dtype=jnp.floating,
        )
        chk.check_structure(value, pattern, error_prefix=prefix)
        clashing = [name for name in self.out_axis_names if name in value.named_shape]
        sizes = ", ".join(
            f"{n}: {value.named_shape[n]} (output: {weight_sizes[n]})" for n in clashing
        )
        message = (
            f"{prefix}The input must not have an axis that the layer makes, but it has {sizes}; "
            f"input named_shape={value.named_shape}, weights named_shape={weight_sizes}. Rename that axis "
            "of the input first, for example with RenameAxes."
        )
        if any(value.named_shape[n] != weight_sizes[n] for n in clashing):
            raise ValueError(message)
        raise chk.StructureMismatchError(message)

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of linear layers."""
        return LINEAR

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        parallel_axes: AxisSizes | None = None,
        parallel_broadcast_axes: AxisSizes | None = None,
        initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        dtype: Any = jnp.float32,
        rename_outputs_if_necessary: bool = True,
    ) -> Linear | LinearInPlace:
        """Builds a linear layer.

        Args:
            name: Name of the layer; the label of its weights is `{name}.weights`.
            init_base_rng: Key of the model, or None for a slot.
            input_axes: Axes to sum over, with sizes.
            output_axes: Axes to make, with sizes. One that is also an input axis is made under the name
                `{axis}_out` and renamed afterwards.
            parallel_axes: Axes of independent operators.
            parallel_broadcast_axes: Axes of independent operators that all see one input: output axes
                that leave the variance of the initial weights alone.
            initializer: Draws the weights.
            dtype: Dtype of the weights.
            rename_outputs_if_necessary: Whether an axis may be both input and output axis.

        Returns:
            A `Linear`, or a `LinearInPlace` around one if outputs had to be renamed.

        Raises:
            ValueError: If the groups of axes overlap otherwise, or a made-up name is taken.
        """
        parallel = parallel_axes or {}
        broadcast = parallel_broadcast_axes or {}
        primed = primed_output_names(
            f"Linear.from_config({name!r})",
            input_axes,
            output_axes,
            parallel,
            broadcast,
            may_rename=rename_outputs_if_necessary,
        )
        weight_output_axes = {primed.get(n, n): size for n, size in output_axes.items()}
        weights = make_parameter(
            f"{name}.weights",
            init_base_rng,
            initializer,
            input_axes=input_axes,
            output_axes=weight_output_axes,
            parallel_axes={**parallel, **broadcast},
            convolution_spatial_axes={},
            dtype=dtype,
        )
        linear = cls(weights, tuple(input_axes), (*weight_output_axes, *broadcast))
        if not primed:
            return linear
        return LinearInPlace([linear, RenameAxes(tuple(primed.values()), tuple(primed))])


@pytree_dataclass
class LinearInPlace(Sequential):
    """A `Linear` some of whose output axes replace input axes of the same names.

    Attributes:
        sublayers: The `Linear`, which makes `{axis}_out`, and a `RenameAxes`. A batch axis of such a name
            is an error.
    """

    sublayers: list[Any]

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of linear layers."""
        return tinted(LINEAR)


@pytree_dataclass
class AddBias(Layer):
    """Adds a bias: y = x + b.

    Attributes:
        bias: Parameter b.
        new_axis_names: Axes of the bias that the input need not have. The input must have all others.
    """

    bias: ParameterLike[NamedArrayBase]
    new_axis_names: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> Any:
        """Adds the bias.

        Args:
            value: Named array.

        Returns:
            The sum; axes of the bias that the input lacks come last.

        Raises:
            ValueError: If sizes disagree, or an axis of the bias that is not new is missing.
        """
        bias = self.bias.value
        if isinstance(value, NamedArrayBase):
            names = value.named_shape
            missing = [
                n for n in bias.named_shape if n not in names and n not in self.new_axis_names
            ]
            if missing:
                raise ValueError(
                    f"AddBias: the input must have the axes of the bias, but {missing} are missing: input "
                    f"named_shape={names}, bias named_shape={bias.named_shape}."
                    f"{near_misses(missing, names)} Rename an axis of the input, or list the axis in "
                    "new_axis_names if the bias is to add it."
                )
        return value + bias

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of biases."""
        return BIAS

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        biased_axes: AxisSizes,
        new_output_axes: AxisSizes | None = None,
        initializer: LinearOperatorWeightInitializer = zero_initializer,
        dtype: Any = jnp.float32,
    ) -> AddBias:
        """Builds a bias.

        Args:
            name: Name of the layer; the label is `{name}.bias`.
            init_base_rng: Key of the model, or None for a slot.
            biased_axes: Axes of the input along which the bias varies, with sizes.
            new_output_axes: Axes that the bias adds.
            initializer: Draws the bias; all axes are output axes to it.
            dtype: Dtype of the bias.

        Returns:
            The layer.
        """
        new_axes = new_output_axes or {}
        check_disjoint(
            f"AddBias.from_config({name!r})", biased_axes=biased_axes, new_output_axes=new_axes
        )
        bias = make_parameter(
            f"{name}.bias",
            init_base_rng,
            initializer,
            input_axes={},
            output_axes={**biased_axes, **new_axes},
            parallel_axes={},
            convolution_spatial_axes={},
            dtype=dtype,
        )
        return cls(bias, tuple(new_axes))


@pytree_dataclass
class Affine(Sequential):
    """A linear operator and a bias: y = x · W + b.

    Attributes:
        sublayers: A `Linear` (and the renaming of its outputs, if any), then an `AddBias`.
    """

    sublayers: list[Any]

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of linear layers."""
        return tinted(LINEAR)

    @classmethod
    def from_config(
        cls,
        name: str,
        init_base_rng: jax.Array | None,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        parallel_axes: AxisSizes | None = None,
        parallel_broadcast_axes: AxisSizes | None = None,
        linear_initializer: LinearOperatorWeightInitializer = xavier_uniform_initializer,
        bias_initializer: LinearOperatorWeightInitializer = zero_initializer,
        dtype: Any = jnp.float32,
        rename_outputs_if_necessary: bool = True,
    ) -> Affine:
        """Builds an affine layer.

        Args:
            name: Name of the layer; labels are `{name}/Linear.weights` and `{name}/AddBias.bias`.
            init_base_rng: Key of the model, or None for slots.
            input_axes: As in `Linear.from_config`, like all axes here.
            output_axes: Axes to make.
            parallel_axes: Axes of independent operators, each with a bias.
            parallel_broadcast_axes: The same, all seeing one input.
            linear_initializer: Draws the weights.
            bias_initializer: Draws the bias.
            dtype: Dtype of both.
            rename_outputs_if_necessary: Whether an axis may be both input and output axis.

        Returns:
            The layer.
        """
        linear = Linear.from_config(
            f"{name}/Linear",
            init_base_rng,
            input_axes,
            output_axes,
            parallel_axes,
            parallel_broadcast_axes,
            linear_initializer,
            dtype,
            rename_outputs_if_necessary,
        )
        bias = AddBias.from_config(
            f"{name}/AddBias",
            init_base_rng,
            {**(parallel_axes or {}), **(parallel_broadcast_axes or {}), **output_axes},
            initializer=bias_initializer,
            dtype=dtype,
        )
        linears = linear.sublayers if isinstance(linear, LinearInPlace) else [linear]
        return cls([*linears, bias])


@pytree_dataclass
class ConstantRescale(Layer):
    """Multiplies every array of its input by a constant that is not learned.

    Attributes:
        by: The factor. A Python number, which is static, keeps the dtype of floating inputs; an array, a
            leaf, promotes it.
    """

    by: float | jax.Array | NamedArrayBase = dataclasses.field(
        metadata={"pytree_node": "unless_number"}
    )

    def __call__(self, value: Any, /, **_side_inputs: Any) -> Any:
        """Multiplies each leaf of a pytree."""
        return jax.tree_util.tree_map(lambda leaf: leaf * self.by, value, is_leaf=nx.is_namedarray)
