"""A tree that JAX passes in and out of compiled functions as a flat list."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

__all__ = ["Packed", "Structure"]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A tree structure that hashes once, since it is compared at every step."""

    treedef: Any

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.treedef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Structure)
            and self._hash == other._hash
            and bool(self.treedef == other.treedef)
        )


class Packed:
    """A tree as a flat list of its leaves and its structure.

    JAX takes a tree apart and puts it together again, node by node in Python, at every call of a
    compiled function. For the parameters and the optimizer's state, which go in and come out of each
    step, that costs more than the call; packed, they are one node.
    """

    def __init__(self, leaves: list[Any], structure: Structure):
        self.leaves = leaves
        self.structure = structure

    @classmethod
    def of(cls, tree: Any) -> Packed:
        """Packs a tree."""
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        return cls(leaves, Structure(treedef))

    def tree(self) -> Any:
        """The tree."""
        return jax.tree_util.tree_unflatten(self.structure.treedef, self.leaves)

    def like(self, tree: Any) -> Packed:
        """Packs another tree, sharing the structure if it is the same."""
        other = Packed.of(tree)
        same = other.structure == self.structure
        return Packed(other.leaves, self.structure) if same else other


jax.tree_util.register_pytree_node(
    Packed,
    lambda packed: (packed.leaves, packed.structure),
    lambda structure, leaves: Packed(list(leaves), structure),
)
