"""Layers without parameters: elementwise functions, softmax, casts, soft caps.

Sequential([TanhSoftCap(50.0), Softmax("kv_seq")])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.colors import color_from_string
from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArray, NamedArrayBase, is_namedarray, nmap, wrap
from pz_nn._axes import as_names, axis_indices, move_to_end, names_and_data
from pz_nn._dtypes import cast, upcast
from pz_nn.layer import Layer

__all__ = ["CastToDType", "Elementwise", "Softmax", "TanhSoftCap"]

# Functions that give the same on a whole array as on each of its entries. For these one call on the data
# replaces one nested vmap for each axis name; the result is the same array.
_KNOWN_ELEMENTWISE = frozenset(
    {
        *(jax.nn.relu, jax.nn.relu6, jax.nn.sigmoid, jax.nn.softplus, jax.nn.silu, jax.nn.swish),
        *(jax.nn.gelu, jax.nn.elu, jax.nn.selu, jax.nn.celu, jax.nn.leaky_relu, jax.nn.log_sigmoid),
        *(jax.nn.hard_tanh, jax.nn.hard_sigmoid, jax.nn.hard_silu, jax.nn.soft_sign, jax.nn.mish),
        *(
            jnp.tanh,
            jnp.sin,
            jnp.cos,
            jnp.exp,
            jnp.log,
            jnp.sqrt,
            jnp.square,
            jnp.abs,
            jnp.negative,
        ),
    }
)


class _ComparablePartial(functools.partial):
    """A partial that equals another one of the same function and arguments.

    `functools.partial` compares by identity, so two models built alike would not be equal and a
    compiled function would be traced again for the second one.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ComparablePartial):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, self.args, tuple(sorted(self.keywords.items()))))


@pytree_dataclass(post_init_may_rerun=True)
class Elementwise(Layer):
    """Applies a function to each entry: y = fn(x).

    Attributes:
        fn: The function. Two layers are equal if their functions are: give a named function or a
            `functools.partial` of one (compared by function and arguments), because every new lambda
            makes compiled code trace again.
    """

    fn: Callable[[Any], Any] = dataclasses.field(metadata={"pytree_node": False})

    def __post_init__(self) -> None:
        if type(self.fn) is functools.partial:
            comparable = _ComparablePartial(self.fn.func, *self.fn.args, **self.fn.keywords)
            object.__setattr__(self, "fn", comparable)

    def __call__(self, value: Any, /, **_side_inputs: Any) -> Any:
        """Applies the function.

        Args:
            value: A named array, over whose names the function is mapped (it sees the positional axes,
                if any); anything else goes to the function whole.

        Returns:
            The result, with the axes of the input.
        """
        if not is_namedarray(value):
            return self.fn(value)
        if _is_known_elementwise(self.fn) and not value.positional_shape:
            prefix = value.with_positional_prefix()
            return NamedArray(prefix.named_axes, self.fn(prefix.data_array))
        return nmap(self.fn)(value)

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of the function's name, the same in every process."""
        fn = self.fn.func if isinstance(self.fn, functools.partial) else self.fn
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        return color_from_string(f"{getattr(fn, '__module__', '')}.{name}")


def _is_known_elementwise(fn: Any) -> bool:
    if isinstance(fn, functools.partial):
        # A keyword such as gelu's `approximate` is a setting; an array would be paired with entries.
        settings = (*fn.args, *fn.keywords.values())
        return not any(hasattr(value, "shape") for value in settings) and _is_known_elementwise(
            fn.func
        )
    try:
        return fn in _KNOWN_ELEMENTWISE
    except TypeError:  # an unhashable callable
        return False


@pytree_dataclass
class Softmax(Layer):
    """Softmax jointly over one or several axes: y = exp(x) / sum(exp(x)).

    Attributes:
        axes: Name or names of the axes.
        compute_dtype: Lowest dtype to compute in; the result has the dtype of the input again. None
            computes in the dtype of the input.

    Example:
        >>> Softmax("choice")(wrap(jnp.zeros(4), "choice")).unwrap("choice").tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    axes: str | tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    compute_dtype: Any = dataclasses.field(default=jnp.float32, metadata={"pytree_node": False})

    def __call__(self, logits: NamedArrayBase, /, **_side_inputs: Any) -> NamedArray:
        """Computes the softmax.

        Args:
            logits: Named array that has the axes.

        Returns:
            Array of the same named shape, order: the other axes, then `axes`. Integers become float.

        Raises:
            ValueError: If an axis is missing, or the input has positional axes.
        """
        axes = as_names(self.axes)
        names, data = names_and_data(logits, "Softmax")
        indices = axis_indices(names, axes, "Softmax")
        data, result_dtype = upcast(data, self.compute_dtype)
        result = cast(jax.nn.softmax(data, axis=indices), result_dtype)
        return move_to_end(names, result, axes)


@pytree_dataclass
class CastToDType(Layer):
    """Casts every array of its input.

    Attributes:
        dtype: The dtype of the result.
    """

    dtype: Any = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: Any, /, **_side_inputs: Any) -> Any:
        """Casts each leaf of a pytree; a leaf that is no array is an `AttributeError`."""
        return jax.tree_util.tree_map(lambda leaf: leaf.astype(self.dtype), value)


@pytree_dataclass
class TanhSoftCap(Layer):
    """Keeps values smoothly between -c and c: y = c · tanh(x / c).

    Attributes:
        soft_cap: The bound c. A Python number, which is static, keeps the dtype of the input; an array,
            a leaf, promotes it.

    Reference: Bello et al., Neural Combinatorial Optimization with Reinforcement Learning (2016);
    used on attention and output logits by Gemma 2.
    """

    soft_cap: float | jax.Array = dataclasses.field(metadata={"pytree_node": "unless_number"})

    def __call__(self, value: Any, /, **_side_inputs: Any) -> NamedArrayBase:
        """Caps the input.

        Returns:
            A named array with the axes of the input.
        """
        named = value if is_namedarray(value) else wrap(value)
        if is_namedarray(self.soft_cap) or jnp.ndim(self.soft_cap) > 0 or named.positional_shape:
            mapped: NamedArrayBase = nmap(_soft_cap)(named, self.soft_cap)
            return mapped
        prefix = named.with_positional_prefix()
        return NamedArray(prefix.named_axes, _soft_cap(prefix.data_array, self.soft_cap))


def _soft_cap(value: Any, soft_cap: Any) -> Any:
    return soft_cap * jnp.tanh(value / soft_cap)
