"""The names under which the arrays of a tree are saved.

The idea: a name says what an array is, not where it stands, so that a checkpoint outlives edits of
the model around it.

* the value of a parameter: its label, `net/mlp.weights`
* the value of a state variable: `state:` and its label; automatic labels differ between processes,
  so for them `state@` and the path of the variable
* in both, followed by the path within the value if that is no single array; where the path meets
  frozen variables (an optimizer's moments), their labels stand for their positions
* the base key of a random stream: `stream:` and the label of its offset
* other arrays outside of layers (a trainer's key): `array:` and their path

Arrays that are plain fields of layers (an epsilon, a mask value) belong to the architecture and are
not saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from pz_core.random_stream import RandomStream
from pz_core.tree_util import pretty_keystr, tree_flatten_exactly_one_level
from pz_core.variables import (
    AbstractVariable,
    AbstractVariableSlot,
    AbstractVariableValue,
    AutoStateVarLabel,
    ParameterSlot,
    ParameterValue,
    bind_variables,
    unbind_variables,
)
from pz_named.named_axes import is_namedarray
from pz_nn.layer import Layer
from pz_toolshed._array_leaves import is_array

__all__ = ["SlotValue", "map_entries"]

Replace = Callable[[str, Any], Any]
SlotValue = Callable[[str], Any]


def map_entries(tree: Any, replace: Replace, slot_value: SlotValue | None = None) -> Any:
    """Replaces every array that belongs into a checkpoint.

    Args:
      tree: Any pytree, variables included. It does not change.
      replace: Called with the name and the array (a named array as a whole), once for each of its
        places; returns what is to stand there.
      slot_value: Called with the name that the value of a `ParameterSlot` would have; returns a
        value for a new parameter, or None to leave the slot.

    Returns:
      The new tree; its variables are new.
    """
    auto_names = _names_of_auto_labelled(tree)
    slots, values = unbind_variables(tree, freeze=True)
    walk = _Walk(replace, auto_names)
    new_values = [walk.variable_value(value, "") for value in values]
    new_slots = walk.outside_variables(slots, "")
    if slot_value is not None:
        bound = {value.get_slot() for value in values}
        for slot in dict.fromkeys(_parameter_slots(slots)):
            new = None if slot in bound else slot_value(_label_text(slot.label))
            if new is not None:
                new_values.append(ParameterValue(label=slot.label, value=new, metadata={}))
    return bind_variables(new_slots, new_values, unfreeze_as_copy=True)


def _parameter_slots(tree: Any) -> list[ParameterSlot]:
    leaves = jax.tree_util.tree_leaves(tree, is_leaf=lambda x: isinstance(x, AbstractVariableSlot))
    return [leaf for leaf in leaves if isinstance(leaf, ParameterSlot)]


def _names_of_auto_labelled(tree: Any) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, AbstractVariable) and isinstance(
            getattr(leaf, "label", None), AutoStateVarLabel
        ):
            names.setdefault(leaf.label, pretty_keystr(path, tree))  # type: ignore[attr-defined]
    return names


def _label_text(label: Any) -> str:
    return label if isinstance(label, str) else repr(label)


class _Walk:
    """Walks a tree and names its arrays; see the module."""

    def __init__(self, replace: Replace, auto_names: dict[Any, str]):
        self._replace = replace
        self._auto_names = auto_names

    def outside_variables(self, node: Any, path: str, in_layer: bool = False) -> Any:
        """Rewrites a tree whose variables have been taken out."""
        if isinstance(node, AbstractVariableValue):
            return self.variable_value(node, "")
        if isinstance(node, RandomStream):
            label = getattr(node.offset, "label", path)
            base_key = self._replace(f"stream:{self._label(label)}", node.base_key)
            offset = self.outside_variables(node.offset, path, True)
            return RandomStream(base_key, offset)
        if _is_entry(node):
            return node if in_layer else self._replace(f"array:{path}", node)
        inside = in_layer or isinstance(node, Layer)
        return _map_children(
            node, path, lambda child, where, _: self.outside_variables(child, where, inside)
        )

    def variable_value(self, value: AbstractVariableValue, prefix: str) -> Any:
        """Rewrites the value of one variable."""
        if not hasattr(value, "label"):
            raise TypeError(
                f"a checkpoint cannot hold a {type(value).__name__}: what is saved needs a label. "
                "Take such variables out with unbind_variables first."
            )
        kind = "" if isinstance(value, ParameterValue) else "state:"
        name = f"{prefix}{kind}{self._label(value.label)}"
        if value.label in self._auto_names:
            name = f"{prefix}state@{self._auto_names[value.label]}"
        return self._with_value(value, name)

    def _with_value(self, value: Any, name: str) -> Any:
        new = self._inside_value(value.value, name)
        return type(value)(label=value.label, value=new, metadata=dict(value.metadata))

    def _inside_value(self, node: Any, name: str, parent: str | None = None) -> Any:
        if isinstance(node, AbstractVariableValue):
            # The position in its tuple says less than the label, and changes with the model.
            return self.variable_value(node, f"{name if parent is None else parent}/")
        if _is_entry(node):
            return self._replace(name, node)
        return _map_children(
            node, name, lambda child, where, up: self._inside_value(child, where, up)
        )

    def _label(self, label: Any) -> str:
        return self._auto_names.get(label, _label_text(label))


def _is_entry(node: Any) -> bool:
    return is_namedarray(node) or is_array(node) or isinstance(node, jax.ShapeDtypeStruct)


def _map_children(node: Any, path: str, function: Callable[[Any, str, str], Any]) -> Any:
    """Rewrites the children of a node; `function` gets each child, its path and the node's."""
    flat = tree_flatten_exactly_one_level(node)
    if flat is None:
        return node
    children, treedef = flat
    return treedef.unflatten(
        [function(child, path + jax.tree_util.keystr((key,)), path) for key, child in children]
    )
