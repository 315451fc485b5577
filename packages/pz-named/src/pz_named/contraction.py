"""Products summed over names.

Equal names are matched; a name that is summed over disappears; all others stay. This is
`jnp.einsum` with names for letters.

Example:
    >>> import pz_named as nx
    >>> x = nx.ones({"batch": 2, "embed": 3})
    >>> weights = nx.ones({"embed": 3, "hidden": 4})
    >>> nx.dot(x, weights, axis="embed").named_shape
    {'batch': 2, 'hidden': 4}
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from pz_named._arguments import require_named
from pz_named._layout import Layout, near_misses, ordered_union
from pz_named._packing import ResultForm, as_jax, transposed
from pz_named.axis_names import AxisName
from pz_named.lifting import raise_size_conflict

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["dot", "einsum"]


class _Plan:
    """The einsum of a product: how to lay out each operand and which axes it has."""

    __slots__ = ("equation", "orders", "result")

    def __init__(self, layouts: Sequence[Layout], output: Sequence[AxisName]) -> None:
        union = ordered_union(layouts)
        assert union is not None
        letter = {name: _letter(i) for i, name in enumerate(union)}
        self.orders = tuple(layout.name_axes + layout.logical_axes for layout in layouts)
        tails = ["..." if layout.logical_axes else "" for layout in layouts]
        operands = [
            "".join(letter[n] for n in layout.names) + tail
            for layout, tail in zip(layouts, tails, strict=True)
        ]
        result = "".join(letter[name] for name in output) + ("..." if any(tails) else "")
        self.equation = ",".join(operands) + "->" + result
        self.result = ResultForm({name: union[name] for name in output})


def _letter(index: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[index] if index < len(letters) else chr(index + 140)  # as opt_einsum does


@functools.lru_cache(maxsize=1024)
def _plan(layouts: tuple[Layout, ...], output: tuple[AxisName, ...]) -> _Plan:
    return _Plan(layouts, output)


def _contract(
    what: str,
    arrays: Sequence[NamedArrayBase],
    layouts: tuple[Layout, ...],
    output: tuple[AxisName, ...],
    options: dict[str, Any],
) -> NamedArrayBase:
    plan = _plan(layouts, output)
    datas = [
        transposed(as_jax(array.data_array), order)
        for array, order in zip(arrays, plan.orders, strict=True)
    ]
    return plan.result.pack(jnp.einsum(plan.equation, *datas, **options))


def _checked(what: str, arrays: Sequence[NamedArrayBase]) -> tuple[Layout, ...]:
    if not arrays:
        raise ValueError(f"{what}: at least one array is needed.")
    layouts = tuple(require_named(what, array) for array in arrays)
    if ordered_union(layouts) is None:
        raise_size_conflict(what, arrays, {})
    return layouts


def _options(precision: Any, preferred_element_type: Any) -> dict[str, Any]:
    return {"precision": precision, "preferred_element_type": preferred_element_type}


def dot(
    *arrays: NamedArrayBase,
    axis: AxisName | tuple[AxisName, ...] | list[AxisName],
    precision: Any = None,
    preferred_element_type: Any = None,
) -> NamedArrayBase:
    """Multiplies arrays, matched by name, and sums over names.

    Args:
      *arrays: Named arrays. Positional axes broadcast by NumPy's rules.
      axis: The names to sum over, each in at least two of the arrays.
      precision: As for `jnp.einsum`.
      preferred_element_type: The dtype to accumulate in; default JAX's choice.

    Returns:
      An array with all other names, in the order in which the arguments first show them.

    Raises:
      ValueError: When a name has two sizes, or `axis` is not in two of the arrays.
    """
    layouts = _checked("dot", arrays)
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    names = dict.fromkeys(name for layout in layouts for name in layout.names)
    for name in axes:
        holders = sum(name in layout.names for layout in layouts)
        if holders < min(2, len(layouts)):
            shapes = ", ".join(repr(layout.named_shape) for layout in layouts)
            raise ValueError(
                f"dot: axis {name!r} must be in at least two of the arrays; it is in {holders} of "
                f"{shapes}. {near_misses(name, names)} To sum over it in one array use sum."
            )
    output = tuple(name for name in names if name not in axes)
    options = _options(precision, preferred_element_type)
    return _contract("dot", arrays, layouts, output, options)


def einsum(
    equation: str,
    *arrays: NamedArrayBase,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> NamedArrayBase:
    """Multiplies arrays, matched by name, and keeps the names that the equation ends in.

    Args:
      equation: `"batch embed, embed hidden -> batch hidden"`: names separated by spaces, arrays by
        commas, in any order within an array. The left side says what the arrays have and may be
        left out, `"-> batch hidden"`; names that are not on the right are summed over.
      *arrays: Named arrays whose names are strings. Positional axes broadcast by NumPy's rules.
      precision: As for `jnp.einsum`.
      preferred_element_type: The dtype to accumulate in; default JAX's choice.

    Returns:
      An array with exactly the names on the right, in that order.

    Raises:
      ValueError: When the equation and the arrays disagree, or a name has two sizes.

    Example:
        >>> import pz_named as nx
        >>> x, w = nx.ones({"batch": 2, "embed": 3}), nx.ones({"embed": 3, "hidden": 4})
        >>> nx.einsum("batch embed, embed hidden -> hidden batch", x, w).named_shape
        {'hidden': 4, 'batch': 2}
    """
    layouts = _checked("einsum", arrays)
    left, arrow, right = equation.partition("->")
    if not arrow:
        raise ValueError(
            f"einsum: the equation must contain '->' and the names to keep after it; it is "
            f"{equation!r}."
        )
    if left.strip():
        _check_inputs(equation, left.split(","), layouts)
    output = tuple(right.split())
    names = [name for layout in layouts for name in layout.names]
    for index, name in enumerate(output):
        if name not in names or name in output[:index]:
            raise ValueError(
                f"einsum: {name!r} on the right of {equation!r} must be the name of an axis, once. "
                + near_misses(name, dict.fromkeys(names))
            )
    return _contract("einsum", arrays, layouts, output, _options(precision, preferred_element_type))


def _check_inputs(equation: str, terms: list[str], layouts: Sequence[Layout]) -> None:
    if len(terms) != len(layouts):
        raise ValueError(
            f"einsum: {equation!r} describes {len(terms)} arrays, {len(layouts)} were given."
        )
    for index, (term, layout) in enumerate(zip(terms, layouts, strict=True)):
        if sorted(term.split()) != sorted(map(str, layout.names)):
            raise ValueError(
                f"einsum: {equation!r} says that arrays[{index}] has the axes {term.split()!r}; it "
                f"has {list(layout.names)!r}. List each of its names once, or leave out the left "
                "side."
            )
