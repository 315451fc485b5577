"""Arguments that `jax.jit` treats in a way of its own: static, donated, placed on devices."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_core._text import describe_type
from pz_core.abstract_variables import AbstractVariable

__all__ = ["ArgumentChoice", "donated_leaves", "placed", "take_static", "without_shared_buffers"]


@dataclasses.dataclass(frozen=True)
class ArgumentChoice:
    """Some arguments of a function, by position and by name, as `jax.jit` takes them."""

    numbers: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    @classmethod
    def resolve(
        cls,
        fun: Callable[..., Any],
        numbers: int | Sequence[int] | None,
        names: str | Iterable[str] | None,
    ) -> ArgumentChoice:
        """Completes positions by names and the reverse where only one was given, as JAX does."""
        chosen = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
        named = (names,) if isinstance(names, str) else tuple(names or ())
        if not chosen and not named:
            return cls()
        try:
            parameters = list(inspect.signature(fun).parameters.values())
        except (TypeError, ValueError):  # some builtins have no signature
            parameters = []
        chosen = tuple(n + len(parameters) if n < 0 else n for n in chosen)
        by_either = [p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters]
        if names is None:
            named = tuple(p.name for n, p in enumerate(parameters) if n in chosen and by_either[n])
        elif numbers is None:
            chosen = tuple(n for n, p in enumerate(parameters) if p.name in named and by_either[n])
        return cls(frozenset(chosen), frozenset(named))


def take_static(
    choice: ArgumentChoice, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> tuple[tuple[Any, ...], dict[str, Any], dict[int, Any], dict[str, Any]]:
    """Separates static arguments; None stands in their positions."""
    static_args = {n: args[n] for n in sorted(choice.numbers) if n < len(args)}
    static_kwargs = {n: kwargs[n] for n in sorted(choice.names) if n in kwargs}
    for where, value in [*static_args.items(), *static_kwargs.items()]:
        try:
            hash(value)
        except TypeError as exc:
            raise ValueError(
                f"variable_jit of {name!r}: the static argument {where!r} is a "
                f"{describe_type(value)}, which is not hashable; static arguments are compared "
                f"between calls. Pass a hashable value, or do not make it static."
            ) from exc
    args = tuple(None if n in static_args else arg for n, arg in enumerate(args))
    kwargs = {n: arg for n, arg in kwargs.items() if n not in static_kwargs}
    return args, kwargs, static_args, static_kwargs


def donated_leaves(choice: ArgumentChoice, treedef: Any, kwargs: dict[str, Any]) -> list[bool]:
    """Returns for each leaf of `(args, kwargs)` whether its argument is donated."""
    args_def, kwargs_def = treedef.children()
    flags: list[bool] = []
    for number, child in enumerate(args_def.children()):
        flags += [number in choice.numbers] * child.num_leaves
    for name, child in zip(sorted(kwargs), kwargs_def.children(), strict=True):
        flags += [name in choice.names] * child.num_leaves
    return flags


def without_shared_buffers(leaves: list[Any]) -> list[Any]:
    """Copies arrays that occur twice: a buffer can be donated only once."""
    seen: set[int] = set()
    result = []
    for leaf in leaves:
        result.append(jnp.array(leaf, copy=True) if id(leaf) in seen else leaf)
        seen.add(id(leaf))
    return result


def _put_below(sharding: Any, tree: Any) -> Any:
    """Moves all arrays of a tree; a variable takes its moved arrays as its value."""
    if sharding is None:
        return tree

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, AbstractVariable):
            return jax.device_put(leaf, sharding)
        leaf.update(jax.device_put(leaf.freeze(), sharding))
        return leaf

    return jax.tree.map(put, tree)


def placed(
    args: tuple[Any, ...], kwargs: dict[str, Any], static: ArgumentChoice, shardings: Any, name: str
) -> tuple[Any, ...]:
    """Moves the arguments, and the values of variables, to where `in_shardings` says."""
    if kwargs:
        raise ValueError(
            f"variable_jit of {name!r}: in_shardings is given by position, but the call "
            f"has the keyword arguments {list(kwargs)}. Pass them by position, or make them "
            f"static."
        )
    dynamic = [n for n in range(len(args)) if n not in static.numbers]
    if not isinstance(shardings, list | tuple):
        shardings = [shardings] * len(dynamic)
    if len(shardings) != len(dynamic):
        raise ValueError(
            f"variable_jit of {name!r}: in_shardings has {len(shardings)} entries for "
            f"{len(dynamic)} arguments that are not static. Give one entry for each, or one for "
            f"all."
        )
    result = list(args)
    for n, sharding in zip(dynamic, shardings, strict=True):
        result[n] = jax.tree.map(_put_below, sharding, args[n], is_leaf=lambda x: x is None)
    return tuple(result)
