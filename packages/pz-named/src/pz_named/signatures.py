"""`checked`: a function's argument and result shapes, written as one line and checked at each call.

Grammar, names being words and whitespace free:

    signature := arguments "->" result
    arguments := [name ":" shape ("," name ":" shape)*]
    result    := shape ("," shape)* | "*"
    shape     := ["dtype"] "{" [axis ("," axis)*] "}" | "*"
    axis      := name                  a named axis whose size is the variable `name`
               | name ":" size         a named axis; size is a number or a variable
               | "..."                 any further named axes, the same wherever "..." stands
               | "...name"             any further named axes, called `name`
               | "[" dims "]"          the positional shape; default none
    dims      := [dim ("," dim)*]      dim is a number, a variable, or "..." for any run

`*` accepts anything. A variable has one size in the whole call. dtype is `float`, `int`, `bool`,
`complex`, or an exact dtype such as `float32`; without it any dtype is fine.

Example:
    >>> import pz_named as nx
    >>> @nx.checked("x: {batch, seq, embed:d}, scale: {embed:d} -> {batch, seq, embed:d}")
    ... def scaled(x, scale):
    ...     return x * scale
    >>> scaled(nx.ones({"batch": 1, "seq": 2, "embed": 4}), nx.ones({"embed": 4})).named_shape
    {'batch': 1, 'seq': 2, 'embed': 4}

The idea is that of jaxtyping (Kidger, 2022), with names for the axes instead of positions.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax.numpy as jnp
import numpy as np

from pz_named._layout import near_misses
from pz_named.array_specs import ANY, ArraySpec
from pz_named.dimensions import DimVar, MultiDimVar, RemainingAxisPlaceholder
from pz_named.shapecheck import MatchResult, StructureMismatchError, check_structure

__all__ = ["checked"]

Function = TypeVar("Function", bound=Callable[..., Any])

_DTYPES: dict[str, Any] = {
    "": np.generic,
    "float": np.floating,
    "int": np.integer,
    "bool": np.bool_,
    "complex": np.complexfloating,
}
_SHAPE = re.compile(r"(?P<dtype>\w*)\s*\{(?P<axes>.*)\}", re.DOTALL)


class _Signature(NamedTuple):
    arguments: dict[str, Any]
    results: Any


def _split(text: str) -> list[str]:
    """The parts of a text between the commas that stand outside of brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    if current.strip() or parts:
        parts.append(current.strip())
    return parts


def _dim(text: str, signature: str) -> Any:
    if text.isdecimal():
        return int(text)
    if not text.isidentifier():
        raise ValueError(
            f"checked: {text!r} is neither a number nor a variable, in {signature!r}. Write a word "
            "or digits."
        )
    return DimVar(text)


def _positional(text: str, signature: str) -> tuple[Any, ...]:
    dims = _split(text)
    return tuple(
        MultiDimVar("positional ...") if dim == "..." else _dim(dim, signature) for dim in dims
    )


def _spec(text: str, signature: str) -> Any:
    if text == "*":
        return ANY
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"checked: cannot read the shape {text!r} in {signature!r}; write {{name, name:size}}, a "
            "dtype before it if need be, or *."
        )
    positional: tuple[Any, ...] = ()
    named: dict[Any, Any] = {}
    for axis in _split(match["axes"]):
        if axis.startswith("[") and axis.endswith("]"):
            positional = _positional(axis[1:-1], signature)
        elif axis.startswith("..."):
            named[MultiDimVar(axis[3:].strip() or "...")] = RemainingAxisPlaceholder()
        else:
            name, _, size = (part.strip() for part in axis.partition(":"))
            if not name or name in named:
                raise ValueError(
                    f"checked: {axis!r} in {signature!r} needs a name, which is not there twice."
                )
            named[name] = _dim(size or name, signature)
    return ArraySpec(positional, _dtype(match["dtype"], signature), named)


def _dtype(text: str, signature: str) -> Any:
    if text in _DTYPES:
        return _DTYPES[text]
    try:
        return jnp.dtype(text)
    except TypeError as exc:
        raise ValueError(
            f"checked: {text!r} in {signature!r} is no dtype. {near_misses(text, _DTYPES)}"
        ) from exc


def _parse(signature: str) -> _Signature:
    left, arrow, right = signature.partition("->")
    if not arrow:
        raise ValueError(
            f"checked: a signature needs '->' before the result's shape; it is {signature!r}. Write "
            "-> * for a result that is not checked."
        )
    arguments: dict[str, Any] = {}
    for argument in _split(left):
        name, colon, shape = argument.partition(":")
        if not colon or not name.strip().isidentifier():
            raise ValueError(
                f"checked: {argument!r} in {signature!r} must be an argument's name, a colon, and "
                "its shape."
            )
        arguments[name.strip()] = _spec(shape.strip(), signature)
    results = [_spec(shape, signature) for shape in _split(right)]
    if not results:
        raise ValueError(f"checked: {signature!r} has no result; write -> * to leave it unchecked.")
    return _Signature(arguments, results[0] if len(results) == 1 else tuple(results))


def checked(signature: str) -> Callable[[Function], Function]:
    """Checks the shapes of a function's arguments and result, by name, at each call.

    Under `jit` it runs while tracing and costs nothing in the compiled program.

    Args:
      signature: `"x: {batch, embed:d} -> {batch, embed:d}"`; the module's text has the grammar.
        Arguments that are not listed are not checked; `None` for an argument is accepted.

    Returns:
      A decorator.

    Raises:
      ValueError: When the signature cannot be read, or names an argument that the function lacks.
      StructureMismatchError: When the decorated function is called with, or returns, arrays that
        do not fit. All mismatches are listed together, by argument.
    """
    pattern = _parse(signature)

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function)
        for name in pattern.arguments:
            if name not in parameters.parameters:
                raise ValueError(
                    f"checked: {function.__qualname__} has no argument {name!r}, which is in "
                    f"{signature!r}. {near_misses(name, parameters.parameters)}"
                )

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            bound = parameters.bind(*args, **kwargs)
            bound.apply_defaults()
            wanted = {n: s for n, s in pattern.arguments.items() if bound.arguments[n] is not None}
            given = {name: bound.arguments[name] for name in wanted}
            name = function.__qualname__
            sizes = _check(given, wanted, f"{name}: arguments do not fit {signature!r}. ", None)
            result = function(*args, **kwargs)
            _check(
                {"result": result},
                {"result": pattern.results},
                f"{name}: the result does not fit {signature!r}. ",
                sizes,
            )
            return result

        return cast(Function, wrapped)

    return decorate


def _check(value: Any, pattern: Any, prefix: str, sizes: MatchResult | None) -> MatchResult:
    """`check_structure` with paths in terms of argument names."""
    try:
        return check_structure(value, pattern, known_vars=sizes, error_prefix=prefix)
    except StructureMismatchError as exc:
        text = re.sub(r"root\['(\w+)'\]", r"\1", str(exc)).replace("known_vars", "the arguments")
        raise StructureMismatchError(text) from None  # the same text with other paths
