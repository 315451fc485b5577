"""Immutable dataclasses that are pytree nodes: the material that models are made of.

The one idea: a struct is a frozen dataclass whose fields are its pytree children, except those
declared static, which become part of the tree's structure.

>>> import dataclasses, jax
>>> @pytree_dataclass
... class Scale(Struct):
...     factor: float
...     unit: str = dataclasses.field(default="m", metadata={"pytree_node": False})
>>> jax.tree.map(lambda x: 2 * x, Scale(1.5))
Scale(factor=3.0, unit='m')

A third kind of field, `metadata={"pytree_node": "unless_number"}`, is a child unless it holds a Python
number (`bool`, `int`, `float`, `complex`), which is static then: hyperparameters, that are neither
differentiated nor traced, but may as well be arrays, one for each block of a layer stack for example.
Selections reach such a number like a child.

>>> @pytree_dataclass
... class Rescale(Struct):
...     by: float | jax.Array = dataclasses.field(metadata={"pytree_node": "unless_number"})
>>> jax.tree.leaves([Rescale(2.0), Rescale(jax.numpy.arange(3))])
[Array([0, 1, 2], dtype=int32)]

Every concrete class is decorated itself; an undecorated subclass of `Struct` is abstract. How the
classes are registered with JAX without slowing it down is told in `_struct_codegen`.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Self,
    TypeVar,
    cast,
    dataclass_transform,
    final,
    overload,
)

import jax

from pz_core import _struct_checks, _struct_codegen, _struct_init, _text
from pz_core.colors import color_from_string

if TYPE_CHECKING:
    from pz_core.selectors import Selection

__all__ = [
    "AbstractStructMetaclass",
    "PYTREE_DATACLASS_INFO_ATTR",
    "PyTreeDataclassSafetyError",
    "Struct",
    "StructStaticMetadata",
    "is_pytree_dataclass_type",
    "is_pytree_node_field",
    "pytree_dataclass",
]

_C = TypeVar("_C", bound=type)

PYTREE_DATACLASS_INFO_ATTR = "__penzai_pytree_dataclass_info__"


class PyTreeDataclassSafetyError(Exception):
    """A class definition that would silently do something else than it says.

    For example, a subclass that adds a field without repeating those of its parent:

        @pytree_dataclass
        class Child(Parent):  # Parent has the field `a`
            b: int            # error: was it meant to have `a` too?

    Repair: repeat `a` in the body, or decorate with
    `@pytree_dataclass(has_implicitly_inherited_fields=True)`.
    """


@dataclasses.dataclass(frozen=True)
class _DataclassInfo:
    """What the decorator leaves on a class.

    Attributes:
      generated_init: The constructor that `dataclasses` made, or None.
      options: The arguments of the decorator that concern fields and constructors.
    """

    generated_init: Callable[..., None] | None
    options: Mapping[str, bool]


def is_pytree_dataclass_type(cls: Any) -> bool:
    """Whether `cls` is a class that was itself decorated with `pytree_dataclass`."""
    return isinstance(cls, type) and PYTREE_DATACLASS_INFO_ATTR in vars(cls)


def is_pytree_node_field(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass field holds a pytree child; static fields do not.

    A field is made static by `dataclasses.field(metadata={"pytree_node": False})`; with
    `"unless_number"` it holds a child, or a static number.
    """
    return bool(field.metadata.get("pytree_node", True))


def _may_hold_static_number(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("pytree_node") == "unless_number")


@overload
def pytree_dataclass(cls: _C, /) -> _C: ...


@overload
def pytree_dataclass(
    cls: None = None,
    /,
    *,
    has_implicitly_inherited_fields: bool = False,
    use_mutable_proxy_in_init: bool = True,
    overwrite_parent_init: bool = False,
    init: bool = True,
    repr: bool | Literal["auto"] = "auto",
    eq: bool = True,
    order: bool = False,
    match_args: bool = False,
    kw_only: bool = False,
    post_init_may_rerun: bool = False,
) -> Callable[[_C], _C]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree_dataclass(
    cls: Any = None,
    /,
    *,
    has_implicitly_inherited_fields: bool = False,
    use_mutable_proxy_in_init: bool = True,
    overwrite_parent_init: bool = False,
    init: bool = True,
    repr: bool | Literal["auto"] = "auto",
    eq: bool = True,
    order: bool = False,
    match_args: bool = False,
    kw_only: bool = False,
    post_init_may_rerun: bool = False,
) -> Any:
    """Turns a class into a frozen dataclass and registers it as a pytree node.

    The class is changed in place and returned. If any check fails, it is left as it was.

    Args:
      cls: The class; None if the decorator is called with keywords only.
      has_implicitly_inherited_fields: Permits fields that the class body does not itself annotate.
      use_mutable_proxy_in_init: Lets a hand-written `__init__` assign to `self`.
      overwrite_parent_init: Permits replacing an inherited hand-written `__init__` by a generated
        one.
      init: Whether to generate `__init__` where the class body has none.
      repr: Whether to generate a dataclass `__repr__`; "auto" does so unless the class is a
        `Struct`, which has a better one.
      eq: As for `dataclasses.dataclass`.
      order: As for `dataclasses.dataclass`.
      match_args: As for `dataclasses.dataclass`, but off by default.
      kw_only: As for `dataclasses.dataclass`.
      post_init_may_rerun: Lets JAX call the constructor, `__post_init__` included, when it rebuilds an
        instance; it flattens faster then. Only for a `__post_init__` that looks at static fields alone
        and leaves its own results as they are. By default it runs once.

    Returns:
      The class, or a decorator where `cls` is None.

    Raises:
      PyTreeDataclassSafetyError: If an inherited constructor would be lost, or the class body does
        not name its fields, or a field would hide a method of `Struct`.
      ValueError: If the class is decorated already, or defines a name that the decorator needs.
      AttributeError: If the class is no `Struct` and lacks the pytree methods.
    """
    options = {
        "has_implicitly_inherited_fields": has_implicitly_inherited_fields,
        "use_mutable_proxy_in_init": use_mutable_proxy_in_init,
        "overwrite_parent_init": overwrite_parent_init,
        "init": init,
        "post_init_may_rerun": post_init_may_rerun,
    }

    def decorate(cls: type) -> type:
        with _struct_checks.class_restored_on_failure(cls):
            _make_pytree_dataclass(
                cls,
                options,
                repr=not issubclass(cls, Struct) if repr == "auto" else bool(repr),
                eq=eq,
                order=order,
                match_args=match_args,
                kw_only=kw_only,
            )
        return cls

    return decorate if cls is None else decorate(cls)


def _make_pytree_dataclass(cls: type, options: Mapping[str, bool], **dataclass_kwargs: Any) -> None:
    """Does the work of `pytree_dataclass`: check, make the dataclass, wrap, register."""
    if is_pytree_dataclass_type(cls):
        raise ValueError(
            f"@pytree_dataclass was applied twice to {cls.__qualname__}. Remove one of the two."
        )
    has_own_init = "__init__" in vars(cls)
    generates_init = options["init"] and not has_own_init
    inherited = _struct_checks.find_init(cls, frozenset({object, Struct}))
    ancestors = [vars(base).get(PYTREE_DATACLASS_INFO_ATTR) for base in cls.__mro__[1:]]
    original = inspect.unwrap(inherited) if inherited is not None else None
    is_generated = any(info and original is info.generated_init for info in ancestors)
    if generates_init and not options["overwrite_parent_init"]:
        _struct_checks.check_init_overwrite(
            cls, inherited, is_generated, PyTreeDataclassSafetyError
        )
    if has_own_init and options["use_mutable_proxy_in_init"] and "_MutableInitProxy" in vars(cls):
        raise ValueError(
            f"@pytree_dataclass: the class body of {cls.__qualname__} defines "
            f"`_MutableInitProxy`, a name that its constructor needs. Rename it, or pass "
            f"use_mutable_proxy_in_init=False."
        )
    setattr(cls, _struct_codegen.UNDECORATED, None)
    dataclasses.dataclass(frozen=True, init=generates_init, **dataclass_kwargs)(cls)
    _struct_checks.check_field_declarations(
        cls, options["has_implicitly_inherited_fields"], PyTreeDataclassSafetyError
    )
    _struct_checks.check_pytree_methods(cls)
    info = _DataclassInfo(vars(cls)["__init__"] if generates_init else None, dict(options))
    setattr(cls, PYTREE_DATACLASS_INFO_ATTR, info)
    if has_own_init and options["use_mutable_proxy_in_init"]:
        type.__setattr__(
            cls, "__init__", _struct_init.wrap_init(vars(cls)["__init__"], allow_assignment=True)
        )
    elif not has_own_init and not generates_init and inherited is not None and is_generated:
        # The inherited constructor knows nothing of fields that were added here.
        type.__setattr__(cls, "__init__", _struct_init.wrap_init(inherited, allow_assignment=False))
    _register(cls, generates_init, options["post_init_may_rerun"])


_STRUCT_LAYOUT_METHODS = ("tree_flatten_with_keys", "tree_flatten", "tree_unflatten")


def _register(cls: type, generates_init: bool, post_init_may_rerun: bool) -> None:
    """Chooses the registration strategy of a finished dataclass."""
    if not issubclass(cls, Struct) or any(
        inspect.getattr_static(cls, name) is not vars(Struct)[name]
        for name in _STRUCT_LAYOUT_METHODS
    ):
        jax.tree_util.register_pytree_with_keys_class(cls)
        return
    fields = _fields(cls)
    for field in fields:
        if field.metadata.get("pytree_node", True) not in (True, False, "unless_number"):
            raise ValueError(
                f"@pytree_dataclass: the field {field.name!r} of {cls.__qualname__} has the metadata "
                f"pytree_node={field.metadata['pytree_node']!r}. It is True, False or 'unless_number'."
            )
    hidden = sorted({field.name for field in fields} & _RESERVED_NAMES)
    if hidden:
        raise PyTreeDataclassSafetyError(
            f"@pytree_dataclass: the field {hidden[0]!r} of {cls.__qualname__} would hide "
            f"`Struct.{hidden[0]}`. Give the field another name, such as `{hidden[0]}_`."
        )
    functions = _struct_codegen.generate_node_functions(
        cls,
        [field.name for field in fields if is_pytree_node_field(field)],
        [field.name for field in fields if not is_pytree_node_field(field)],
        [field.name for field in fields if _may_hold_static_number(field)],
        default_keys=cls.key_for_field is Struct.key_for_field,
    )
    may_call_constructor = (
        generates_init
        and (post_init_may_rerun or not hasattr(cls, "__post_init__"))
        and cls.__new__ is object.__new__
        and all(field.init for field in fields)
        and not _has_init_vars(cls)
    )
    _struct_codegen.register_struct(cls, functions, may_call_constructor=may_call_constructor)


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _has_init_vars(cls: type) -> bool:
    return len(inspect.signature(cls).parameters) != len(_fields(cls))


class AbstractStructMetaclass(abc.ABCMeta):
    """Makes a class abstract until it is decorated with `pytree_dataclass`."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **kwargs: Any
    ) -> Any:
        """Creates a class that cannot be instantiated yet."""
        namespace.setdefault(_struct_codegen.UNDECORATED, _undecorated_marker)
        return super().__new__(mcs, name, bases, namespace, **kwargs)


def _undecorated_marker() -> None:
    """Stands in every undecorated class under the name `UNDECORATED`."""


_undecorated_marker.__isabstractmethod__ = True  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class StructStaticMetadata:
    """The part of a struct that is tree structure and not data.

    Attributes:
      child_field_names: Names of the fields that hold children, in field order.
      static_fields: The other fields' values by name.
    """

    child_field_names: tuple[str, ...]
    static_fields: Mapping[str, Any]

    def __hash__(self) -> int:
        # Static values need not be hashable, and equal metadata has equal names.
        return hash((self.child_field_names, tuple(self.static_fields)))


class Struct(metaclass=AbstractStructMetaclass):
    """Base class of frozen dataclasses that are pytree nodes.

    Subclasses are decorated with `pytree_dataclass`. Their fields are pytree children, except those
    declared with `dataclasses.field(metadata={"pytree_node": False})`, and numbers in those declared
    with `"unless_number"`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Present so that Python checks for abstractness before it counts arguments.
        super().__init__(*args, **kwargs)

    @final
    @classmethod
    def from_attributes(cls, /, **field_values: Any) -> Self:
        """Builds an instance from its fields without running its constructor.

        Args:
          **field_values: A value for every field, static ones included; defaults are not used.

        Returns:
          The instance. Values are stored as they are.

        Raises:
          ValueError: If the names are not exactly those of the fields.
          TypeError: If the class is abstract, for example because it is not decorated.
        """
        instance = object.__new__(cls)
        names = [field.name for field in _fields(cls)]
        if field_values.keys() != set(names):
            raise ValueError(
                f"{cls.__qualname__}.from_attributes takes exactly the fields {names}, given were "
                f"{list(field_values)}. Pass every field, also those that have a default."
            )
        slots = instance.__dict__
        for name in names:
            slots[name] = field_values[name]
        return instance

    @final
    def attributes_dict(self) -> dict[str, Any]:
        """Returns all fields by name, in field order: the inverse of `from_attributes`."""
        return {field.name: getattr(self, field.name) for field in _fields(type(self))}

    @final
    def select(self) -> Selection[Self]:
        """Starts a selection at this struct; the same as `pz_core.selectors.select(self)`."""
        from pz_core.selectors import select  # a cycle: selections are structs themselves

        return select(self)

    def key_for_field(self, field_name: str) -> Hashable:
        """Returns the key of one field in key paths; override it to say more than the name.

        Args:
          field_name: The name of a field that is a pytree child.

        Returns:
          A key, distinct from those of the other fields.
        """
        return cast(Hashable, jax.tree_util.GetAttrKey(field_name))

    @final
    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], StructStaticMetadata]:
        """Returns the children with their keys, and the static fields."""
        children, static = self.tree_flatten()
        keys = map(self.key_for_field, static.child_field_names)
        return list(zip(keys, children, strict=True)), static

    @final
    def tree_flatten(self) -> tuple[list[Any], StructStaticMetadata]:
        """Returns the children, and the static fields."""
        names, static = [], {}
        for field in _fields(type(self)):
            if not is_pytree_node_field(field) or (
                _may_hold_static_number(field)
                and _struct_codegen.is_static_number(self, field.name)
            ):
                static[field.name] = getattr(self, field.name)
            else:
                names.append(field.name)
        return [getattr(self, name) for name in names], StructStaticMetadata(tuple(names), static)

    @final
    @classmethod
    def tree_unflatten(cls, aux_data: StructStaticMetadata, children: Iterable[Any]) -> Self:
        """Reassembles an instance; the inverse of `tree_flatten`. Accepts any children."""
        if not isinstance(aux_data, StructStaticMetadata):
            raise AssertionError(
                f"{cls.__qualname__}.tree_unflatten takes a StructStaticMetadata, got "
                f"{aux_data!r}. Pass what `tree_flatten` returned."
            )
        children = list(children)
        if len(children) != len(aux_data.child_field_names):
            raise AssertionError(
                f"{cls.__qualname__}.tree_unflatten takes one child for each of "
                f"{list(aux_data.child_field_names)}, got {len(children)}. Pass as many children "
                f"as `tree_flatten` returned."
            )
        named_children = dict(zip(aux_data.child_field_names, children, strict=True))
        return cls.from_attributes(**named_children, **aux_data.static_fields)

    def treescope_color(self) -> str | tuple[str, str]:
        """Returns the colour to display the struct in: CSS, or a (border, fill) pair."""
        if callable(self):
            return color_from_string(f"{type(self).__module__}.{type(self).__qualname__}")
        return "transparent"

    def _fields_for_text(self) -> list[tuple[str, Any]]:
        """Returns what `repr` shows."""
        return [
            (field.name, getattr(self, field.name, "<missing>")) for field in _fields(type(self))
        ]

    __repr__ = _text.named_call_text

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # As the default, but with half of its stack frames: copying a deep model stays within
        # Python's recursion limit.
        duplicate = object.__new__(type(self))
        memo[id(self)] = duplicate
        slots = duplicate.__dict__
        for name, value in cast(dict[str, Any], self.__getstate__() or {}).items():
            slots[name] = copy.deepcopy(value, memo)
        return duplicate


_RESERVED_NAMES = frozenset(name for name in vars(Struct) if not name.startswith("_"))
