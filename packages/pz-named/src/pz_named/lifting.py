"""`nmap`: a function of plain arrays becomes a function of named arrays.

The function sees positional axes only and is vectorised over every name of its arguments. In short:

    for name in reversed(names_in_first_seen_order):
        fun = jax.vmap(fun, in_axes=<where name lies>, axis_name=name)

Example:
    >>> import jax.numpy as jnp
    >>> import pz_named as nx
    >>> x = nx.wrap(jnp.ones((2, 3))).tag("batch", "feature")
    >>> nx.nmap(jnp.sum)(x.untag("feature")).named_shape
    {'batch': 2}
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from pz_named._layout import Layout, NamedLeaf, ordered_union
from pz_named._packing import ResultForm, is_named, transposed
from pz_named.axis_names import AxisName, TmpPosAxisMarker

__all__ = ["nmap"]


class _Level(NamedTuple):
    """One vectorised name: its size and where it lies in each operand at that depth."""

    name: AxisName
    size: int
    in_axes: tuple[int | None, ...]


class _Plan(NamedTuple):
    levels: tuple[_Level, ...]
    result: ResultForm
    orders: tuple[tuple[int, ...], ...]  # how to bring what is left into logical order


@functools.lru_cache(maxsize=4096)
def _plan(layouts: tuple[Layout, ...]) -> _Plan | None:
    """How to map over all names of the operands, outermost first; None where sizes disagree."""
    union = ordered_union(layouts)
    if union is None:
        return None
    remaining = [list(range(len(layout.shape))) for layout in layouts]
    levels = []
    for name, size in union.items():
        in_axes: list[int | None] = []
        for axes, layout in zip(remaining, layouts, strict=True):
            if name not in layout.names:
                in_axes.append(None)
                continue
            position = axes.index(layout.name_axes[layout.names.index(name)])
            in_axes.append(position)
            del axes[position]
        levels.append(_Level(name, size, tuple(in_axes)))
    orders = tuple(
        tuple(axes.index(axis) for axis in layout.logical_axes)
        for axes, layout in zip(remaining, layouts, strict=True)
    )
    return _Plan(tuple(levels), ResultForm(union), orders)


def _describe(fun: Callable[..., Any]) -> str:
    return getattr(fun, "__name__", None) or repr(fun)


def raise_size_conflict(what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NoReturn:
    """Raises the error that lists where a name has which size."""
    sizes: dict[AxisName, dict[str, int]] = {}
    shapes = []
    leaves = jax.tree_util.tree_leaves_with_path((list(args), dict(kwargs)), is_leaf=is_named)
    for path, leaf in leaves:
        if not isinstance(leaf, NamedLeaf):
            continue
        where = ("args", "kwargs")[path[0].idx] + jax.tree_util.keystr(path[1:])
        shape = leaf._layout().named_shape
        shapes.append(f"{where}.named_shape={shape!r}")
        for name, size in shape.items():
            sizes.setdefault(name, {})[where] = size
    wrong = {name: found for name, found in sizes.items() if len(set(found.values())) > 1}
    texts = [
        f"axis {name!r} has " + " and ".join(f"size {s} in {w}" for w, s in found.items())
        for name, found in wrong.items()
    ]
    first = next(iter(wrong))
    raise ValueError(
        f"{what}: {'; '.join(texts)}; axes of one name must agree in size. {', '.join(shapes)}. "
        f"Where they mean different things, give one another name first: "
        f".untag({first!r}).tag({str(first) + '_2'!r})."
    )


def _to_array(leaf: Any, what: str, path: str) -> Any:
    """An output leaf of a lifted function as an array; Python scalars stay weakly typed."""
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, NamedLeaf):
        raise TypeError(
            f"nmap({what}): the function must return plain arrays, but its output{path} is a named "
            f"array ({leaf!r}). Names are added by nmap; return .unwrap() of it, or map over single "
            "names with vmap_over."
        )
    if getattr(leaf, "dtype", None) == jax.dtypes.float0:
        return leaf
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError) as exc:
        raise TypeError(
            f"nmap({what}): the function must return arrays or scalars, but its output{path} is "
            f"{leaf!r} of type {type(leaf).__name__}. Return it another way, outside of nmap."
        ) from exc


def _call_lifted(fun: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs), is_leaf=is_named)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, NamedLeaf)]
    plan = _plan(tuple(leaves[i]._layout() for i in where))
    if plan is None:
        raise_size_conflict(f"nmap({_describe(fun)})", args, kwargs)
    structure: Any = None

    def on_slices(*slices: Any) -> list[Any]:
        nonlocal structure
        filled = list(leaves)
        for i, data, order in zip(where, slices, plan.orders, strict=True):
            filled[i] = transposed(data, order)
        inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, filled)
        result = fun(*inner_args, **inner_kwargs)
        outputs, structure = jax.tree_util.tree_flatten(result, is_leaf=is_named)
        if all(isinstance(o, jax.Array) for o in outputs):
            return outputs
        paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_named)]
        return [
            _to_array(o, _describe(fun), jax.tree_util.keystr(p))
            for o, p in zip(outputs, paths, strict=True)
        ]

    call: Callable[..., Any] = on_slices
    for level in reversed(plan.levels):
        # Markers stay anonymous: a fresh object as axis name would enter JAX's trace cache keys.
        name = None if isinstance(level.name, TmpPosAxisMarker) else level.name
        call = jax.vmap(call, level.in_axes, 0, axis_name=name, axis_size=level.size)
    datas = [leaves[i].data_array for i in where]
    outputs = call(*datas)
    return jax.tree_util.tree_unflatten(structure, [plan.result.pack(output) for output in outputs])


def nmap(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts a function of plain arrays to named arrays.

    Args:
      fun: Any callable. Each named array among its arguments (also inside containers) reaches it
        as a plain array with only the positional axes; everything else reaches it unchanged.
        Inside it each name is a JAX axis name, so `jax.lax.psum(value, "batch")` works.

    Returns:
      A function of the same signature. Names of equal spelling are matched, the others are
      broadcast; each output leaf has all names, in the order in which the arguments first show
      them, and then the positional axes that `fun` returned.

    Raises:
      ValueError: When the lifted function is called with one name in two sizes.
      TypeError: When `fun` returns a named array or something that is no array.

    Example:
        >>> import jax.numpy as jnp
        >>> import pz_named as nx
        >>> query = nx.ones({"token": 4, "head": 2, "feature": 3})
        >>> key = nx.ones({"head": 2, "feature": 3})
        >>> nx.nmap(jnp.dot)(query.untag("feature"), key.untag("feature")).named_shape
        {'token': 4, 'head': 2}
    """

    @functools.wraps(fun)
    def lifted(*args: Any, **kwargs: Any) -> Any:
        return _call_lifted(fun, args, kwargs)

    original = getattr(fun, "__doc__", None)
    lifted.__doc__ = (
        f"`{_describe(fun)}` lifted to named arrays: vectorised over every name of its arguments."
    ) + (f"\n\nOriginal documentation:\n\n{original}" if isinstance(original, str) else "")
    return lifted
