"""Python's operators for named arrays: alignment by name, then JAX's own operator.

A mixin of `NamedArrayBase`. Both operands may be named or anything JAX accepts; the names of the
left operand come first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp

from pz_named._aligned import apply_divmod, apply_elementwise, is_array_like
from pz_named._layout import NamedLeaf, named_shape_text
from pz_named._packing import names_first, pack
from pz_named.lifting import nmap

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["NamedOperators"]


def _compare(op: Callable[..., Any], x: NamedLeaf, other: Any) -> NamedArrayBase:
    """`==` or `!=`; with what is no array, the same truth value everywhere."""
    if is_array_like(other):
        return apply_elementwise(op, x, other)

    def compare(values: Any) -> Any:
        result = op(values, other)
        return jnp.full(values.shape, result) if isinstance(result, bool) else result

    return cast("NamedArrayBase", nmap(compare)(x))


# Like every operator, `@` means positional axes: `x.untag("embed") @ weights.untag("embed", "hidden")`.
_matmul = nmap(jnp.matmul)


class NamedOperators(NamedLeaf):
    """Operators, scalar conversions and iteration."""

    # `==` is elementwise, so hashing could never agree with it.
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> NamedArrayBase:  # type: ignore[override]
        return _compare(operator.eq, self, other)

    def __ne__(self, other: object) -> NamedArrayBase:  # type: ignore[override]
        return _compare(operator.ne, self, other)

    def __lt__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.lt, self, other)

    def __le__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.le, self, other)

    def __gt__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.gt, self, other)

    def __ge__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.ge, self, other)

    def __add__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.add, self, other)

    def __radd__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.add, other, self)

    def __sub__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.sub, self, other)

    def __rsub__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.sub, other, self)

    def __mul__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.mul, self, other)

    def __rmul__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.mul, other, self)

    def __truediv__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.mod, self, other)

    def __rmod__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.mod, other, self)

    def __pow__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.pow, self, other)

    def __rpow__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.pow, other, self)

    def __lshift__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.lshift, self, other)

    def __rlshift__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.lshift, other, self)

    def __rshift__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.rshift, self, other)

    def __rrshift__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.rshift, other, self)

    def __and__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.and_, self, other)

    def __rand__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.and_, other, self)

    def __or__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.or_, self, other)

    def __ror__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.or_, other, self)

    def __xor__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.xor, self, other)

    def __rxor__(self, other: Any) -> NamedArrayBase:
        return apply_elementwise(operator.xor, other, self)

    def __matmul__(self, other: Any) -> NamedArrayBase:
        return cast("NamedArrayBase", _matmul(self, other))

    def __rmatmul__(self, other: Any) -> NamedArrayBase:
        return cast("NamedArrayBase", _matmul(other, self))

    def __divmod__(self, other: Any) -> tuple[NamedArrayBase, NamedArrayBase]:
        return apply_divmod(self, other)

    def __rdivmod__(self, other: Any) -> tuple[NamedArrayBase, NamedArrayBase]:
        return apply_divmod(other, self)

    def __abs__(self) -> NamedArrayBase:
        return apply_elementwise(abs, self)

    def __neg__(self) -> NamedArrayBase:
        return apply_elementwise(operator.neg, self)

    def __pos__(self) -> NamedArrayBase:
        return apply_elementwise(operator.pos, self)

    def __invert__(self) -> NamedArrayBase:
        return apply_elementwise(operator.invert, self)

    def _scalar(self, conversion: str) -> Any:
        data, layout = names_first(self)
        if data.shape:
            shape = named_shape_text(layout.named_shape, layout.positional_shape)
            raise ValueError(
                f"{conversion}(array): only an array without any axis is a scalar; this one has "
                f"shape {shape}. Reduce or index its axes first."
            )
        return data

    def __bool__(self) -> bool:
        return bool(self._scalar("bool"))

    def __int__(self) -> int:
        return int(self._scalar("int"))

    def __float__(self) -> float:
        return float(self._scalar("float"))

    def __complex__(self) -> complex:
        return complex(self._scalar("complex"))

    def __index__(self) -> int:
        return operator.index(self._scalar("operator.index"))

    def __iter__(self) -> Iterator[NamedArrayBase]:
        # Without it Python's legacy protocol would call x[0], x[1], ... until an IndexError.
        data, layout = names_first(self)
        count = len(layout.names)
        if not layout.logical_axes:
            raise ValueError(
                "iter(array): iteration goes over the first positional axis and this array has "
                f"none; its shape is {named_shape_text(layout.named_shape)}. To iterate over a "
                'name use unstack(array, "name").'
            )
        for index in range(data.shape[count]):
            yield pack(jax.lax.index_in_dim(data, index, count, keepdims=False), layout.names)
