"""`variable_jit`: `jax.jit` for functions of trees that hold variables.

What a call costs beyond `jax.jit` is kept small by passing flat lists of arrays to one jitted
function. Everything else (tree structure, labels, metadata, static arguments) is gathered in a
`_Layout`, which is found again by one comparison and is the only static argument.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast, overload

import jax
import numpy as np

from pz_core._jit_arguments import (
    ArgumentChoice,
    donated_leaves,
    placed,
    take_static,
    without_shared_buffers,
)
from pz_core._text import describe_type
from pz_core._variable_lifting import (
    UNCHANGED,
    Unchanged,
    changed_only,
    check_without_variables,
    function_name,
    run_on_temporaries,
    write_back,
)
from pz_core._variable_scope import check_scope, current_scope
from pz_core._variable_values import as_arrays, fresh_containers
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue
from pz_core.labeled_variables import LabeledVariable
from pz_core.variable_binding import unbind_variables

__all__ = ["variable_jit"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """All that is static about a call. Compared by identity, one object per different call.

    Attributes:
      treedef: Structure of `(args, kwargs)`; variables are leaves of it.
      places: For each leaf, which variable (its number), or -1 for an array.
      signatures: For each variable, what identifies it and its value's structure.
      static_args: Static arguments by position.
      static_kwargs: Static arguments by name.
      donated: For each leaf that is an array, whether it is donated.
    """

    treedef: Any
    places: tuple[int, ...]
    signatures: list[Any]
    static_args: dict[int, Any]
    static_kwargs: dict[str, Any]
    donated: tuple[bool, ...]


# `isinstance(x, jax.Array)` is slow, since arrays of several classes count as instances.
_KNOWN_ARRAY_TYPES: set[type] = set()


def _plain_value_type(kind: type) -> type | None:
    return vars(kind).get("_plain_value_type")


def _take_apart(variable: AbstractVariable) -> tuple[Any, list[Any]]:
    """Returns a variable's signature (compared between calls) and its arrays."""
    if _plain_value_type(type(variable)) is not None:
        plain = cast(LabeledVariable[Any], variable)
        value = plain._value
        if isinstance(value, jax.Array):
            _KNOWN_ARRAY_TYPES.add(type(value))
            return (type(plain), plain.label, plain.metadata), [value]
        leaves, treedef = jax.tree_util.tree_flatten(as_arrays(plain.label, value))
        return (type(plain), plain.label, plain.metadata, treedef), leaves
    leaves, treedef = jax.tree_util.tree_flatten(variable.freeze())
    return treedef, leaves


def _kept_signature(signature: Any) -> Any:
    """Returns a signature that later edits of the metadata do not reach."""
    if isinstance(signature, tuple):
        kind, label, metadata, *rest = signature
        return (kind, label, fresh_containers(metadata), *rest)
    return signature


def _put_together(signature: Any, leaves: Iterable[Any]) -> AbstractVariableValue:
    """Returns the value that `_take_apart` was given."""
    if isinstance(signature, tuple):
        kind, label, metadata, *rest = signature
        value = rest[0].unflatten(leaves) if rest else next(iter(leaves))
        made = vars(kind)["_plain_value_type"](label, value, fresh_containers(metadata))
    else:
        made = signature.unflatten(leaves)
    return cast(AbstractVariableValue, made)


def _number_of_leaves(signature: Any) -> int:
    if not isinstance(signature, tuple):
        return cast(int, signature.num_leaves)
    return cast(int, signature[3].num_leaves) if len(signature) > 3 else 1


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call, taken apart: what the jitted function receives, and whom to give the updates."""

    layout: _Layout
    kept: list[Any]
    donated: list[Any]
    variable_leaves: list[Any]
    variables: list[AbstractVariable]

    @property
    def arrays(self) -> tuple[list[Any], list[Any], list[Any]]:
        """The dynamic arguments of the jitted function."""
        return self.kept, self.donated, self.variable_leaves


_ARRAY_TYPES = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class _VariableJit:
    """What stands behind one wrapped function: its jitted pure form, and the layouts seen."""

    def __init__(
        self,
        fun: Callable[..., Any],
        donate_variables: bool,
        static: ArgumentChoice,
        donate: ArgumentChoice,
        jit_kwargs: dict[str, Any],
    ) -> None:
        self.fun = fun
        self.name = function_name(fun)
        self.donate_variables = donate_variables
        self.static = static
        self.donate = donate
        self.layouts: dict[Any, list[_Layout]] = {}
        self.in_shardings = jit_kwargs.pop("in_shardings", None)
        if "out_shardings" in jit_kwargs:
            jit_kwargs["out_shardings"] = (jit_kwargs["out_shardings"], None)

        def pure(layout: _Layout, kept: Any, donated: Any, variable_leaves: Any) -> Any:
            return self._run(layout, kept, donated, variable_leaves)

        pure.__name__ = pure.__qualname__ = self.name
        self.jitted = jax.jit(
            pure,
            static_argnums=0,
            donate_argnums=(2, 3) if donate_variables else (2,),
            **jit_kwargs,
        )

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """Takes the arguments of a call apart."""
        static_args: dict[int, Any] = {}
        static_kwargs: dict[str, Any] = {}
        if self.static.numbers or self.static.names:
            args, kwargs, static_args, static_kwargs = take_static(
                self.static, args, kwargs, self.name
            )
        if self.in_shardings is not None:
            args = placed(args, kwargs, self.static, self.in_shardings, self.name)
        leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
        variable_types = {t for t in set(map(type, leaves)) if issubclass(t, AbstractVariable)}
        variables: list[AbstractVariable] = []
        places: tuple[int, ...] = ()
        arrays = leaves
        if variable_types:
            by_id = {id(leaf): leaf for leaf in leaves if type(leaf) in variable_types}
            variables = list(by_id.values())
            numbers = {key: number for number, key in enumerate(by_id)}
            places = tuple([numbers.get(id(leaf), -1) for leaf in leaves])
            arrays = [leaf for leaf in leaves if type(leaf) not in variable_types]
        signatures, variable_leaves = self._read(variables)
        types = tuple(map(type, (*static_args.values(), *static_kwargs.values())))
        key = (treedef, places, tuple(static_args.items()), tuple(static_kwargs.items()), types)
        layout = self._layout(key, signatures)
        if layout is None:
            unbind_variables((args, kwargs))  # for its errors about conflicts
            layout = self._new_layout(key, signatures, kwargs)
        donated: list[Any] = []
        if any(layout.donated):
            donated = [x for x, d in zip(arrays, layout.donated, strict=True) if d]
            arrays = [x for x, d in zip(arrays, layout.donated, strict=True) if not d]
        if self.donate_variables:
            variable_leaves = without_shared_buffers(variable_leaves)
        return _Call(layout, arrays, donated, variable_leaves, variables)

    def _read(self, variables: list[AbstractVariable]) -> tuple[list[Any], list[Any]]:
        """Returns the signatures and the arrays of the variables."""
        if current_scope() is not None:
            for variable in variables:
                check_scope(variable, getattr(variable, "_scope", current_scope()))
        signatures: list[Any] = []
        all_leaves: list[Any] = []
        plain_types = {t for t in set(map(type, variables)) if _plain_value_type(t) is not None}
        for variable in variables:
            # Most variables hold one array; this is the loop that a call spends its time in.
            kind = type(variable)
            slots = variable.__dict__
            if kind in plain_types and type(slots["_value"]) in _KNOWN_ARRAY_TYPES:
                signatures.append((kind, slots["label"], slots["metadata"]))
                all_leaves.append(slots["_value"])
            else:
                signature, leaves = _take_apart(variable)
                signatures.append(signature)
                all_leaves += leaves
        return signatures, all_leaves

    def _layout(self, key: Any, signatures: list[Any]) -> _Layout | None:
        for layout in self.layouts.get(key, ()):
            if layout.signatures == signatures:
                return layout
        return None

    def _new_layout(self, key: Any, signatures: list[Any], kwargs: dict[str, Any]) -> _Layout:
        treedef, places, static_args, static_kwargs, _ = key
        donated = donated_leaves(self.donate, treedef, kwargs)
        if places:
            donated = [flag for flag, place in zip(donated, places, strict=True) if place < 0]
        layout = _Layout(
            treedef=treedef,
            places=places,
            signatures=[_kept_signature(s) for s in signatures],
            static_args=dict(static_args),
            static_kwargs=dict(static_kwargs),
            donated=tuple(donated),
        )
        self.layouts.setdefault(key, []).insert(0, layout)
        return layout

    def _run(
        self, layout: _Layout, kept: list[Any], donated: list[Any], variable_leaves: list[Any]
    ) -> tuple[Any, list[Any]]:
        """The pure function that is traced: result, and new values of the variables it changed."""
        rest = iter(variable_leaves)
        values = []
        for signature in layout.signatures:
            count = _number_of_leaves(signature)
            values.append(_put_together(signature, [next(rest) for _ in range(count)]))
        kept_iter, donated_iter = iter(kept), iter(donated)
        arrays = [next(donated_iter if d else kept_iter) for d in layout.donated]

        def body(temporaries: Sequence[AbstractVariable]) -> Any:
            leaves: list[Any] = arrays
            if layout.places:
                rest_of_arrays = iter(arrays)
                leaves = [
                    temporaries[place] if place >= 0 else next(rest_of_arrays)
                    for place in layout.places
                ]
            args, kwargs = layout.treedef.unflatten(leaves)
            args = tuple(layout.static_args.get(n, arg) for n, arg in enumerate(args))
            return self.fun(*args, **kwargs, **layout.static_kwargs)

        result, after = run_on_temporaries("variable_jit", self.name, values, body)
        check_without_variables("variable_jit", self.name, result)
        # Donated arrays are gone after the call, so then every variable needs its new one.
        updates = after if self.donate_variables else changed_only(values, after)
        bare = [
            new.value if isinstance(signature, tuple) and new is not UNCHANGED else new
            for signature, new in zip(layout.signatures, updates, strict=True)
        ]
        return result, bare

    def write_back(self, call: _Call, updates: list[Any]) -> None:
        """Stores what the function left in its variables."""
        signatures = call.layout.signatures
        others: list[tuple[AbstractVariable, Any]] = []
        for variable, signature, value in zip(call.variables, signatures, updates, strict=True):
            if type(value) is Unchanged:
                continue
            if type(signature) is tuple:
                variable._value = value  # type: ignore[attr-defined]
            else:
                others.append((variable, value))
        write_back([variable for variable, _ in others], [value for _, value in others])

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the jitted function."""
        call = self.pack(args, kwargs)
        try:
            result, updates = self.jitted(call.layout, *call.arrays)
        except TypeError as exc:
            self._explain_bad_argument(args, kwargs, exc)
            raise
        self.write_back(call, updates)
        return result

    def clear_cache(self) -> None:
        """Forgets what was compiled."""
        self.layouts.clear()
        cast(Any, self.jitted).clear_cache()

    def _explain_bad_argument(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], exc: TypeError
    ) -> None:
        """Names the argument that is no array; JAX knows it only by its place in a flat list."""
        args, kwargs, _, _ = take_static(self.static, args, kwargs, self.name)
        named = {**{f"args[{n}]": arg for n, arg in enumerate(args)}, **kwargs}
        for where, arg in named.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
                if not isinstance(leaf, (*_ARRAY_TYPES, AbstractVariable)) and not hasattr(
                    leaf, "__jax_array__"
                ):
                    raise TypeError(
                        f"variable_jit of {self.name!r}: {where}{jax.tree_util.keystr(path)} is a "
                        f"{describe_type(leaf)}, which is no array, number or variable. Make it a "
                        f"static argument, or keep it in a static field."
                    ) from exc


class _Stage:
    """A traced, lowered or compiled `variable_jit` function.

    Offers the attributes of JAX's object for the stage. A compiled one is called with the original
    arguments, and updates their variables.
    """

    def __init__(self, owner: _VariableJit, stage: Any, layout: _Layout) -> None:
        self._owner = owner
        self._stage = stage
        self._layout = layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def lower(self, **kwargs: Any) -> _Stage:
        """Lowers a traced function."""
        return _Stage(self._owner, self._stage.lower(**kwargs), self._layout)

    def compile(self, **kwargs: Any) -> _Stage:
        """Compiles a lowered function."""
        return _Stage(self._owner, self._stage.compile(**kwargs), self._layout)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._owner.pack(args, kwargs)
        if call.layout is not self._layout:
            raise TypeError(
                f"variable_jit of {self._owner.name!r}: this compiled function is called with "
                f"arguments of another structure, other labels or metadata, or other static "
                f"arguments than it was lowered for. Lower it again for these arguments."
            )
        result, updates = self._stage(*call.arrays)
        self._owner.write_back(call, updates)
        return result


@overload
def variable_jit(
    fun: _F,
    *,
    donate_variables: bool = False,
    **jit_kwargs: Any,
) -> _F: ...


@overload
def variable_jit(
    fun: None = None,
    *,
    donate_variables: bool = False,
    **jit_kwargs: Any,
) -> Callable[[_F], _F]: ...


def variable_jit(
    fun: Any = None,
    *,
    donate_variables: bool = False,
    **jit_kwargs: Any,
) -> Any:
    """Compiles a function whose arguments may hold variables anywhere.

    The function may read and assign the variables among its arguments; the caller's variables are
    updated when it returns, and are untouched if it fails. A variable that occurs in several
    arguments is one variable. Labels, metadata and the structure of values are part of the
    compilation cache's key.

    Args:
      fun: Any callable, also a partial. Leave it out to use this as `@variable_jit(option=...)`.
      donate_variables: Whether the arrays of the variables are donated: their memory is reused for
        the new values.
      **jit_kwargs: As for `jax.jit`. Arguments are moved to where `in_shardings` says before the
        call; its entry for a variable holds for all arrays of its value.

    Returns:
      A function with the name and signature of `fun`, and with `lower`, `trace` and `clear_cache`
      as on `jax.jit`'s result.

    Raises:
      ValueError: When called, if the result contains variables, or a label or metadata was changed.
      VariableConflictError: When called, if two variables have one slot.
      ClosedOverVariableError: When called, if `fun` uses a variable that is not among its
        arguments.

    >>> from pz_core.variables import StateVariable
    >>> total = StateVariable(0.0)
    >>> @variable_jit
    ... def add(total, x):
    ...     total.value += x
    >>> add(total, 2.0)
    >>> float(total.value)
    2.0
    """

    def wrap(fun: Callable[..., Any]) -> Callable[..., Any]:
        options = dict(jit_kwargs)
        static = ArgumentChoice.resolve(
            fun, options.pop("static_argnums", None), options.pop("static_argnames", None)
        )
        donate = ArgumentChoice.resolve(
            fun, options.pop("donate_argnums", None), options.pop("donate_argnames", None)
        )
        behind = _VariableJit(fun, donate_variables, static, donate, options)

        @functools.wraps(fun, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return behind.call(args, kwargs)

        def lower(*args: Any, **kwargs: Any) -> _Stage:
            call = behind.pack(args, kwargs)
            return _Stage(behind, behind.jitted.lower(call.layout, *call.arrays), call.layout)

        def trace(*args: Any, **kwargs: Any) -> _Stage:
            call = behind.pack(args, kwargs)
            return _Stage(behind, behind.jitted.trace(call.layout, *call.arrays), call.layout)

        wrapper.__name__ = behind.name
        wrapper.__doc__ = f"Jitted version of `{behind.name}`.\n\n{fun.__doc__ or ''}"
        vars(wrapper).update(lower=lower, trace=trace, clear_cache=behind.clear_cache)
        return wrapper

    return wrap if fun is None else wrap(fun)
