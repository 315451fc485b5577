"""Applying the changes from one tree to another again.

>>> from pz_core.tree_diff import diff
>>> before, after = {"blocks": [1.0, 2.0, 3.0]}, {"blocks": [1.0, 3.0]}
>>> patch(before, diff(before, after)) == after
True
>>> patch({"blocks": [5.0, 6.0, 7.0]}, diff(before, after))
{'blocks': [5.0, 7.0]}
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax

from pz_core._leaf_comparison import is_array
from pz_core._nodes import children_of, keys_of, with_changes
from pz_core._places import Place, root_place
from pz_core._selection_text import path_text
from pz_core._struct_codegen import node_functions
from pz_core._text import describe_type, one_line
from pz_core.abstract_variables import AbstractVariable, AbstractVariableValue
from pz_core.tree_diff import (
    Added,
    ArrayChanged,
    Change,
    Removed,
    Replaced,
    StaticChanged,
    TreeDiff,
    VariableChanged,
    VariableToken,
    array_text,
)

__all__ = ["PatchError", "patch"]

KeyPath: TypeAlias = tuple[Any, ...]


class PatchError(ValueError):
    """A diff does not fit the tree that it is applied to.

        patch(other_model, diff(model, edited_model))  # error: other_model has no third block

    Repair: apply it to a tree that has the structure of the diff's first tree along the changed
    paths.
    """


def patch(tree: Any, diff: TreeDiff) -> Any:
    """Applies a diff to a tree.

    Args:
      tree: A tree that has the structure of the diff's first tree along the changed paths.
      diff: The changes.

    Returns:
      The changed tree; applied to its first tree, a diff gives the second one. What did not change
      is shared with `tree`; new variables are copies.

    Raises:
      PatchError: If a path is not in the tree, or leads to something else than the diff says.
    """
    return _Patcher(tree, diff).run()


@dataclasses.dataclass
class _ContainerEdits:
    """What happens to one node of the tree.

    Attributes:
      place: Where it is.
      children: New children by index.
      removed: Indices of children to remove.
      added: New items by index or key in the result.
      static: New values of static fields.
    """

    place: Place
    children: dict[int, Any] = dataclasses.field(default_factory=dict)
    removed: set[int] = dataclasses.field(default_factory=set)
    added: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    static: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Patcher:
    """Applies the changes of one diff, deepest nodes first."""

    def __init__(self, tree: Any, diff: TreeDiff) -> None:
        self._root = root_place(tree)
        self._changes = diff.changes
        self._steps: dict[int, dict[Any, Place]] = {}  # a place's id -> the places one step below
        self._edits: list[dict[int, _ContainerEdits]] = [{}]  # by depth, then by place's id
        self._variables = [
            entry.unfreeze_as_copy()
            if isinstance(entry, AbstractVariableValue)
            else self._existing_variable(entry)
            for entry in diff.variables
        ]

    def _existing_variable(self, path: KeyPath) -> AbstractVariable:
        variable = self._place(path)[2]
        if not isinstance(variable, AbstractVariable):
            raise PatchError(
                f"patch: at {path_text(path)} the diff expects a variable, the tree has a "
                f"{describe_type(variable)}. Apply the diff to a tree like its first one."
            )
        return variable

    def _place(self, path: KeyPath) -> Place:
        place = self._root
        for depth, key in enumerate(path):
            below = self._steps.get(id(place))
            if below is None:
                children = children_of(place[2])
                keys = keys_of(place[2]) if children else ()
                below = self._steps[id(place)] = {
                    k: (place, i, child)
                    for i, (k, child) in enumerate(zip(keys, children or (), strict=True))
                }
            if key not in below:
                raise PatchError(
                    f"patch: the tree has nothing at {path_text(path[: depth + 1])}; at "
                    f"{path_text(path[:depth])} it has a {describe_type(place[2])}. Apply the diff "
                    f"to a tree like its first one."
                )
            place = below[key]
        return place

    def _edits_of(self, place: Place, depth: int) -> _ContainerEdits:
        while len(self._edits) <= depth:
            self._edits.append({})
        return self._edits[depth].setdefault(id(place), _ContainerEdits(place))

    def _with_variables(self, node: Any) -> Any:
        return jax.tree.map(
            lambda leaf: self._variables[leaf.number] if isinstance(leaf, VariableToken) else leaf,
            node,
        )

    def run(self) -> Any:
        """Returns the changed tree."""
        for change in self._changes:
            place, depth = self._place(change.path), len(change.path)
            _check_fits(change, place[2])
            if isinstance(change, Added):
                node = self._with_variables(change.node)
                self._edits_of(place, depth).added.append((change.key, node))
            elif isinstance(change, StaticChanged):
                self._edits_of(place, depth).static[change.field] = change.after
            elif isinstance(change, Removed):
                self._edits_of(place[0], depth - 1).removed.add(place[1])
            elif isinstance(change, Replaced | ArrayChanged | VariableChanged):
                after = self._with_variables(change.after)
                if not depth:
                    return after
                self._edits_of(place[0], depth - 1).children[place[1]] = after
        return self._rebuilt()

    def _rebuilt(self) -> Any:
        for depth in range(len(self._edits) - 1, 0, -1):
            for edits in self._edits[depth].values():
                place = edits.place
                parent = self._edits_of(place[0], depth - 1)
                parent.children[place[1]] = _edited_container(place[2], edits)
        at_root = self._edits[0].get(id(self._root))
        return self._root[2] if at_root is None else _edited_container(self._root[2], at_root)


def _check_fits(change: Change, node: Any) -> None:
    """Requires that the tree has at a change's path what the diff says."""
    where = path_text(change.path)
    if isinstance(change, Replaced) and describe_type(node) != change.before_type:
        expected = f"a {change.before_type}"
    elif isinstance(change, ArrayChanged) and not (
        is_array(node)
        and node.shape == change.before_shape
        and str(node.dtype) == change.before_dtype
    ):
        expected = f"an array {array_text(change.before_dtype, change.before_shape)}"
    elif isinstance(change, VariableChanged) and not isinstance(node, AbstractVariable):
        expected = f"a variable, {change.after!r}"
    elif isinstance(change, StaticChanged) and (
        type(node) not in node_functions
        or change.field not in node_functions[type(node)].static_names
    ):
        expected = f"a struct with the static field {change.field!r}"
    elif isinstance(change, Added) and type(node) not in (list, tuple, dict):
        expected = "a list, tuple or dictionary"
    else:
        return
    raise PatchError(
        f"patch: at {where} the diff expects {expected}, the tree has {one_line(node)} (a "
        f"{describe_type(node)}). Apply the diff to a tree like its first one."
    )


def _edited_container(node: Any, edits: _ContainerEdits) -> Any:
    if edits.children:
        node = with_changes(node, edits.children)
    if edits.static:
        functions = node_functions[type(node)]
        children, static = functions.flatten(node)
        named = dict(zip(functions.static_names, static, strict=True)) | edits.static
        node = functions.unflatten([named[name] for name in functions.static_names], children)
    if not edits.removed and not edits.added:
        return node
    if isinstance(node, dict):
        removed = {keys_of(node)[index].key for index in edits.removed}
        return {k: v for k, v in node.items() if k not in removed} | dict(edits.added)
    items = [item for index, item in enumerate(node) if index not in edits.removed]
    for index, item in sorted(edits.added, key=lambda pair: pair[0]):
        items.insert(index, item)
    return type(node)(items)
