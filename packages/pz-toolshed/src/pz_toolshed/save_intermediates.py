"""Saves the values that flow through a model, without changing what it computes.

The idea: a saver is an identity layer that stores its input in a state variable, so a probe is
an edit of the model like any other and works wherever state does: eagerly, under jit, and inside
layer stacks (where the saved values come back with the stack axis).

    from pz_core.selectors import select
    from pz_toolshed import save_intermediates

    sites = select(model).at_instances_of(Softmax)
    output, saved = save_intermediates.call_and_save(sites, tokens)
    attention = list(saved.values())    # one entry per selected layer, in tree order

`saving_outputs` is the same in two steps, for a model that is called often;
`saving_all_intermediates` puts a saver between any two layers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from pz_core.selectors import Selection, select
from pz_core.struct import pytree_dataclass
from pz_core.tree_util import pretty_keystr
from pz_core.variables import ScopedStateVarLabel, StateVariable, unbind_state_vars
from pz_named.shapecheck import as_array_structure
from pz_nn.grouping import Identity, Sequential, is_sequential_or_named
from pz_nn.layer import Layer

__all__ = [
    "CollectIntermediates",
    "SaveIntermediate",
    "SaveIntermediateShape",
    "call_and_save",
    "saved_intermediates",
    "saving_all_intermediates",
    "saving_outputs",
]

_SITE = "saved_from"


def _empty_variable() -> StateVariable[Any]:
    # Empty, and without metadata: a layer stack around it then keeps one value per layer.
    return StateVariable(None)


def _empty_list_variable() -> StateVariable[list[Any]]:
    return StateVariable([])


@pytree_dataclass
class SaveIntermediate(Layer):
    """Stores its input and returns it unchanged; the last call wins.

    The input may be any pytree of arrays. Inside a layer stack the arrays must be named arrays,
    and the saved ones carry the stack axis.

    Attributes:
      saved: Holds the last input; None before the first call.
    """

    saved: StateVariable[Any] = dataclasses.field(default_factory=_empty_variable)

    def __call__(self, argument: Any, /, **_side_inputs: Any) -> Any:
        """Stores and returns `argument`."""
        self.saved.value = argument
        return argument


@pytree_dataclass
class SaveIntermediateShape(Layer):
    """Stores the shapes, axis names and dtypes of its input, and returns it unchanged.

    What is stored (`pz_named.shapecheck.as_array_structure`) has no array in it, so it costs no
    memory and leaves a compiled function as structure.

    Attributes:
      saved: Holds the last input's structure; None before the first call.
    """

    saved: StateVariable[Any] = dataclasses.field(default_factory=_empty_variable)

    def __call__(self, argument: Any, /, **_side_inputs: Any) -> Any:
        """Stores the structure of `argument` and returns `argument`."""
        self.saved.value = as_array_structure(argument)
        return argument


@pytree_dataclass
class CollectIntermediates(Layer):
    """Appends its input to a list and returns it unchanged; every call is kept.

    For a layer that runs several times in one forward pass. The list is part of the structure
    of the model's state: under jit, each call with a longer list compiles again, so empty it
    (`layer.saved.value = []`) between calls.

    Attributes:
      saved: Holds the list of inputs, oldest first.
    """

    saved: StateVariable[list[Any]] = dataclasses.field(default_factory=_empty_list_variable)

    def __call__(self, argument: Any, /, **_side_inputs: Any) -> Any:
        """Appends `argument` to the list and returns it."""
        self.saved.value = [*self.saved.value, argument]
        return argument


_SaverClass = type[SaveIntermediate] | type[SaveIntermediateShape] | type[CollectIntermediates]


class _SaverMaker:
    """Makes savers whose variables are numbered in creation order and know their site."""

    def __init__(self, group: Any, saver_class: _SaverClass):
        self._group = group
        self._saver_class = saver_class
        self._indices = itertools.count()

    def __call__(self, site: str) -> Layer:
        label = None
        if self._group is not None:
            label = ScopedStateVarLabel(self._group, next(self._indices))
        initial: list[Any] | None = [] if self._saver_class is CollectIntermediates else None
        variable: StateVariable[Any] = StateVariable(initial, label=label, metadata={_SITE: site})
        return self._saver_class(variable)


def saving_outputs(
    selection: Selection[Any],
    *,
    intermediates_group: Any = "intermediates",
    saver_class: _SaverClass = SaveIntermediate,
) -> Any:
    """Puts a saver behind every selected layer.

    Each selected layer `l` is replaced by `Sequential([l, saver])`, wherever it stands: in a
    list, in a field, inside a layer stack.

    Args:
      selection: Layers of a model, each with at least one.
      intermediates_group: Group of the savers' labels; they are numbered in tree order. None
        gives automatic labels, which differ from call to call (and so compile again).
      saver_class: `SaveIntermediate`, `SaveIntermediateShape` or `CollectIntermediates`.

    Returns:
      The whole model with the savers. It shares its variables with the original; read the
      values with `saved_intermediates` after a call.

    Raises:
      ValueError: If nothing is selected, or something selected is no layer.
    """
    if selection.is_empty():
        raise ValueError(
            "saving_outputs(selection): nothing is selected, so nothing would be saved. "
            "Select at least one layer, e.g. select(model).at_instances_of(Linear)."
        )
    model = selection.deselect()
    make_saver = _SaverMaker(intermediates_group, saver_class)

    def with_saver(path: Any, layer: Any) -> Layer:
        site = pretty_keystr(path, model)
        if not isinstance(layer, Layer):
            raise ValueError(
                f"saving_outputs(selection): only layers have outputs, but {site or 'the root'} "
                f"is a {type(layer).__name__}. Select the layer that holds it."
            )
        return Sequential([layer, make_saver(site)])

    return selection.apply(with_saver, with_keypath=True)


def saved_intermediates(model: Any, intermediates_group: Any = "intermediates") -> dict[str, Any]:
    """Reads what the savers in a model have saved.

    Args:
      model: A model made by `saving_outputs` or `saving_all_intermediates`.
      intermediates_group: The group given when the savers were put in.

    Returns:
      The saved values by site, in tree order. A site is the path of the layer whose output was
      saved, in the model before the savers were put in; where an input was saved, the path
      followed by `" (input)"`.

    Raises:
      ValueError: If the model has no savers of that group.
    """
    variables = unbind_state_vars(
        model, lambda variable: _is_in_group(variable, intermediates_group)
    )
    saved = {variable.metadata[_SITE]: variable.value for variable in variables[1]}
    if not saved:
        raise ValueError(
            f"saved_intermediates(model): no savers of group {intermediates_group!r} are in this "
            f"{type(model).__name__}. Read from the model that saving_outputs or "
            "saving_all_intermediates returned; the original does not change."
        )
    return saved


def call_and_save(
    selection: Selection[Any], argument: Any, /, **side_inputs: Any
) -> tuple[Any, dict[str, Any]]:
    """Calls a model once and returns the outputs of the selected layers beside its own.

    The savers exist for this call only. State variables of the model change as in any call.

    Args:
      selection: Layers of a model that is itself a layer.
      argument: The model's input.
      **side_inputs: The model's side inputs.

    Returns:
      The model's output, and the selected layers' outputs by their path, in tree order. A layer
      that was not called has None.

    Raises:
      ValueError: If nothing is selected, or something selected is no layer.
    """
    group = "call_and_save"
    probed = saving_outputs(selection, intermediates_group=group)
    output = probed(argument, **side_inputs)
    return output, saved_intermediates(probed, group)


def _is_in_group(variable: Any, group: Any) -> bool:
    if _SITE not in variable.metadata:
        return False
    label = variable.label
    if group is None:
        return not isinstance(label, ScopedStateVarLabel)
    return isinstance(label, ScopedStateVarLabel) and label.group == group


def saving_all_intermediates(
    model: Layer,
    intermediates_group: Any = "intermediates",
    shapes_only: bool = False,
    where: Callable[[Layer], bool] | None = None,
) -> Layer:
    """Puts a saver before, after and between all layers of a model, each value saved once.

    Args:
      model: The model.
      intermediates_group: Group of the savers' labels; they are numbered in tree order. None
        gives automatic labels, which differ from call to call (and so compile again).
      shapes_only: Save the structure of each value instead of the value.
      where: Tells for a layer whether the values around it, and in it, are wanted. Default: all.

    Returns:
      A copy of the model with the savers; it shares its variables with the original.
    """
    saver_class = SaveIntermediateShape if shapes_only else SaveIntermediate
    instrument = _Instrumenter(model, _SaverMaker(intermediates_group, saver_class), where)
    return instrument.around((), model)


class _Instrumenter:
    """The recursive rewrite behind `saving_all_intermediates`.

    Two rules call each other. `around` saves what enters a layer, what leaves it, and all between;
    `inside` saves only what is between, because whoever called it saves the two ends. A value
    that an `Identity` passes on was saved already.
    """

    def __init__(
        self, model: Layer, make_saver: _SaverMaker, where: Callable[[Layer], bool] | None
    ):
        self._model = model
        self._make_saver = make_saver
        self._where = where

    def around(self, path: tuple[Any, ...], layer: Layer) -> Layer:
        if self._where is not None and not self._where(layer):
            return self.inside(path, layer)
        before = self._make_saver(f"{self._site(path)} (input)")
        if is_sequential_or_named(layer):
            return self._with_sublayers(layer, [before, *self._children(path, layer, last=True)])
        parts = [before, self.inside(path, layer)]
        if not isinstance(layer, Identity):
            parts.append(self._make_saver(self._site(path)))
        return Sequential(parts)

    def inside(self, path: tuple[Any, ...], layer: Layer) -> Layer:
        if is_sequential_or_named(layer):
            return self._with_sublayers(layer, list(self._children(path, layer, last=False)))
        below: Any = select(layer).at_children().at_instances_of(Layer)
        rewritten: Layer = below.apply(
            lambda subpath, child: self.around(path + subpath, child), with_keypath=True
        )
        return rewritten

    def _children(self, path: tuple[Any, ...], group: Any, *, last: bool) -> Iterator[Any]:
        """The group's rewritten children, each followed by its saver (the last one if `last`)."""
        children = select(group).at(lambda g: g.sublayers).at_children().get_by_path()
        for index, (subpath, child) in enumerate(children.items()):
            is_layer = isinstance(child, Layer)
            yield self.inside(path + subpath, child) if is_layer else child
            if isinstance(child, Identity) or (index == len(children) - 1 and not last):
                continue
            if is_layer and self._where is not None and not self._where(child):
                continue
            yield self._make_saver(self._site(path + subpath))

    def _with_sublayers(self, group: Any, sublayers: list[Any]) -> Layer:
        fields = {**group.attributes_dict(), "sublayers": type(group.sublayers)(sublayers)}
        rewritten: Layer = type(group).from_attributes(**fields)
        return rewritten

    def _site(self, path: tuple[Any, ...]) -> str:
        return pretty_keystr(path, self._model) or type(self._model).__name__
