"""Initial values of weights, from the sizes of their named axes.

An initializer is called as

    initializer(key, input_axes={"embedding": 64}, output_axes={"neurons": 256}, parallel_axes={},
                convolution_spatial_axes={}, dtype=jnp.float32)

and returns a named array that has all these axes. `initializer_by_name("lecun_normal")` finds one.

References: Glorot and Bengio (2010) for Xavier, He et al. (2015) for He, LeCun et al. (1998) for LeCun,
Saxe et al. (2013) for orthogonal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pz_named import named_axes as nx
from pz_nn._axes import near_misses, with_names

__all__ = [
    "LinearOperatorWeightInitializer",
    "check_unique_axis_names_for_initializer",
    "constant_initializer",
    "he_normal_initializer",
    "he_uniform_initializer",
    "initializer_by_name",
    "lecun_normal_initializer",
    "lecun_uniform_initializer",
    "normal_initializer",
    "orthogonal_initializer",
    "truncated_normal_initializer",
    "variance_scaling_initializer",
    "xavier_normal_initializer",
    "xavier_uniform_initializer",
    "zero_initializer",
]

AxisSizes = dict[str, int]


class LinearOperatorWeightInitializer(Protocol):
    """Calling form of initializers; see the module."""

    def __call__(
        self,
        key: jax.Array,
        *,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        parallel_axes: AxisSizes,
        convolution_spatial_axes: AxisSizes,
        dtype: Any,
    ) -> nx.NamedArray:
        """Makes the weights.

        Args:
            key: Key of this parameter.
            input_axes: Axes that the operator sums over, with sizes.
            output_axes: Axes that it makes.
            parallel_axes: Axes along which there is one independent operator for each index.
            convolution_spatial_axes: Axes of the window of a convolution.
            dtype: Dtype of the weights.

        Returns:
            Named array with all the axes; no name may stand in two groups.
        """


def check_unique_axis_names_for_initializer(
    input_axes: AxisSizes,
    output_axes: AxisSizes,
    parallel_axes: AxisSizes,
    convolution_spatial_axes: AxisSizes,
) -> None:
    """Checks that no axis name stands in two of the four groups.

    Raises:
        ValueError: If one does; the message lists the names and the groups.
    """
    seen: dict[Hashable, int] = {}
    groups = (input_axes, output_axes, parallel_axes, convolution_spatial_axes)
    for group in groups:
        for name in group:
            seen[name] = seen.get(name, 0) + 1
    repeated = [name for name, count in seen.items() if count > 1]
    if repeated:
        raise ValueError(
            f"initializer: each axis name may stand in one group only, but {repeated} stand in several: "
            f"input_axes={input_axes}, output_axes={output_axes}, parallel_axes={parallel_axes}, "
            f"convolution_spatial_axes={convolution_spatial_axes}. Give the weight axes distinct names, "
            'for example "features" and "features_out".'
        )


def variance_scaling_initializer(
    key: jax.Array,
    *,
    scale: float,
    mode: str,
    distribution: str,
    input_axes: AxisSizes,
    output_axes: AxisSizes,
    parallel_axes: AxisSizes,
    convolution_spatial_axes: AxisSizes,
    dtype: Any,
) -> nx.NamedArray:
    """Draws weights whose variance is `scale / fan`.

    With r the product of the spatial sizes, fan_in = r · Π input and fan_out = r · Π output; parallel axes
    never count.

    Args:
        key: Key.
        scale: Numerator of the variance.
        mode: `"fan_in"`, `"fan_out"` or `"fan_avg"` (the mean of both).
        distribution: `"normal"`, `"uniform"`, or `"truncated_normal"` (cut at two standard deviations,
            with the variance restored).
        input_axes: Input axes with sizes.
        output_axes: Output axes with sizes.
        parallel_axes: Parallel axes with sizes.
        convolution_spatial_axes: Spatial axes with sizes.
        dtype: Floating dtype; values are drawn in it.

    Returns:
        Named array, axis order: parallel, spatial, input, output.

    Raises:
        ValueError: If mode or distribution is unknown, a name repeats, or the dtype is not floating.
        ZeroDivisionError: If an axis that counts has size 0.
    """
    check_unique_axis_names_for_initializer(
        input_axes, output_axes, parallel_axes, convolution_spatial_axes
    )
    for what, value, known in (
        ("mode", mode, ("fan_in", "fan_out", "fan_avg")),
        ("distribution", distribution, ("normal", "uniform", "truncated_normal")),
    ):
        if value not in known:
            raise ValueError(
                f"variance_scaling_initializer: {what} must be one of {known}, not {value!r}."
                f"{near_misses([value], known)}"
            )
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            "variance_scaling_initializer: the dtype must be floating, not "
            f"{np.dtype(dtype).name}. Draw in float32 and cast the result."
        )
    if 0 in {**input_axes, **output_axes, **convolution_spatial_axes}.values():
        raise ZeroDivisionError(
            f"variance_scaling_initializer: the variance is divided by the fan, which is 0 for input_axes="
            f"{dict(input_axes)}, output_axes={dict(output_axes)}, convolution_spatial_axes="
            f"{dict(convolution_spatial_axes)}. Give these axes sizes above 0, or use zero_initializer."
        )
    sizes = {**parallel_axes, **convolution_spatial_axes, **input_axes, **output_axes}
    axis = {name: index for index, name in enumerate(sizes)}
    draw = jax.nn.initializers.variance_scaling(
        scale,
        mode,  # type: ignore[arg-type]
        distribution,  # type: ignore[arg-type]
        # JAX wants at least one input and one output axis: two trailing unit axes play that part.
        in_axis=[*(axis[name] for name in input_axes), -2],
        out_axis=[*(axis[name] for name in output_axes), -1],
        batch_axis=[axis[name] for name in parallel_axes],
        dtype=dtype,
    )
    values = draw(key, (*sizes.values(), 1, 1), dtype)
    return with_names(sizes, values.reshape(tuple(sizes.values())))


xavier_uniform_initializer = functools.partial(
    variance_scaling_initializer, scale=1.0, mode="fan_avg", distribution="uniform"
)
xavier_normal_initializer = functools.partial(
    variance_scaling_initializer, scale=1.0, mode="fan_avg", distribution="normal"
)
he_uniform_initializer = functools.partial(
    variance_scaling_initializer, scale=2.0, mode="fan_in", distribution="uniform"
)
he_normal_initializer = functools.partial(
    variance_scaling_initializer, scale=2.0, mode="fan_in", distribution="truncated_normal"
)
lecun_uniform_initializer = functools.partial(
    variance_scaling_initializer, scale=1.0, mode="fan_in", distribution="uniform"
)
lecun_normal_initializer = functools.partial(
    variance_scaling_initializer, scale=1.0, mode="fan_in", distribution="truncated_normal"
)


def constant_initializer(value: Any) -> LinearOperatorWeightInitializer:
    """Makes an initializer that fills the weights with one value.

    Args:
        value: The value.

    Returns:
        An initializer that ignores its key. Axis order: input, output, parallel, spatial.
    """

    def initialize(
        key: jax.Array,
        *,
        input_axes: AxisSizes,
        output_axes: AxisSizes,
        parallel_axes: AxisSizes,
        convolution_spatial_axes: AxisSizes,
        dtype: Any,
    ) -> nx.NamedArray:
        del key
        check_unique_axis_names_for_initializer(
            input_axes, output_axes, parallel_axes, convolution_spatial_axes
        )
        sizes = {**input_axes, **output_axes, **parallel_axes, **convolution_spatial_axes}
        return with_names(sizes, jnp.full(tuple(sizes.values()), value, dtype))

    return initialize


zero_initializer = constant_initializer(0.0)


def normal_initializer(
    key: jax.Array, *, stddev: float = 0.02, dtype: Any, **axis_groups: AxisSizes
) -> nx.NamedArray:
    """Draws from a normal distribution of fixed width, as GPT-2 and its heirs do.

    Args:
        key: Key.
        stddev: Standard deviation.
        dtype: Floating dtype.
        **axis_groups: The four groups of axes.

    Returns:
        Named array, axis order: parallel, spatial, input, output.
    """
    sizes = _stored_sizes(**axis_groups)
    return with_names(sizes, stddev * jax.random.normal(key, tuple(sizes.values()), dtype))


def truncated_normal_initializer(
    key: jax.Array, *, stddev: float = 0.02, dtype: Any, **axis_groups: AxisSizes
) -> nx.NamedArray:
    """Draws from a normal distribution cut at two standard deviations.

    Args:
        key: Key.
        stddev: Standard deviation before the cut.
        dtype: Floating dtype.
        **axis_groups: The four groups of axes.

    Returns:
        Named array, axis order: parallel, spatial, input, output.
    """
    sizes = _stored_sizes(**axis_groups)
    draw = jax.random.truncated_normal(key, -2.0, 2.0, tuple(sizes.values()), dtype)
    return with_names(sizes, stddev * draw)


def orthogonal_initializer(
    key: jax.Array, *, scale: float = 1.0, dtype: Any, **axis_groups: AxisSizes
) -> nx.NamedArray:
    """Draws a random orthogonal matrix from (spatial and input axes) to (output axes).

    Rows are orthonormal up to `scale` if there are at most as many of them as columns, columns otherwise.

    Args:
        key: Key.
        scale: Factor.
        dtype: Floating dtype.
        **axis_groups: The four groups of axes; along parallel axes the matrices are independent.

    Returns:
        Named array, axis order: parallel, spatial, input, output.
    """
    sizes = _stored_sizes(**axis_groups)
    rows = math.prod(axis_groups["convolution_spatial_axes"].values())
    rows *= math.prod(axis_groups["input_axes"].values())
    columns = math.prod(axis_groups["output_axes"].values())
    count = math.prod(axis_groups["parallel_axes"].values())
    draw = jax.nn.initializers.orthogonal(scale, dtype=dtype)
    matrices = jax.vmap(lambda one: draw(one, (rows, columns)))(jax.random.split(key, count))
    return with_names(sizes, matrices.reshape(tuple(sizes.values())))


def _stored_sizes(
    *,
    input_axes: AxisSizes,
    output_axes: AxisSizes,
    parallel_axes: AxisSizes,
    convolution_spatial_axes: AxisSizes,
) -> AxisSizes:
    check_unique_axis_names_for_initializer(
        input_axes, output_axes, parallel_axes, convolution_spatial_axes
    )
    return {**parallel_axes, **convolution_spatial_axes, **input_axes, **output_axes}


_BY_NAME: dict[str, Any] = {
    "he_normal": he_normal_initializer,
    "he_uniform": he_uniform_initializer,
    "lecun_normal": lecun_normal_initializer,
    "lecun_uniform": lecun_uniform_initializer,
    "normal": normal_initializer,
    "ones": constant_initializer(1.0),
    "orthogonal": orthogonal_initializer,
    "truncated_normal": truncated_normal_initializer,
    "xavier_normal": xavier_normal_initializer,
    "xavier_uniform": xavier_uniform_initializer,
    "zeros": zero_initializer,
}


def initializer_by_name(name: str) -> LinearOperatorWeightInitializer:
    """Finds an initializer by its usual name.

    Args:
        name: One of `he_normal`, `he_uniform` (also called Kaiming), `lecun_normal`, `lecun_uniform`,
            `normal`, `ones`, `orthogonal`, `truncated_normal`, `xavier_normal`, `xavier_uniform` (also
            called Glorot), `zeros`.

    Returns:
        The initializer.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> initializer_by_name("glorot_uniform") is xavier_uniform_initializer
        True
    """
    key = name.replace("kaiming", "he").replace("glorot", "xavier")
    if key not in _BY_NAME:
        raise ValueError(
            f"initializer_by_name: {name!r} is not a known initializer.{near_misses([key], _BY_NAME)} "
            f"Known names: {', '.join(_BY_NAME)}."
        )
    found: LinearOperatorWeightInitializer = _BY_NAME[key]
    return found
