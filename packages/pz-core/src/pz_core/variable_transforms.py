"""JAX's transforms for functions whose arguments hold variables.

    variable_jit        jax.jit                (defined in `pz_core.variables`)
    variable_grad       jax.grad               variable_value_and_grad    jax.value_and_grad
    variable_vmap       jax.vmap               variable_scan              jax.lax.scan
    variable_remat      jax.checkpoint         variable_cond              jax.lax.cond

All work by one mechanism: variables are taken out of the arguments, the function runs on temporary
ones, and what those hold afterwards is stored in the caller's. The rules for what may cross:

* Variables cross as arguments, anywhere in them. One that occurs twice is one variable.
* A variable that is closed over is an error that names its label (`ClosedOverVariableError`).
* Variables that are made inside may be used inside.
* Results hold no variables, except the carry of `variable_scan`, which may hold the ones that came
  in with it. Slots and frozen values may be returned.
* Values may change; labels and metadata may not. If the function fails, no variable has changed.

>>> from pz_core.variables import Parameter, StateVariable
>>> model = {"w": Parameter(label="w", value=3.0), "calls": StateVariable(0, label="calls")}
>>> def loss(model, x):
...     model["calls"].value += 1
...     return (model["w"].value * x) ** 2
>>> gradient = variable_grad(loss)(model, 2.0)
>>> float(gradient["w"].value), int(model["calls"].value)
(24.0, 1)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_core._variable_lifting import (
    UNCHANGED,
    changed_only,
    check_without_variables,
    function_name,
    run_on_temporaries,
    write_back,
)
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue
from pz_core.variable_binding import VariablePredicate, bind_variables, unbind_variables
from pz_core.variables import Parameter
from pz_core.variables import variable_jit as variable_jit

__all__ = [
    "variable_cond",
    "variable_grad",
    "variable_jit",
    "variable_remat",
    "variable_scan",
    "variable_value_and_grad",
    "variable_vmap",
]


def _freeze_all(variables: Sequence[AbstractVariable]) -> list[AbstractVariableValue]:
    return [variable.freeze() for variable in variables]


def _run_call(
    transform: str,
    fun: Callable[..., Any],
    values: Sequence[AbstractVariableValue],
    slot_call: tuple[Any, Any],
) -> tuple[Any, list[Any]]:
    """Runs `fun` on arguments with slots; its result must hold no variable."""

    def body(temporaries: Sequence[AbstractVariable]) -> Any:
        args, kwargs = bind_variables(slot_call, temporaries, allow_unused=True)
        return fun(*args, **kwargs)

    name = function_name(fun)
    result, after = run_on_temporaries(transform, name, values, body)
    check_without_variables(transform, name, result)
    return result, after


def _is_inexact(leaf: Any) -> bool:
    if isinstance(leaf, bool | int):
        return False
    return isinstance(leaf, float | complex) or (
        hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
    )


def _is_parameter(variable: Any) -> bool:
    return isinstance(variable, Parameter)


def variable_value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    wrt: VariablePredicate = _is_parameter,
) -> Callable[..., Any]:
    """Returns a function that computes a value and its gradient.

    Args:
      fun: Returns a scalar, or a scalar and something else if `has_aux`.
      argnums: Which positional arguments to differentiate with respect to.
      has_aux: Whether `fun` returns a pair.
      wrt: Which variables in those arguments to differentiate with respect to; by default
        parameters. Floating-point arrays that are no variables are always differentiated.

    Returns:
      A function of the same arguments that returns `(value, gradient)`, or
      `((value, aux), gradient)`. The gradient of an argument is the argument with frozen values that
      hold gradients in place of the variables, slots in place of the other variables, and None in
      place of what is no floating-point array. The gradient of a variable counts all its uses.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not all(-len(args) <= n < len(args) for n in numbers):
            raise ValueError(
                f"variable_grad of {function_name(fun)!r}: argnums={argnums!r}, but it was called "
                f"with {len(args)} positional arguments. Pass the arguments to differentiate by "
                f"position."
            )
        slot_call, variables = unbind_variables((args, kwargs))
        values = _freeze_all(variables)
        _, inside = unbind_variables([args[n] for n in numbers], wrt)
        chosen = [i for i, variable in enumerate(variables) if any(v is variable for v in inside)]
        subject = ([values[i] for i in chosen], [slot_call[0][n] for n in numbers])
        leaves, treedef = jax.tree_util.tree_flatten(subject)
        places = [i for i, leaf in enumerate(leaves) if _is_inexact(leaf)]

        def pure(inexact: list[Any]) -> Any:
            all_leaves = list(leaves)
            for i, leaf in zip(places, inexact, strict=True):
                all_leaves[i] = leaf
            new_values, new_args = jax.tree_util.tree_unflatten(treedef, all_leaves)
            full_values, full_args = list(values), list(slot_call[0])
            for i, value in zip(chosen, new_values, strict=True):
                full_values[i] = value
            for n, arg in zip(numbers, new_args, strict=True):
                full_args[n] = arg
            result, after = _run_call(
                "variable_grad", fun, full_values, (tuple(full_args), slot_call[1])
            )
            value, aux = result if has_aux else (result, None)
            return value, (aux, changed_only(full_values, after))

        (value, (aux, after)), inexact_grads = jax.value_and_grad(pure, has_aux=True)(
            [leaves[i] for i in places]
        )
        write_back(variables, after)
        grads: list[Any] = [None] * len(leaves)
        for i, grad in zip(places, inexact_grads, strict=True):
            grads[i] = grad
        value_grads, arg_grads = jax.tree_util.tree_unflatten(treedef, grads)
        bound = bind_variables(arg_grads, value_grads, allow_unused=True)
        gradient = bound[0] if isinstance(argnums, int) else tuple(bound)
        return ((value, aux) if has_aux else value), gradient

    return wrapper


def variable_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    wrt: VariablePredicate = _is_parameter,
) -> Callable[..., Any]:
    """Returns a function that computes a gradient; see `variable_value_and_grad`.

    Returns:
      A function that returns `gradient`, or `(gradient, aux)`, as `jax.grad`'s result does.
    """
    value_and_grad = variable_value_and_grad(fun, argnums, has_aux, wrt=wrt)

    @functools.wraps(fun, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, gradient = value_and_grad(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapper


def variable_remat(
    fun: Callable[..., Any], *, prevent_cse: bool = True, policy: Callable[..., bool] | None = None
) -> Callable[..., Any]:
    """Returns a function whose intermediate values are computed again for the backward pass.

    Args:
      fun: Any function; it may assign variables among its arguments.
      prevent_cse: As for `jax.checkpoint`.
      policy: As for `jax.checkpoint`.

    Returns:
      A function with the same results.
    """

    @functools.wraps(fun, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        slot_call, variables = unbind_variables((args, kwargs))

        def pure(values: list[Any], call: tuple[Any, Any]) -> Any:
            result, after = _run_call("variable_remat", fun, values, call)
            return result, changed_only(values, after)

        result, after = jax.checkpoint(pure, prevent_cse=prevent_cse, policy=policy)(
            _freeze_all(variables), slot_call
        )
        write_back(variables, after)
        return result

    return wrapper


def _axis_of_leaves(in_axes: Any, args: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Returns each leaf of the arguments with its axis; `in_axes` is a prefix of the arguments."""
    axes = in_axes if isinstance(in_axes, list | tuple) else (in_axes,) * len(args)
    if len(axes) != len(args):
        raise ValueError(
            f"variable_vmap: in_axes has {len(axes)} entries for {len(args)} positional arguments. "
            f"Give one axis, or one entry for each argument."
        )
    found: list[tuple[Any, Any]] = []

    def note(axis: Any, below: Any) -> None:
        found.extend((leaf, axis) for leaf in jax.tree.leaves(below))

    jax.tree.map(note, tuple(axes), args, is_leaf=lambda x: x is None)
    return found


def variable_vmap(
    fun: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Any = None,
    axis_size: int | None = None,
) -> Callable[..., Any]:
    """Returns a function that is mapped over an axis of its arguments.

    A variable in an argument is mapped like the argument: over the axis that `in_axes` gives, and
    it holds the stacked values afterwards. Where `in_axes` is None the variable is shared; it may
    then be read, and assigned only what is the same for all.

    Args:
      fun: The function of one example.
      in_axes: As for `jax.vmap`; variables count as leaves. Keyword arguments are mapped over 0.
      out_axes: As for `jax.vmap`.
      axis_name: As for `jax.vmap`.
      axis_size: As for `jax.vmap`.

    Returns:
      The mapped function.
    """

    @functools.wraps(fun, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        slot_call, variables = unbind_variables((args, kwargs))
        axis_by_id: dict[int, Any] = {}
        for leaf, axis in [*_axis_of_leaves(in_axes, args), *_axis_of_leaves(0, (kwargs,))]:
            if isinstance(leaf, AbstractVariable):
                if axis_by_id.setdefault(id(leaf), axis) != axis:
                    raise ValueError(
                        f"variable_vmap of {function_name(fun)!r}: {leaf.get_slot()!r} occurs in "
                        f"arguments with the axes {axis_by_id[id(leaf)]!r} and {axis!r}. Give both "
                        f"the same entry in in_axes."
                    )
        axes = [axis_by_id[id(variable)] for variable in variables]
        assigned: list[Any] = []

        def pure(values: list[Any], slot_args: Any, slot_kwargs: Any) -> Any:
            result, after = _run_call("variable_vmap", fun, values, (slot_args, slot_kwargs))
            changed = changed_only(values, after)
            assigned[:] = [
                old.get_slot()
                for old, new, axis in zip(values, changed, axes, strict=True)
                if axis is None and new is not UNCHANGED
            ]
            return result, changed

        mapped = jax.vmap(
            pure,
            in_axes=(axes, tuple(in_axes) if isinstance(in_axes, list) else in_axes, 0),
            out_axes=(out_axes, axes),
            axis_name=axis_name,
            axis_size=axis_size,
        )
        try:
            result, after = mapped(_freeze_all(variables), *slot_call)
        except ValueError as exc:
            if not assigned or "out_axes" not in str(exc):
                raise
            raise ValueError(
                f"variable_vmap of {function_name(fun)!r}: a shared variable (one with None in "
                f"in_axes) was assigned a value that differs between the mapped examples; assigned "
                f"were {assigned!r}. Give the variable an axis in in_axes, or reduce over the "
                f"examples with axis_name and `jax.lax.psum`."
            ) from exc
        write_back(variables, after)
        return result

    return wrapper


def variable_scan(
    fun: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[Any, Any]:
    """Runs `jax.lax.scan` with variables in the carry or among the scanned inputs.

    A variable in `init` is carried: each step sees what the one before left in it. A variable in
    `xs` is sliced along the first axis of its value like any input, and holds the stacked values of
    all steps afterwards.

    Args:
      fun: Takes the carry and a slice of `xs`, returns the new carry and an output. The variables
        of the carry may stand in the new carry, in any place where `init` has them.
      init: The first carry.
      xs: What is scanned over; leaves have the steps as first axis.
      length: Number of steps, where `xs` is None.
      reverse: As for `jax.lax.scan`.
      unroll: As for `jax.lax.scan`.

    Returns:
      The last carry, which holds the caller's own variables, and the stacked outputs.

    Raises:
      ValueError: If the new carry holds a variable that did not come in with the carry.

    >>> from pz_core.variables import StateVariable
    >>> total = StateVariable(0.0)
    >>> def step(carry, x):
    ...     carry.value += x
    ...     return carry, carry.value
    >>> last, sums = variable_scan(step, total, jax.numpy.arange(4.0))
    >>> last is total, float(total.value), sums.tolist()
    (True, 6.0, [0.0, 1.0, 3.0, 6.0])
    """
    name = function_name(fun)
    unbind_variables((init, xs))  # a variable in both would be carried and sliced: a conflict
    slot_init, carried = unbind_variables(init)
    slot_xs, sliced = unbind_variables(xs)
    both = {id(variable) for variable in carried} & {id(variable) for variable in sliced}
    if both:
        twice = next(variable for variable in carried if id(variable) in both)
        raise ValueError(
            f"variable_scan of {name!r}: {twice.get_slot()!r} occurs in init and in xs. Carry it "
            f"or slice it, not both."
        )

    def step(carry: Any, x: Any) -> Any:
        (slot_carry, carried_values), (slot_x, sliced_values) = carry, x
        count = len(carried_values)

        def body(temporaries: Sequence[AbstractVariable]) -> Any:
            arguments = bind_variables((slot_carry, slot_x), temporaries, allow_unused=True)
            new_carry, y = fun(*arguments)
            slot_new_carry, in_carry = unbind_variables(new_carry)
            _check_carry(name, in_carry, temporaries[:count])
            check_without_variables("variable_scan", name, y)
            return slot_new_carry, y

        (new_carry, y), after = run_on_temporaries(
            "variable_scan", name, [*carried_values, *sliced_values], body
        )
        return (new_carry, after[:count]), (y, after[count:])

    (last, carried_after), (ys, sliced_after) = jax.lax.scan(
        step,
        (slot_init, _freeze_all(carried)),
        (slot_xs, _freeze_all(sliced)),
        length=length,
        reverse=reverse,
        unroll=unroll,
    )
    write_back(carried, carried_after)
    write_back(sliced, sliced_after)
    return bind_variables(last, carried, allow_unused=True), ys


def _check_carry(
    name: str, found: Sequence[AbstractVariable], allowed: Sequence[AbstractVariable]
) -> None:
    for variable in found:
        if not any(variable is known for known in allowed):
            raise ValueError(
                f"variable_scan of {name!r}: the new carry holds {variable.get_slot()!r}, a "
                f"variable that did not come in with the carry. Return the carry's own variables, "
                f"or arrays and frozen values."
            )


def variable_cond(
    pred: Any,
    true_fun: Callable[..., Any],
    false_fun: Callable[..., Any],
    *operands: Any,
) -> Any:
    """Runs `jax.lax.cond` on operands that hold variables.

    Args:
      pred: A boolean scalar.
      true_fun: Called with the operands if `pred` is true; may assign variables among them.
      false_fun: Called otherwise.
      *operands: Any trees.

    Returns:
      What the branch returns. Both must return the same structure, and leave values of the same
      structure, shape and dtype in every variable.
    """
    slot_call, variables = unbind_variables((operands, {}))

    def branch(fun: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values, call: _run_call("variable_cond", fun, values, call)

    result, after = jax.lax.cond(
        pred, branch(true_fun), branch(false_fun), _freeze_all(variables), slot_call
    )
    write_back(variables, after)
    return result
