"""Running a function on temporary variables: the mechanism behind every variable transform.

A function that mutates its variables becomes a pure one in three steps:

    temporaries = [value.unfreeze_as_copy() for value in values]   # 1. fresh variables ...
    result = fun(*bind_variables(args, temporaries))               # 2. ... in place of the caller's
    return result, [t.freeze() for t in temporaries]               # 3. what they hold afterwards

A JAX transform is applied to that pure function, and what step 3 returns is stored in the caller's
variables.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pz_core._variable_scope import trace_scope
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue

__all__ = [
    "UNCHANGED",
    "Unchanged",
    "changed_only",
    "check_without_variables",
    "function_name",
    "run_on_temporaries",
    "write_back",
]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Unchanged:
    """Stands for the new value of a variable that the function did not assign."""


UNCHANGED = Unchanged()


def run_on_temporaries(
    transform: str,
    name: str,
    values: Sequence[AbstractVariableValue],
    body: Callable[[Sequence[AbstractVariable]], Any],
) -> tuple[Any, list[Any]]:
    """Runs a function on fresh variables.

    Args:
      transform: The transform's name, for errors.
      name: The function's name, for errors.
      values: What the variables hold at first.
      body: Takes the variables; it may use no others.

    Returns:
      What `body` returns, and what the variables hold afterwards.

    Raises:
      ValueError: If the label or metadata of a variable was changed.
    """
    with trace_scope(transform, name):
        temporaries = [value.unfreeze_as_copy() for value in values]
        result = body(temporaries)
        after: list[Any] = [temporary.freeze() for temporary in temporaries]
    _check_same_identity(transform, name, values, after)
    return result, after


def changed_only(
    before: Sequence[AbstractVariableValue], after: Sequence[AbstractVariableValue]
) -> list[Any]:
    """Replaces values that hold the very same arrays as before by `UNCHANGED`."""
    return [
        new if _is_changed(old, new) else UNCHANGED for old, new in zip(before, after, strict=True)
    ]


def _is_changed(old: AbstractVariableValue, new: AbstractVariableValue) -> bool:
    old_leaves, old_treedef = jax.tree_util.tree_flatten(old)
    new_leaves, new_treedef = jax.tree_util.tree_flatten(new)
    return bool(old_treedef != new_treedef) or any(  # type: ignore[operator]
        a is not b for a, b in zip(old_leaves, new_leaves, strict=True)
    )


def write_back(variables: Sequence[AbstractVariable], values: Sequence[Any]) -> None:
    """Stores new values in the caller's variables: in all of them, or in none.

    Raises:
      ValueError: If the label of one was changed while the function ran.
    """
    changed = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if not isinstance(value, Unchanged)
    ]
    for variable, value in changed:
        if variable.get_slot() != value.get_slot():
            raise ValueError(
                f"The variable {value.get_slot()!r} became {variable.get_slot()!r} while a function "
                f"ran that has it as an argument, so its new value has nowhere to go. Relabel "
                f"variables outside of the function."
            )
    for variable, value in changed:
        variable.update(value)


def function_name(fun: Callable[..., Any]) -> str:
    """Returns a name for any callable: a partial takes that of its function."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def check_without_variables(transform: str, name: str, result: Any) -> None:
    """Refuses a result that holds variables: they would be the temporary ones."""
    found = [
        f"{type(leaf).__name__} at result{jax.tree_util.keystr(path)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(result)
        if isinstance(leaf, AbstractVariable)
    ]
    if found:
        raise ValueError(
            f"{transform} of {name!r}: the result contains variables: {', '.join(found)}. Return "
            f"the parts instead, `unbind_variables(result, freeze=True)`, and put them together "
            f"outside with `bind_variables`."
        )


def _check_same_identity(
    transform: str,
    name: str,
    before: Sequence[AbstractVariableValue],
    after: Sequence[AbstractVariableValue],
) -> None:
    """Refuses a change of label or metadata: both are structure, which a traced run cannot change."""
    for old, new in zip(before, after, strict=True):
        if old.get_slot() != new.get_slot():
            raise ValueError(
                f"{transform} of {name!r}: the function changed the label of {old.get_slot()!r} to "
                f"that of {new.get_slot()!r}. Relabel variables outside of the function."
            )
        old_metadata, new_metadata = getattr(old, "metadata", None), getattr(new, "metadata", None)
        if old_metadata != new_metadata:
            raise ValueError(
                f"{transform} of {name!r}: the function changed the metadata of "
                f"{old.get_slot()!r} from {old_metadata!r} to {new_metadata!r}. Change metadata "
                f"outside of the function."
            )
