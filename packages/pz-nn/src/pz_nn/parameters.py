"""Making parameters whose initial value depends on their name alone.

One key serves a whole model. Each parameter folds the hash of its own label into it, so the order in
which layers are built does not matter, and a renamed layer is a differently initialised one.

    key = jax.random.key(0)
    make_parameter("mlp/in.weights", key, jax.random.normal, (3, 4))   # a Parameter
    make_parameter("mlp/in.weights", None, jax.random.normal, (3, 4))  # a ParameterSlot: structure only

Two parameters of one label in one model are an error, at the latest when they are unbound, or bound: each
call of `make_parameter` makes a parameter of its own, with or without a key. `unique_parameter_names`
makes it an error where it happens, while the model is built. What is shared is made once and used in
several places.
"""

from __future__ import annotations

import abc
import contextlib
import contextvars
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from pz_core.labeled_variables import DistinctLabel
from pz_core.variables import Parameter, ParameterSlot

__all__ = [
    "DuplicateParameterNameError",
    "ParameterLike",
    "assert_no_parameter_slots",
    "derive_param_key",
    "make_parameter",
    "unique_parameter_names",
]

T_co = TypeVar("T_co", covariant=True)


class ParameterLike(Protocol[T_co]):
    """Anything with a `value`: a parameter, a frozen value, a slot, or a wrapper around one of them.

    Layers read `.value` of such a field and assume nothing else. Reading may raise, as an empty slot
    does.
    """

    @property
    @abc.abstractmethod
    def value(self) -> T_co:
        """The current value."""


class DuplicateParameterNameError(ValueError):
    """Two parameters of a model were made with one label.

    Bad: two layers of one name.

        with unique_parameter_names():
            Sequential([Linear.from_config("linear", key, axes, axes) for _ in range(2)])

    Repair: give each a name of its own (`f"linear_{i}"`), or, to share parameters, make the layer once and
    put the same object in both places.
    """


_names_made: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar(
    "pz_nn_names_made", default=None
)


@contextlib.contextmanager
def unique_parameter_names() -> Iterator[None]:
    """Makes it an error to make two parameters of one label within this scope.

    Put it around the building of one model, as a `with` statement or as the decorator of a builder. Scopes
    inside it belong to it, so names are unique in the whole model. `LayerStack.from_sublayer_builder` opens
    one for its block. Outside of any scope the same model may be built twice; two parameters of one label
    within one tree raise a `VariableConflictError` when they are unbound, and two of their slots when they
    are bound.

    Yields:
        None. `make_parameter` raises `DuplicateParameterNameError` within.

    Example:
        >>> from pz_nn import Linear, Sequential
        >>> with unique_parameter_names():
        ...     layers = [Linear.from_config(f"linear_{i}", None, {"a": 2}, {"a": 2}) for i in range(2)]
    """
    if _names_made.get() is not None:
        yield
        return
    token = _names_made.set(set())
    try:
        yield
    finally:
        _names_made.reset(token)


def _note_name(name: str) -> None:
    made = _names_made.get()
    if made is None:
        return
    if name in made:
        raise DuplicateParameterNameError(
            f"make_parameter: each parameter of a model needs a label of its own, but {name!r} was made "
            "before. Give each layer another name; to share parameters, make the layer once and put the "
            "same object in both places."
        )
    made.add(name)


def derive_param_key(base_rng: jax.Array, name: str) -> jax.Array:
    """Derives the key of one parameter from the key of the model and the parameter's label.

    The implementation is just `fold_in(base_rng, first four bytes of sha1(name), big endian)`.

    Args:
        base_rng: Typed or raw key of the whole model.
        name: Label of the parameter.

    Returns:
        A key of the same kind.

    Example:
        >>> derive_param_key(jax.random.PRNGKey(0), "foo").tolist()
        [2400529761, 3974919251]
    """
    digest = hashlib.sha1(name.encode("utf-8"), usedforsecurity=False).digest()
    # As uint32: half of all hashes exceed the int32 that a Python int would become.
    return jax.random.fold_in(base_rng, np.uint32(int.from_bytes(digest[:4], "big")))


def make_parameter(
    name: str,
    init_base_rng: jax.Array | None,
    initializer: Callable[..., Any],
    *init_args: Any,
    metadata: dict[Any, Any] | None = None,
    **init_kwargs: Any,
) -> ParameterLike[Any]:
    """Makes a parameter, or only its slot when there is no key.

    Args:
        name: Label of the parameter, unique within the model.
        init_base_rng: Key of the whole model, or None to build the structure without any array work.
        initializer: Called as `initializer(key, *init_args, **init_kwargs)`; returns a pytree of arrays.
        *init_args: Positional arguments of the initializer after the key.
        metadata: Metadata of the parameter; None means an empty one. A slot has none.
        **init_kwargs: Keyword arguments of the initializer.

    Returns:
        A `Parameter`, or a `ParameterSlot` if `init_base_rng` is None. The slot's label is a
        `DistinctLabel`: it equals `name`, but slots made by two calls are not filled by one variable.

    Raises:
        DuplicateParameterNameError: If the label was made before within `unique_parameter_names`.
    """
    _note_name(name)
    if init_base_rng is None:
        return ParameterSlot(DistinctLabel(name))
    value = initializer(derive_param_key(init_base_rng, name), *init_args, **init_kwargs)
    return Parameter(label=name, value=value, metadata=metadata or {})


def assert_no_parameter_slots(model: Any) -> None:
    """Checks that every parameter of a model has been given.

    Args:
        model: Any pytree. Slots of state variables are not looked at.

    Raises:
        ValueError: If the model contains parameter slots; the message lists them.
    """
    nodes = jax.tree_util.tree_leaves(model, is_leaf=lambda node: isinstance(node, ParameterSlot))
    slots = dict.fromkeys(node for node in nodes if isinstance(node, ParameterSlot))
    if slots:
        labels = "\n".join(f"  {slot.label!r}" for slot in slots)
        raise ValueError(
            "assert_no_parameter_slots: every parameter of the model must be bound, but these slots "
            f"are empty:\n{labels}\nFill them with `model.bind_variables(...)`, or build the model "
            "with a key instead of `init_base_rng=None`."
        )
