"""Loops over a named axis.

Example:
    >>> import pz_named as nx
    >>> x = nx.arange("step", 4)
    >>> total, sums = nx.scan(lambda c, v: (c + v, c + v), "step", nx.wrap(0), x)
    >>> sums.unwrap("step").tolist()
    [0, 1, 3, 6]
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax

from pz_named._layout import near_misses
from pz_named.arrays import NamedArrayBase, is_namedarray, wrap
from pz_named.axis_names import AxisName

__all__ = ["order_like", "scan"]


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


# JAX caches the trace of a scan by its body function, so each user function keeps one body while
# it lives; a new one per call would compile every eager scan again.
_bodies: weakref.WeakKeyDictionary[Any, dict[AxisName, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)


def _body_for(f: Callable[..., Any], axis: AxisName) -> Callable[..., Any]:
    try:
        bodies = _bodies.setdefault(f, {})
        reference: Callable[[], Any] = weakref.ref(f)
    except TypeError:  # neither hashable nor weakly referable: no cache then
        return _make_body(lambda: f, axis)
    if axis not in bodies:
        bodies[axis] = _make_body(reference, axis)
    return bodies[axis]


def _make_body(reference: Callable[[], Any], axis: AxisName) -> Callable[..., Any]:
    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        new_carry, ys = reference()(carry, xs)
        return order_like(new_carry, carry), jax.tree_util.tree_map(
            lambda y: _output(y, axis), ys, is_leaf=is_namedarray
        )

    return body


def _output(y: Any, axis: AxisName) -> Any:
    if not is_namedarray(y):
        return wrap(y)
    if axis in y.named_shape:
        raise ValueError(
            f"scan: an output of the function has the scanned axis {axis!r} itself; named_shape="
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
    for path, leaf in jax.tree_util.tree_leaves_with_path(xs, is_leaf=is_namedarray):
        where = "xs" + jax.tree_util.keystr(path)
        if not is_namedarray(leaf):
            raise ValueError(
                f"scan: every leaf of xs must be a named array; {where} is {type(leaf).__name__}. "
                "Wrap it and tag its axes."
            )
        if axis not in leaf.named_shape:
            raise ValueError(
                f"scan: {where} has no axis {axis!r}; named_shape={leaf.named_shape!r}. "
                + near_misses(axis, leaf.named_shape)
            )

    def leading(leaf: NamedArrayBase) -> Any:
        return leaf.untag_prefix(axis).with_positional_prefix()

    xs = jax.tree_util.tree_map(leading, xs, is_leaf=is_namedarray)
    carry, ys = jax.lax.scan(_body_for(f, axis), init, xs, **scan_kwargs)
    ys = jax.tree_util.tree_map(lambda y: y.tag_prefix(axis), ys, is_leaf=is_namedarray)
    return carry, ys
