"""Patterns for arrays: shape, dtype and named shape, with unknowns.

Example:
    >>> import numpy as np
    >>> from pz_named.array_specs import ArraySpec
    >>> from pz_named.dimensions import var
    >>> ArraySpec.floating_named({"batch": var("b"), "feature": 8})
    <ArraySpec floating(| batch:{b}, feature:8)>
"""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._layout import is_size
from pz_named.arrays import NamedArray, NamedArrayBase, is_namedarray
from pz_named.dimensions import DimVar, KnownDim, MultiDimVar, RemainingAxisPlaceholder

__all__ = ["ANY", "ArraySpec", "StructureAnnotation", "Wildcard", "as_array_structure"]

StructureAnnotation: TypeAlias = Any
"""A tree of `ArraySpec`s, wildcards and literal values."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wildcard:
    """Matches any value or subtree.

    Attributes:
      description: What stands there, for readers.
    """

    description: str | None = None

    def __repr__(self) -> str:
        return "*" if self.description is None else f"<{self.description}>"


ANY = Wildcard()
"""Matches anything."""


def _checked_dim(dim: Any, where: str) -> Any:
    """One dimension of a pattern, integers normalised.

    Raises:
      TypeError: For anything but an integer, a variable or a symbolic dimension.
    """
    if isinstance(dim, (DimVar, KnownDim, MultiDimVar)):
        return dim
    if is_size(dim) and not isinstance(dim, bool):
        return operator.index(dim) if isinstance(dim, np.integer) else dim
    raise TypeError(
        f"ArraySpec: {where} must be an integer or a dimension variable; it is {dim!r}. Use "
        'var("name") for a size that is not known.'
    )


@dataclasses.dataclass(frozen=True, repr=False)
class ArraySpec:
    """A pattern for one array. A leafless pytree node.

    Attributes:
      shape: Positional sizes: integers, variables, `*var(...)` runs, or one variable for all.
      dtype: A dtype to equal, or an abstract class such as `np.floating` to belong to.
      named_shape: Sizes by axis name, with `**var(...)` for axes that are not listed, or one
        variable for all.
    """

    shape: Any = ()
    dtype: Any = np.generic
    named_shape: Any = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape: Iterable[Any] = self.shape
        named: Mapping[Any, Any] = self.named_shape
        dims = tuple(_checked_dim(dim, f"shape[{i}]") for i, dim in enumerate(shape))
        object.__setattr__(self, "shape", dims)
        axes = {
            name: dim
            if isinstance(name, MultiDimVar) and isinstance(dim, RemainingAxisPlaceholder)
            else _checked_dim(dim, f"named_shape[{name!r}]")
            for name, dim in dict(named).items()
        }
        object.__setattr__(self, "named_shape", axes)

    def __hash__(self) -> int:
        return hash((self.shape, str(self.dtype), frozenset(self.named_shape.items())))

    @property
    def positional_shape(self) -> tuple[Any, ...]:
        """The positional part, `shape`."""
        return tuple(self.shape)

    @classmethod
    def floating_named(cls, named_shape: Any) -> ArraySpec:
        """A floating-point array with named axes only."""
        return cls(dtype=np.floating, named_shape=named_shape)

    def into_pytree(self) -> jax.ShapeDtypeStruct | NamedArray:
        """An abstract array of this shape.

        Returns:
          A `jax.ShapeDtypeStruct`, inside a `NamedArray` when there are named axes.

        Raises:
          ValueError: When a dimension is unknown.
          TypeError: When the dtype is abstract.
        """
        variables = [
            dim_text(dim)
            for dim in (*self.shape, *self.named_shape.values())
            if isinstance(dim, (DimVar, MultiDimVar, RemainingAxisPlaceholder))
        ]
        if variables:
            raise ValueError(
                f"into_pytree: every dimension must be known; {self!r} has variables. Substitute "
                "them first (full_substitute_dimension_variables)."
            )
        positional = [_size(dim) for dim in self.shape]
        named = collections.OrderedDict((n, _size(dim)) for n, dim in self.named_shape.items())
        abstract: Any = jax.ShapeDtypeStruct  # its constructor has no annotations
        data = abstract((*positional, *named.values()), _exact_dtype(self.dtype))
        return NamedArray(named, data) if named else data

    def __repr__(self) -> str:
        return f"<ArraySpec {dtype_text(self.dtype)}({shape_text(self.shape, self.named_shape)})>"


def _exact_dtype(dtype: Any) -> Any:
    if not isinstance(dtype, type) and jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype
    return np.dtype(dtype)


def _size(dim: Any) -> Any:
    return dim.size if isinstance(dim, KnownDim) else dim


def dtype_text(dtype: Any) -> str:
    """A dtype for readers; `any` for no constraint."""
    if dtype is np.generic:
        return "any"
    return dtype.__name__ if isinstance(dtype, type) else str(dtype)


def variable_text(name: Any) -> str:
    """A variable's name for readers, `size['height']` for a member of a group."""
    return name if isinstance(name, str) else f"{name[0]}[{name[1]!r}]"


def dim_text(dim: Any) -> str:
    """One dimension for readers, variables in braces."""
    if isinstance(dim, MultiDimVar):
        return f"{{*{dim.name}}}"
    if isinstance(dim, DimVar):
        return f"{{{variable_text(dim.name)}}}"
    if isinstance(dim, KnownDim):
        return f"{{{variable_text(dim.name)}={dim.size}}}"
    return str(dim)


def shape_text(positional: Iterable[Any], named: Mapping[Hashable, Any]) -> str:
    """`2, {a} | batch:3` for readers."""
    first = ", ".join(map(dim_text, positional))
    if not named:
        return first
    rest = ", ".join(
        f"{{**{name.name}}}" if isinstance(name, MultiDimVar) else f"{name}:{dim_text(dim)}"
        for name, dim in named.items()
    )
    return f"{first} | {rest}".strip()


jax.tree_util.register_pytree_with_keys(
    ArraySpec,
    lambda spec: ((), spec),
    lambda spec, _: spec,
    lambda spec: ((), spec),
)


def as_array_structure(tree: Any) -> StructureAnnotation:
    """The tree with its arrays replaced by their specs.

    Args:
      tree: Any tree.

    Returns:
      The same tree with arrays, scalars, abstract arrays and whole named arrays as `ArraySpec`s and
      other leaves as `ANY`. It has no leaves, so it is static metadata under JAX.
    """

    def abstract(leaf: Any) -> Any:
        if isinstance(leaf, NamedArrayBase):
            return ArraySpec(leaf.positional_shape, leaf.dtype, leaf.named_shape)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return ArraySpec(leaf.shape, leaf.dtype)
        if isinstance(leaf, (bool, int, float, complex)):
            return ArraySpec((), jnp.result_type(leaf))
        return ANY

    return jax.tree_util.tree_map(abstract, tree, is_leaf=is_namedarray)
