"""Taking variables out of a tree, putting them back, freezing them in place.

    slots, variables = unbind_variables(tree)      # an ordinary pytree, and its variables
    tree = bind_variables(slots, variables)        # back again

`pz_core.variables` re-exports these functions and adds those for one kind of variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from pz_core._text import describe_type
from pz_core.abstract_variables import (
    AbstractVariable,
    AbstractVariableSlot,
    AbstractVariableValue,
    VariableConflictError,
)
from pz_core.labeled_variables import DistinctLabel

__all__ = [
    "VariablePredicate",
    "bind_variables",
    "check_predicate",
    "freeze_variables",
    "unbind_variables",
]

VariablePredicate = Callable[[Any], bool]


def _is_slot(node: Any) -> bool:
    return isinstance(node, AbstractVariableSlot)


def check_predicate(caller: str, predicate: VariablePredicate | None) -> None:
    """Requires a function: a second tree passed by mistake would silently select nothing."""
    if predicate is not None and not callable(predicate):
        raise TypeError(
            f"{caller}: predicate must be a function of one variable, got "
            f"{describe_type(predicate)}. To work on several trees pass them as one, for example "
            f"as a tuple."
        )


def unbind_variables(
    tree: Any, predicate: VariablePredicate | None = None, freeze: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """Replaces variables by slots.

    Args:
      tree: Any pytree. A variable may occur in it several times.
      predicate: Called with each occurrence of a variable; those for which it is false stay. By
        default all are taken.
      freeze: Whether to return frozen values instead of the variables themselves.

    Returns:
      The tree with slots, and the distinct variables in order of first occurrence.

    Raises:
      VariableConflictError: If two different variables have one slot, or the slot of a variable
        occurs in the tree already.
      TypeError: If a label is not hashable, or the predicate no function.
    """
    check_predicate("unbind_variables", predicate)
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=_is_slot)
    slots_before: set[Any] = set()
    variables: dict[AbstractVariableSlot, AbstractVariable] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, AbstractVariable):
            if predicate is None or predicate(leaf):
                slot = leaf.get_slot()
                if variables.setdefault(slot, leaf) is not leaf:
                    raise VariableConflictError(_two_variables_text(tree, slot))
                leaves[i] = slot
        elif isinstance(leaf, AbstractVariableSlot):
            slots_before.add(leaf)
    for slot in slots_before & variables.keys():
        raise VariableConflictError(
            f"unbind_variables: the tree contains both a variable and an empty slot for {slot!r}. "
            f"Bind the slot first, or give one of them another label."
        )
    taken = tuple(variables.values())
    return (
        jax.tree_util.tree_unflatten(treedef, leaves),
        tuple(variable.freeze() for variable in taken) if freeze else taken,
    )


def _two_variables_text(tree: Any, slot: AbstractVariableSlot) -> str:
    places = _first_places(
        (path, id(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, AbstractVariable) and leaf.get_slot() == slot
    )
    return (
        f"unbind_variables: two different variables have the slot {slot!r}, at {places}. Use the "
        f"same object in both places if they should be shared; otherwise give one of them another "
        f"label."
    )


def _two_slots_text(tree: Any, slot: AbstractVariableSlot) -> str:
    places = _first_places(
        (path, id(leaf.label))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_slot)
        if leaf == slot and isinstance(leaf.label, DistinctLabel)
    )
    return (
        f"bind_variables: two variables were made with the slot {slot!r}, at {places}; one given "
        f"variable cannot be both. Make it once and use the same object in both places if it should "
        f"be shared; otherwise give one of them another name."
    )


def _first_places(occurrences: Iterable[tuple[Any, int]]) -> str:
    """Where the first two of several objects are, each given by path and identity."""
    first: dict[int, str] = {}
    for path, identity in occurrences:
        first.setdefault(identity, "root" + jax.tree_util.keystr(path))
    return " and ".join(list(first.values())[:2])


def bind_variables(
    tree: Any,
    variables: Iterable[AbstractVariable | AbstractVariableValue],
    allow_unused: bool = False,
    unfreeze_as_copy: bool = False,
) -> Any:
    """Replaces slots by variables, or by values.

    Args:
      tree: A pytree with slots.
      variables: What to put in. Every slot equal to that of an entry is replaced by that one
        object; other slots stay.
      allow_unused: Whether an entry may have no slot in the tree.
      unfreeze_as_copy: Whether to make new variables of the entries, which must be values then.

    Returns:
      The tree with variables.

    Raises:
      ValueError: If two entries have one slot, an entry is not used, or one that is no value should
        be unfrozen.
      VariableConflictError: If slots of an entry were made apart, with a `DistinctLabel` each.
    """
    by_slot: dict[AbstractVariableSlot, Any] = {}
    for variable in variables:
        slot = variable.get_slot()
        if slot in by_slot:
            raise ValueError(
                f"bind_variables: two of the given variables have the slot {slot!r}. Pass each "
                f"variable once, and give different variables different labels."
            )
        if unfreeze_as_copy:
            if not isinstance(variable, AbstractVariableValue):
                raise ValueError(
                    f"bind_variables(unfreeze_as_copy=True) takes frozen values, got a "
                    f"{describe_type(variable)} for {slot!r}. Pass `variable.freeze()`."
                )
            variable = variable.unfreeze_as_copy()
        by_slot[slot] = variable
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=_is_slot)
    used = set()
    made: dict[AbstractVariableSlot, DistinctLabel] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, AbstractVariableSlot) and leaf in by_slot:
            label = getattr(leaf, "label", None)
            if isinstance(label, DistinctLabel) and made.setdefault(leaf, label) is not label:
                raise VariableConflictError(_two_slots_text(tree, leaf))
            used.add(leaf)
            leaves[i] = by_slot[leaf]
    unused = [slot for slot in by_slot if slot not in used]
    if unused and not allow_unused:
        raise ValueError(
            f"bind_variables: the tree has no slot for {unused!r}. Pass allow_unused=True if that "
            f"is intended."
        )
    return jax.tree_util.tree_unflatten(treedef, leaves)


def freeze_variables(tree: Any, predicate: VariablePredicate | None = None) -> Any:
    """Replaces variables by their frozen values.

    Args:
      tree: Any pytree.
      predicate: Which variables; by default all.

    Returns:
      The tree with values. A variable that occurs twice gives two equal values.
    """
    check_predicate("freeze_variables", predicate)

    def freeze(leaf: Any) -> Any:
        if isinstance(leaf, AbstractVariable) and (predicate is None or predicate(leaf)):
            return leaf.freeze()
        return leaf

    return jax.tree.map(freeze, tree)
