"""Loops over a named axis.

Example:
    >>> import pz_named as nx
    >>> x = nx.arange("step", 4)
    >>> total, sums = nx.scan(lambda c, v: (c + v, c + v), "step", nx.wrap(0), x)
    >>> sums.unwrap("step").tolist()
    [0, 1, 3, 6]
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

from pz_named._layout import near_misses
from pz_named.arrays import is_namedarray, wrap
from pz_named.axis_names import AxisName, TmpPosAxisMarker
from pz_named.lifting import raise_size_conflict

__all__ = ["associative_scan", "map", "order_like", "scan", "vmap_over"]


def order_like(value_tree: Any, reference_tree: Any) -> Any:
    """Gives the named arrays of a tree the structure of those in another.

    Args:
      value_tree: Any tree; leaves that are no named arrays pass through.
      reference_tree: A tree of the same containers.

    Returns:
      `value_tree` with each named array ordered like its partner (`NamedArrayBase.order_like`).

    Raises:
      ValueError: When containers or names differ.
    """

    def fix(value: Any, reference: Any) -> Any:
        return value.order_like(reference) if is_namedarray(value) else value

    return jax.tree_util.tree_map(fix, value_tree, reference_tree, is_leaf=is_namedarray)


# JAX caches the trace of a loop by its body function, so each user function keeps one body per kind
# of loop while it lives; a new one per call would compile every eager loop again.
_bodies: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def _body_for(
    make: Callable[[Callable[[], Any], AxisName], Callable[..., Any]],
    f: Callable[..., Any],
    axis: AxisName,
) -> Callable[..., Any]:
    try:
        bodies = _bodies.setdefault(f, {})
        reference: Callable[[], Any] = weakref.ref(f)
    except TypeError:  # neither hashable nor weakly referable: no cache then
        return make(lambda: f, axis)
    if (make, axis) not in bodies:
        bodies[make, axis] = make(reference, axis)
    return bodies[make, axis]


def _scan_body(reference: Callable[[], Any], axis: AxisName) -> Callable[..., Any]:
    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        new_carry, ys = reference()(carry, xs)
        return order_like(new_carry, carry), _outputs("scan", ys, axis)

    return body


def _map_body(reference: Callable[[], Any], axis: AxisName) -> Callable[..., Any]:
    return lambda _, slices: (None, _outputs("map", reference()(slices), axis))


def _outputs(what: str, ys: Any, axis: AxisName) -> Any:
    """The outputs of a loop's body as named arrays with positional axes first."""
    return jax.tree_util.tree_map(lambda y: _output(what, y, axis), ys, is_leaf=is_namedarray)


def _output(what: str, y: Any, axis: AxisName) -> Any:
    if not is_namedarray(y):
        return wrap(y)
    if axis in y.named_shape:
        raise ValueError(
            f"{what}: an output of the function has the axis {axis!r} itself; named_shape="
            f"{y.named_shape!r}. Give that axis another name."
        )
    return y.with_positional_prefix()


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    axis: AxisName,
    init: Any,
    xs: Any = None,
    **scan_kwargs: Any,
) -> tuple[Any, Any]:
    """`jax.lax.scan` along a named axis.

    Args:
      f: `f(carry, x) -> (carry, y)`, where `x` is `xs` without `axis`.
      axis: The name to loop over.
      init: The first carry, any tree.
      xs: A tree of named arrays that all have `axis`; None needs `length=`.
      **scan_kwargs: `reverse`, `unroll`, `length`, as for `jax.lax.scan`.

    Returns:
      The last carry, and the outputs with `axis` as their first data axis. Array outputs come back
      named, their own axes positional.

    Raises:
      ValueError: When a leaf of `xs` is not named or lacks `axis`, or an output has it.
    """
    leading = _axis_leading("scan", xs, axis)
    carry, ys = jax.lax.scan(_body_for(_scan_body, f, axis), init, leading, **scan_kwargs)
    return carry, _axis_named(ys, axis)


def _axis_leading(what: str, xs: Any, axis: AxisName) -> Any:
    """The tree with `axis` as the first data axis of every leaf, unnamed.

    Raises:
      ValueError: When a leaf is not named, or lacks the axis.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(xs, is_leaf=is_namedarray):
        where = "xs" + jax.tree_util.keystr(path)
        if not is_namedarray(leaf):
            raise ValueError(
                f"{what}: every leaf of xs must be a named array; {where} is {type(leaf).__name__}. "
                "Wrap it and tag its axes."
            )
        if axis not in leaf.named_shape:
            raise ValueError(
                f"{what}: {where} has no axis {axis!r}; named_shape={leaf.named_shape!r}. "
                + near_misses(axis, leaf.named_shape)
            )
    return jax.tree_util.tree_map(
        lambda leaf: leaf.untag_prefix(axis).with_positional_prefix(), xs, is_leaf=is_namedarray
    )


def _axis_named(ys: Any, axis: AxisName) -> Any:
    """The tree with the first positional axis of every leaf named."""
    return jax.tree_util.tree_map(lambda y: y.tag_prefix(axis), ys, is_leaf=is_namedarray)


def associative_scan(
    f: Callable[[Any, Any], Any], axis: AxisName, xs: Any, *, reverse: bool = False
) -> Any:
    """`jax.lax.associative_scan` along a named axis: all running combinations, in parallel.

    Args:
      f: An associative function of two trees like `xs` without `axis`.
      axis: The name.
      xs: A tree of named arrays that all have `axis`.
      reverse: Whether to begin at the end.

    Returns:
      A tree like `xs`, with `axis` as first data axis.

    Raises:
      ValueError: When a leaf of `xs` is not named or lacks `axis`, or `f` changes names.

    Example:
        >>> import pz_named as nx
        >>> x = nx.arange("step", 1, 5)
        >>> nx.associative_scan(lambda a, b: a * b, "step", x).unwrap("step").tolist()
        [1, 2, 6, 24]
    """

    def combine(a: Any, b: Any) -> Any:
        return order_like(f(a, b), a)

    leading = _axis_leading("associative_scan", xs, axis)
    combined = jax.lax.associative_scan(jax.vmap(combine), leading, reverse=reverse, axis=0)
    return _axis_named(combined, axis)


def map(f: Callable[[Any], Any], axis: AxisName, xs: Any, *, batch_size: int | None = None) -> Any:
    """Applies a function to each slice along a name, one after the other or in chunks.

    It computes what `vmap_over` does, in less memory.

    Args:
      f: A function of `xs` without `axis`.
      axis: The name.
      xs: A tree of named arrays that all have `axis`.
      batch_size: How many slices are computed together; default one. It need not divide the size.

    Returns:
      The outputs of `f`, with `axis` as first data axis.

    Raises:
      ValueError: When a leaf of `xs` is not named or lacks `axis`, or an output has it.

    Example:
        >>> import pz_named as nx
        >>> nx.map(lambda v: v * 2, "row", nx.arange("row", 3), batch_size=2).unwrap("row").tolist()
        [0, 2, 4]
    """

    leading = _axis_leading("map", xs, axis)
    # jax.lax.map would compile again at each eager call, and fails to divide arrays of no elements.
    if batch_size is None or any(leaf.size == 0 for leaf in jax.tree.leaves(leading)):
        _, ys = jax.lax.scan(_body_for(_map_body, f, axis), None, leading)
        return _axis_named(ys, axis)
    ys = jax.lax.map(lambda v: _outputs("map", f(v), axis), leading, batch_size=batch_size)
    return _axis_named(ys, axis)


def vmap_over(
    axis: AxisName, *, spmd_axis_name: Any = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Vectorises a function of named arrays over one name; it sees all other names.

    Args:
      axis: The name to hide. Arguments without it are given whole to each slice. Inside, it is a
        JAX axis name, so that collectives can address it.
      spmd_axis_name: As for `jax.vmap`.

    Returns:
      A decorator. Outputs of the decorated function have `axis` as first data axis; plain arrays
      come back named.

    Raises:
      ValueError: When the decorated function is called without any array that has `axis`, with
        sizes that differ, or when an output has `axis`.

    Example:
        >>> import pz_named as nx
        >>> x = nx.ones({"batch": 2, "feature": 3})
        >>> nx.vmap_over("batch")(lambda v: v / v.sum("feature"))(x).named_shape
        {'batch': 2, 'feature': 3}
    """

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fun)
        def mapped(*args: Any, **kwargs: Any) -> Any:
            leaves, treedef = jax.tree_util.tree_flatten((args, kwargs), is_leaf=is_namedarray)
            where = [i for i, x in enumerate(leaves) if is_namedarray(x) and axis in x.named_shape]
            if not where:
                raise ValueError(
                    f"vmap_over({axis!r}): no argument has this axis; their named shapes are "
                    f"{[x.named_shape for x in leaves if is_namedarray(x)]!r}."
                )
            sizes = {leaves[i].named_shape[axis] for i in where}
            if len(sizes) > 1:
                raise_size_conflict(f"vmap_over({axis!r})", [leaves[i] for i in where], {})

            def on_slices(slices: list[Any]) -> Any:
                filled = list(leaves)
                for i, value in zip(where, slices, strict=True):
                    filled[i] = value
                inner_args, inner_kwargs = jax.tree_util.tree_unflatten(treedef, filled)
                return _outputs("vmap_over", fun(*inner_args, **inner_kwargs), axis)

            name = None if isinstance(axis, TmpPosAxisMarker) else axis
            vectorised = jax.vmap(on_slices, axis_name=name, spmd_axis_name=spmd_axis_name)
            leading = _axis_leading("vmap_over", [leaves[i] for i in where], axis)
            return _axis_named(vectorised(leading), axis)

        return mapped

    return decorate
