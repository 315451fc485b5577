"""Running a function on temporary variables: the mechanism behind every variable transform.

A function that mutates its variables becomes a pure one by the implementation of three steps:

    variables = [value.unfreeze_as_copy() for value in values]     # 1. fresh variables ...
    result = fun(*bind_variables(args, variables))                 # 2. ... in place of the caller's
    return result, [variable.freeze() for variable in variables]   # 3. what they hold afterwards

A JAX transform is applied to that pure function, and what step 3 returns is stored in the caller's
variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue

__all__ = ["check_same_identity", "check_without_variables", "function_name"]


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


def check_same_identity(
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
