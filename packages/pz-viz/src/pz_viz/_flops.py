"""Floating-point operations per block, from XLA's analysis of each block compiled by itself.

The model is traced once with recorders around its blocks, which tells the shapes that reach each of
them. Nothing is run: tracing is abstract, and the blocks are compiled, not called.

XLA counts a loop's body once. Where the number of turns is known, as in a stack of layers, the body
is compiled by itself and counted for the turns that XLA left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core

from pz_core.selectors import select
from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import bind_variables, unbind_variables

__all__ = ["Operations", "flops_by_keypath"]


@dataclasses.dataclass(frozen=True)
class Operations:
    """Floating-point operations.

    Attributes:
      count: How many.
      is_lower_bound: Whether there is a loop among them whose turns are known only when it runs;
        one turn is counted.
    """

    count: float
    is_lower_bound: bool = False


@pytree_dataclass
class _Recorder(Struct):
    """Calls what it wraps, and tells what it was called with.

    Attributes:
      wrapped: A callable block.
      tell: Called with the block, the arguments and the keyword arguments.
    """

    wrapped: Any
    tell: Callable[..., None] = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.tell(self.wrapped, args, kwargs)
        return self.wrapped(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A block and its arguments, in abstract form.

    Attributes:
      leaves: The leaves; arrays are `ShapeDtypeStruct`s.
      treedef: Gives `(block with slots, frozen variables, args, kwargs)`.
    """

    leaves: tuple[Any, ...]
    treedef: Any

    def is_array(self, i: int) -> bool:
        """Whether a leaf is an array, and so an argument of the compiled function."""
        return isinstance(self.leaves[i], jax.ShapeDtypeStruct)


def _abstract(leaf: Any) -> Any:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # type: ignore[no-untyped-call]
    return leaf


def _recorded_call(block: Any, args: Any, kwargs: Any) -> _Call:
    # One unbinding for all: a variable of the block may be among the arguments too.
    (slots, args, kwargs), variables = unbind_variables((block, args, kwargs), freeze=True)
    leaves, treedef = jax.tree_util.tree_flatten((slots, variables, args, kwargs))
    return _Call(tuple(map(_abstract, leaves)), treedef)


def _runnable(call: _Call) -> tuple[Callable[[Sequence[Any]], Any], list[Any]]:
    """A function of the call's arrays that makes the call, and their abstract values."""
    arrays = [i for i in range(len(call.leaves)) if call.is_array(i)]

    def run(values: Sequence[Any]) -> Any:
        leaves = list(call.leaves)
        for i, value in zip(arrays, values, strict=True):
            leaves[i] = value
        slots, variables, args, kwargs = jax.tree_util.tree_unflatten(call.treedef, leaves)
        block, args, kwargs = bind_variables(
            (slots, args, kwargs), variables, unfreeze_as_copy=True
        )
        return unbind_variables(block(*args, **kwargs), freeze=True)[0]

    return run, [call.leaves[i] for i in arrays]


def _subjaxprs(params: Mapping[str, Any]) -> Iterator[jax_core.Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, jax_core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, jax_core.Jaxpr):
                yield part


def _outermost_loops(jaxpr: jax_core.Jaxpr) -> Iterator[jax_core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("scan", "while"):
            yield equation
        else:
            for inner in _subjaxprs(equation.params):
                yield from _outermost_loops(inner)


def _as_xla_counts(traced: Any) -> float | None:
    """Operations with one turn of each loop; None where the compiler does not tell."""
    analysis = traced.lower().compile().cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    return None if not analysis or "flops" not in analysis else float(analysis["flops"])


def _with_all_turns(traced: Any, once: float) -> Operations:
    """Operations with every turn of every loop.

    Args:
      traced: A traced function.
      once: What `_as_xla_counts` says of it.
    """
    total, is_lower_bound = once, False
    for loop in _outermost_loops(traced.jaxpr.jaxpr):
        if loop.primitive.name == "while":
            is_lower_bound = True
            continue
        length, unroll, body = (loop.params[name] for name in ("length", "unroll", "jaxpr"))
        inputs = [_abstract(aval) for aval in body.in_avals]
        turn = jax.jit(jax_core.jaxpr_as_fun(body)).trace(*inputs)
        turn_once = _as_xla_counts(turn) or 0.0
        whole_turn = _with_all_turns(turn, turn_once)
        counted = min(length, int(unroll) + length % max(int(unroll), 1))
        total += length * whole_turn.count - counted * turn_once
        is_lower_bound |= whole_turn.is_lower_bound
    return Operations(total, is_lower_bound)


def _operations(call: _Call, known: dict[str, Operations | None]) -> Operations | None:
    """Operations of one call; None where the compiler does not tell.

    Args:
      call: A block and its arguments.
      known: What has been counted, by program: equal blocks are compiled once. Filled in here.
    """
    run, arrays = _runnable(call)
    traced = jax.jit(run).trace(arrays)
    program = str(traced.jaxpr)
    if program not in known:
        once = _as_xla_counts(traced)
        known[program] = None if once is None else _with_all_turns(traced, once)
    return known[program]


def flops_by_keypath(
    model: Any,
    keypaths: Sequence[tuple[Any, ...]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[tuple[Any, ...], Operations | None]:
    """Operations of one call of each block, and of the model under the empty path.

    Args:
      model: A callable model whose variables are bound or frozen.
      keypaths: Where the blocks are; those that are not callable, or never called, are left out.
      args: Arguments of the model: arrays or `ShapeDtypeStruct`s.
      kwargs: Keyword arguments.

    Returns:
      Operations by key path.
    """
    calls: dict[tuple[Any, ...], _Call] = {}

    def recorder(keypath: tuple[Any, ...], block: Any) -> Any:
        def tell(wrapped: Any, block_args: Any, block_kwargs: Any) -> None:
            calls.setdefault(keypath, _recorded_call(wrapped, block_args, block_kwargs))

        return _Recorder(block, tell) if callable(block) else block

    inner = [path for path in keypaths if path]
    leading = [p for p in inner if not any(q != p and q[: len(p)] == p for q in inner)]
    watched = select(model).at_keypaths(leading).apply(recorder, with_keypath=True)
    run, arrays = _runnable(_recorded_call(watched, args, kwargs))
    jax.eval_shape(run, arrays)  # for what the recorders tell
    calls[()] = _recorded_call(model, args, kwargs)
    known: dict[str, Operations | None] = {}
    return {keypath: _operations(call, known) for keypath, call in calls.items()}
