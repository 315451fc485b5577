"""Edits of some blocks of a layer stack, which stays one loop.

An edit is written for a block and applied to the stacked block as a whole; a mask over the stack axis
says for which blocks it holds:

    edited = edit_blocks(stack, [3, 7], lambda block: select(block).at_instances_of(Softmax).apply(f))

Where only array values change, the stacked arrays are merged. Where structure changes, the smallest
layer around the change becomes a `ForSomeBlocks`, which runs one of two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_core.tree_util import tree_flatten_exactly_one_level
from pz_core.variables import (
    AbstractVariable,
    LabeledVariable,
    Parameter,
    StateVariable,
    bind_variables,
    unbind_variables,
)
from pz_named import named_axes as nx
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack

__all__ = ["ForSomeBlocks", "edit_blocks"]


@pytree_dataclass
class ForSomeBlocks(Layer):
    """Runs one of two layers: `edited` in the blocks where `chosen` holds, else `original`.

    Only the layer that is chosen is run. Both must return the same structure, names and dtypes. Variables
    may stand in both.

    Attributes:
        chosen: Boolean named array with the axis of the stack around it, or without axes.
        edited: The layer of the chosen blocks.
        original: The layer of the others.
    """

    chosen: Any
    edited: Any
    original: Any

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the layer that is chosen for this block."""
        chosen = self.chosen.unwrap()
        if not isinstance(chosen, jax.core.Tracer):
            return (self.edited if chosen else self.original)(argument, **side_inputs)
        (edited, original, slots), variables = unbind_variables(
            (self.edited, self.original, side_inputs)
        )
        values = [variable.freeze() for variable in variables]

        def run(layer: Any) -> Any:
            copies = [value.unfreeze_as_copy() for value in values]
            layer, inputs = bind_variables((layer, slots), copies, allow_unused=True)
            output = layer(argument, **inputs)
            return output, [copy.freeze() for copy in copies]

        expected = jax.eval_shape(lambda: run(original))
        output, new_values = jax.lax.cond(
            chosen, lambda: _like(run(edited), expected), lambda: run(original)
        )
        for variable, value in zip(variables, new_values, strict=True):
            variable.update(value)
        return output


def _like(results: Any, expected: Any) -> Any:
    def convert(new: Any, old: Any) -> Any:
        return new.order_like(old) if nx.is_namedarray(new) and nx.is_namedarray(old) else new

    return jax.tree.map(convert, results, expected, is_leaf=nx.is_namedarray)


def edit_blocks(
    stack: LayerStack, blocks: int | Sequence[int] | Any, edit: Callable[[Any], Any]
) -> LayerStack:
    """Edits some blocks of a stack.

    Args:
        stack: The stack; it stays as it is.
        blocks: Number or numbers of the blocks, negative ones from the end, or a boolean array with one
            entry per block.
        edit: Function from a block to the edited block. It gets the stacked block, whose arrays have the
            stack axis, and is called once.

    Returns:
        A stack in which the other blocks compute as before. Parameters with new values are new objects of
        the same label.

    Raises:
        IndexError: If there is no such block.
        ValueError: If the edit changes something outside of any layer.

    >>> from pz_nn.linear_and_affine import ConstantRescale
    >>> stack = LayerStack(ConstantRescale(1.0), "blocks", 4)
    >>> edited = edit_blocks(stack, [1, 3], lambda block: ConstantRescale(10.0))
    >>> edited(nx.ones({"f": 1})).unwrap("f").tolist()
    [100.0]
    """
    chosen = _mask(stack, blocks)
    original = stack.stacked_sublayers
    merged = _merge(original, edit(original), chosen, {})
    if merged is _STRUCTURAL:
        raise ValueError(
            "edit_blocks: the edit replaced what is no layer, or made of a layer what is none, so there is "
            "no layer in which old and new can be chosen between. Return a layer from the edit."
        )
    return LayerStack(
        merged, stack.stack_axis, stack.stack_axis_size, stack.unroll, stack.checkpoint
    )


def _mask(stack: LayerStack, blocks: Any) -> nx.NamedArray:
    size = stack.stack_axis_size
    given = np.asarray(blocks.unwrap(stack.stack_axis) if nx.is_namedarray(blocks) else blocks)
    if given.dtype == np.bool_ and given.shape == (size,):
        return nx.wrap(jnp.asarray(given), stack.stack_axis)
    numbers = given.reshape(-1).astype(int) if given.size == 0 else np.atleast_1d(given)
    if not np.issubdtype(numbers.dtype, np.integer) or (
        numbers.size and (numbers.min() < -size or numbers.max() >= size)
    ):
        raise IndexError(
            f"edit_blocks: blocks must be numbers in [-{size}, {size - 1}], or {size} booleans, but are "
            f"{blocks!r}. The stack has {size} blocks along {stack.stack_axis!r}."
        )
    mask = np.zeros(size, bool)
    mask[numbers] = True
    return nx.wrap(jnp.asarray(mask), stack.stack_axis)


_STRUCTURAL = object()  # the trees differ here in more than values


def _merge(original: Any, edited: Any, chosen: nx.NamedArray, made: dict[int, Any]) -> Any:
    """The tree that is `edited` where `chosen` holds; `_STRUCTURAL` where no array can say so."""
    if edited is original:
        return original
    if nx.is_namedarray(original) and nx.is_namedarray(edited):
        return _merge_arrays(original, edited, chosen)
    if isinstance(original, LabeledVariable) and isinstance(edited, LabeledVariable):
        return _merge_variables(original, edited, chosen, made)
    merged = _merge_children(original, edited, chosen, made)
    if merged is _STRUCTURAL and isinstance(original, Layer) and isinstance(edited, Layer):
        return ForSomeBlocks(chosen, edited, original)
    return merged


def _merge_arrays(original: Any, edited: Any, chosen: nx.NamedArray) -> Any:
    (axis,) = chosen.named_shape
    shapes = [
        {name: size for name, size in array.named_shape.items() if name != axis}
        for array in (original, edited)
    ]
    same_kind = original.dtype == edited.dtype
    if (
        shapes[0] != shapes[1]
        or original.positional_shape
        or edited.positional_shape
        or not same_kind
    ):
        return _STRUCTURAL
    return nx.nmap(jnp.where)(chosen, edited, original)


def _merge_variables(
    original: Any, edited: Any, chosen: nx.NamedArray, made: dict[int, Any]
) -> Any:
    if type(original) is not type(edited) or original.label != edited.label:
        return _STRUCTURAL
    if id(edited) not in made:
        value = _merge(original.value, edited.value, chosen, made)
        if value is _STRUCTURAL:
            return _STRUCTURAL
        kind: Any = Parameter if isinstance(edited, Parameter) else StateVariable
        made[id(edited)] = kind(value=value, label=edited.label, metadata=dict(edited.metadata))
    return made[id(edited)]


def _merge_children(original: Any, edited: Any, chosen: nx.NamedArray, made: dict[int, Any]) -> Any:
    flat_original = tree_flatten_exactly_one_level(original)
    flat_edited = tree_flatten_exactly_one_level(edited)
    if flat_original is None or flat_edited is None:
        return _merge_leaves(original, edited, chosen)
    structure: Any = flat_edited[1]
    if structure != flat_original[1]:
        return _STRUCTURAL
    children = [
        _merge(a, b, chosen, made)
        for (_, a), (_, b) in zip(flat_original[0], flat_edited[0], strict=True)
    ]
    if any(child is _STRUCTURAL for child in children):
        return _STRUCTURAL
    return structure.unflatten(children)


def _merge_leaves(original: Any, edited: Any, chosen: nx.NamedArray) -> Any:
    if isinstance(original, AbstractVariable) or isinstance(edited, AbstractVariable):
        return _STRUCTURAL
    numbers = (bool, int, float)
    if isinstance(original, numbers) and isinstance(edited, numbers):
        if type(original) is type(edited) and original == edited:
            return original
        return nx.nmap(jnp.where)(chosen, edited, original)
    return _STRUCTURAL
