"""Replacing the dimension variables of a pattern.

Example:
    >>> from pz_named.array_specs import ArraySpec
    >>> from pz_named.dimensions import var
    >>> spec = ArraySpec((var("n"), *var("rest")))
    >>> from pz_named.substitution import *
    >>> full_substitute_dimension_variables(
    ...     spec, DimensionVariableSubstitution({"n": 3}, {"rest": (4, 5)}, {})
    ... )
    <ArraySpec any(3, 4, 5)>
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pz_named.array_specs import ArraySpec, StructureAnnotation
from pz_named.dimensions import DimVar, KnownDim, MultiDimVar, RemainingAxisPlaceholder

__all__ = [
    "DimensionVariableSubstitution",
    "full_substitute_dimension_variables",
    "get_dimension_variables",
]


@dataclasses.dataclass
class DimensionVariableSubstitution:
    """What to put for each variable.

    Attributes:
      size_variables: Sizes (or variables) by the name of a `DimVar`.
      sequence_variables: Runs of dimensions by the name of a `*var`.
      mapping_variables: Named dimensions by the name of a `**var`.
    """

    size_variables: dict[Any, Any] = dataclasses.field(default_factory=dict)
    sequence_variables: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    mapping_variables: dict[str, Mapping[Any, Any]] = dataclasses.field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether there is nothing to substitute."""
        return not (self.size_variables or self.sequence_variables or self.mapping_variables)


def _is_spec(node: Any) -> bool:
    return isinstance(node, ArraySpec)


def get_dimension_variables(structure: StructureAnnotation) -> DimensionVariableSubstitution:
    """The variables of all specs in a tree, each substituted by itself.

    Args:
      structure: A tree with `ArraySpec`s.

    Returns:
      A substitution that changes nothing but `KnownDim`s; edit it to substitute some.
    """
    found = DimensionVariableSubstitution()
    for spec in jax.tree_util.tree_leaves(structure, is_leaf=_is_spec):
        if not isinstance(spec, ArraySpec):
            continue
        for dim in (*spec.shape, *spec.named_shape.values()):
            if isinstance(dim, DimVar):
                found.size_variables[dim.name] = dim
            elif isinstance(dim, MultiDimVar):
                found.sequence_variables[dim.name] = (dim,)
        for axis in spec.named_shape:
            if isinstance(axis, MultiDimVar):
                found.mapping_variables[axis.name] = {axis: RemainingAxisPlaceholder()}
    return found


def _dim(dim: Any, substitution: DimensionVariableSubstitution) -> Any:
    if isinstance(dim, DimVar):
        return substitution.size_variables[dim.name]
    return dim.size if isinstance(dim, KnownDim) else dim


def _substituted(
    path: str, spec: ArraySpec, substitution: DimensionVariableSubstitution
) -> ArraySpec:
    shape: list[Any] = []
    for dim in spec.shape:
        if isinstance(dim, MultiDimVar):
            shape += substitution.sequence_variables[dim.name]
        else:
            shape.append(_dim(dim, substitution))
    named: dict[Any, Any] = {}
    for axis, dim in spec.named_shape.items():
        if not isinstance(axis, MultiDimVar):
            named[axis] = _dim(dim, substitution)
            continue
        group = substitution.mapping_variables[axis.name]
        for new_axis in group:
            elsewhere = new_axis in spec.named_shape and new_axis != axis
            if new_axis in named or elsewhere:
                raise ValueError(
                    f"full_substitute_dimension_variables: at root{path}, the axis {new_axis!r} of "
                    f"variable {axis.name!r} is in the named shape already; spec={spec!r}, "
                    f"substitution={dict(group)!r}. Rename one of the two axes."
                )
        named.update(group)
    return ArraySpec(tuple(shape), spec.dtype, named)


def full_substitute_dimension_variables(
    structure: StructureAnnotation, substitution: DimensionVariableSubstitution
) -> StructureAnnotation:
    """Replaces every dimension variable of a tree of specs.

    Args:
      structure: A tree with `ArraySpec`s; other nodes stay.
      substitution: What to put for each; values may be variables themselves.

    Returns:
      The tree without the old variables, `KnownDim`s as plain sizes.

    Raises:
      KeyError: For a variable without substitute.
      ValueError: When an axis would be there twice.
    """

    def replace(path: Any, node: Any) -> Any:
        if isinstance(node, ArraySpec):
            return _substituted(jax.tree_util.keystr(path), node, substitution)
        return node

    return jax.tree_util.tree_map_with_path(replace, structure, is_leaf=_is_spec)
