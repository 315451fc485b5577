"""Pooling over windows of named axes.

MaxPool.over({"height": 2, "width": 2})  # halves both, keeps the order of axes
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_nn import _windows
from pz_nn._axes import Names, axis_indices, names_and_data, with_names
from pz_nn._dtypes import upcast
from pz_nn._windows import AxisSettings, Padding, per_axis
from pz_nn.layer import Layer

__all__ = ["AveragePool", "MaxPool"]


@pytree_dataclass
class MaxPool(Layer):
    """The largest entry of each window.

    Attributes:
        window: Pairs of an axis and the size of the window there.
        strides: One for each pair.
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, or (low, high) for each pair; padded places never win.

    Example:
        >>> from pz_named import wrap
        >>> MaxPool.over({"seq": 2})(wrap(jnp.array([1, 5, 2, 3]), "seq")).unwrap("seq").tolist()
        [5, 3]
    """

    window: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"pytree_node": False})
    strides: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    padding: Padding = dataclasses.field(default="VALID", metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Pools.

        Args:
            value: Real named array with the axes of the window.

        Returns:
            Array with the axes of the input in their order; those of the window are shorter.

        Raises:
            ValueError: If an axis is missing.
        """
        names, data = names_and_data(value, "MaxPool")
        floating = jnp.issubdtype(data.dtype, jnp.floating)
        lowest = -np.inf if floating else np.iinfo(data.dtype).min
        return with_names(names, _reduce(self, names, data, lowest, jax.lax.max))

    @classmethod
    def over(
        cls,
        window: dict[str, int],
        strides: AxisSettings | None = None,
        padding: str | dict[str, tuple[int, int]] = "VALID",
    ) -> MaxPool:
        """Builds a pooling layer.

        Args:
            window: Size of the window by axis.
            strides: A number, or one by axis; by default the size of the window.
            padding: A word, or (low, high) by axis.

        Returns:
            The layer.
        """
        return cls(*_settings(window, strides, padding, "MaxPool.over"))


@pytree_dataclass
class AveragePool(Layer):
    """The mean of each window, over the places that are not padding.

    Attributes:
        window: Pairs of an axis and the size of the window there.
        strides: One for each pair.
        padding: `"SAME"`, `"VALID"`, `"CAUSAL"`, or (low, high) for each pair.
        compute_dtype: Lowest dtype of the sums; the result has the dtype of the input.
        count_padding: Whether padded places count as zeros.
    """

    window: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"pytree_node": False})
    strides: tuple[int, ...] = dataclasses.field(metadata={"pytree_node": False})
    padding: Padding = dataclasses.field(default="VALID", metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})
    count_padding: bool = dataclasses.field(default=False, metadata={"pytree_node": False})

    def __call__(self, value: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Pools; arguments, result and errors as in `MaxPool`, integers become float."""
        names, data = names_and_data(value, "AveragePool")
        data, result_dtype = upcast(data, self.compute_dtype)
        total = _reduce(self, names, data, 0.0, jax.lax.add)
        count: Any = math.prod(size for _, size in self.window)
        if not self.count_padding:
            count = _reduce(self, names, jnp.ones_like(data), 0.0, jax.lax.add)
        return with_names(names, (total / count).astype(result_dtype))

    @classmethod
    def over(
        cls,
        window: dict[str, int],
        strides: AxisSettings | None = None,
        padding: str | dict[str, tuple[int, int]] = "VALID",
        count_padding: bool = False,
    ) -> AveragePool:
        """Builds a pooling layer.

        Args:
            window: Size of the window by axis.
            strides: A number, or one by axis; by default the size of the window.
            padding: A word, or (low, high) by axis.
            count_padding: Whether padded places count as zeros (PyTorch's default) or not at all.

        Returns:
            The layer.
        """
        settings = _settings(window, strides, padding, "AveragePool.over")
        return cls(*settings, count_padding=count_padding)


def _settings(
    window: dict[str, int],
    strides: AxisSettings | None,
    padding: str | dict[str, tuple[int, int]],
    user: str,
) -> tuple[tuple[tuple[str, int], ...], tuple[int, ...], Padding]:
    strides = dict(window) if strides is None else strides
    return (
        tuple(window.items()),
        per_axis(strides, window, "strides", user),
        _windows.checked_padding(padding, window, user),
    )


def _reduce(
    layer: MaxPool | AveragePool, names: Names, data: jax.Array, initial: Any, operation: Any
) -> jax.Array:
    axes = axis_indices(names, [axis for axis, _ in layer.window], type(layer).__name__)
    window = tuple(size for _, size in layer.window)
    sizes = tuple(data.shape[axis] for axis in axes)
    pairs = _windows.paddings(layer.padding, sizes, window, layer.strides, (1,) * len(window))
    shape, strides, padding = [1] * data.ndim, [1] * data.ndim, [(0, 0)] * data.ndim
    for place, axis in enumerate(axes):
        shape[axis], strides[axis] = window[place], layer.strides[place]
        padding[axis] = pairs[place]
    # The initial value as a NumPy scalar: JAX then recognises a max or a sum and can differentiate it.
    scalar = np.asarray(initial, data.dtype)[()]
    pooled: jax.Array = jax.lax.reduce_window(data, scalar, operation, shape, strides, padding)
    return pooled
