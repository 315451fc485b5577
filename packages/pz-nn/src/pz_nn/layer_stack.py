"""One layer, many times: blocks of equal structure run by a loop instead of being written out.

A `LayerStack` holds a single prototype block whose named arrays carry an extra axis. The blocks run in a
`jax.lax.scan` over that axis, so time to trace and compile, and the size of the program, do not grow
with depth.

>>> import jax
>>> from pz_named import named_axes as nx
>>> from pz_nn.linear_and_affine import Linear
>>> def make_block(name, init_base_rng):
...     return Linear.from_config(name, init_base_rng, {"f": 2}, {"f": 2})
>>> key = jax.random.key(0)
>>> stack = LayerStack.from_sublayer_builder(make_block, "blocks", 24, key, {"name": "model/blocks"})
>>> stack(nx.ones({"f": 2})).named_shape                          # as 24 blocks one after another
{'f': 2}
>>> stack.stacked_sublayers.sublayers[0].weights.value.named_shape
{'blocks': 24, 'f': 2, 'f_out': 2}

What varies between blocks is told by names alone: a named array with the stack axis differs per block,
everything else is shared. State variables say the same in their metadata:

    StateVariable(value, metadata={"layerstack_axes": {"blocks": LayerStackVarBehavior.PER_LAYER}})
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Self

import jax

from pz_core.struct import pytree_dataclass
from pz_core.tree_util import CustomGetAttrKey
from pz_core.variables import StateVariable
from pz_named import named_axes as nx
from pz_nn import _block_building, _scan_stack, _stack_variables
from pz_nn._scan_stack import Checkpoint
from pz_nn.layer import Layer

__all__ = [
    "LayerStack",
    "LayerStackGetAttrKey",
    "LayerStackVarBehavior",
    "layerstack_axes_from_keypath",
]


class LayerStackVarBehavior(enum.Enum):
    """How a layer stack treats a state variable of its blocks.

    A state variable inside a stack says this for each stack axis around it, in
    `metadata["layerstack_axes"][stack_axis]`.

    Attributes:
        SHARED: One value, which the blocks read and write in turn.
        PER_LAYER: One value for each block; from outside, every array in it has the stack axis.
    """

    SHARED = "shared"
    PER_LAYER = "per_layer"


@dataclasses.dataclass(frozen=True)
class LayerStackGetAttrKey(CustomGetAttrKey):
    """Key of a stack's field in key paths; it says which axis everything below it gains.

    Attributes:
        name: The field.
        stack_axis: The stack axis.
        stack_axis_size: Its size.
    """

    stack_axis: str
    stack_axis_size: int

    def __str__(self) -> str:
        return f".{self.name}"


@pytree_dataclass
class LayerStack(Layer):
    """Runs `stack_axis_size` blocks of equal structure one after another.

    The blocks are written as one: `stacked_sublayers` is a single block in which every named array with
    the axis `stack_axis` stands for one array per block. Named arrays without it, plain arrays and
    Python scalars are shared by all blocks, as are the side inputs.

    The argument is handed from block to block and must keep its structure, names, sizes and dtypes;
    the order of its axes is restored after each block. Parameters are read-only inside. State variables
    in the blocks follow `LayerStackVarBehavior`; one without metadata counts as per layer if it is empty
    or every array in it has the stack axis. State variables in side inputs (the offset of a random
    stream) are shared. Variables in the argument are not allowed.

    The implementation is just:

        def body(argument, slices):
            return put_into(stacked_sublayers, slices)(argument, **side_inputs), None
        output, _ = jax.lax.scan(body, argument, arrays_with(stack_axis), unroll=unroll)

    Attributes:
        stacked_sublayers: The block.
        stack_axis: The axis along which blocks differ; no axis of the argument.
        stack_axis_size: The number of blocks.
        unroll: How many blocks are written out per turn of the loop. 1 compiles fastest.
        checkpoint: None, or what to keep for the backward pass instead of everything: the name of a
            policy in `jax.checkpoint_policies` ("nothing_saveable" recomputes each block); a name and
            its arguments (("save_only_these_names", "attention") keeps what `CheckpointName` layers
            inside the block have named so); or a policy itself.
    """

    stacked_sublayers: Any
    stack_axis: str = dataclasses.field(metadata={"pytree_node": False})
    stack_axis_size: int = dataclasses.field(metadata={"pytree_node": False})
    unroll: int = dataclasses.field(default=1, metadata={"pytree_node": False})
    checkpoint: Checkpoint = dataclasses.field(default=None, metadata={"pytree_node": False})

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the blocks in order.

        Args:
            argument: Input of the first block; a tree without variables.
            **side_inputs: Given to every block, whole.

        Returns:
            The output of the last block, laid out as the argument.

        Raises:
            TypeError: If a block changes a dtype of the argument, or the argument holds a variable.
            ValueError: If a block changes the argument's names or sizes, a stacked array has another
                size along the stack axis, or a state variable breaks the rules.
        """
        return _scan_stack.run(
            self.stacked_sublayers,
            argument,
            side_inputs,
            _scan_stack.Loop(self.stack_axis, self.stack_axis_size, self.unroll, self.checkpoint),
            self.is_shared,
        )

    def is_shared(self, variable: StateVariable[Any]) -> bool:
        """Whether all blocks share a state variable of the block.

        Raises:
            ValueError: If its metadata does not say so, and its value does not decide it.
        """
        axis = self.stack_axis
        behavior = variable.metadata.get("layerstack_axes", {}).get(axis)
        if isinstance(behavior, LayerStackVarBehavior):
            return behavior is LayerStackVarBehavior.SHARED
        leaves = _stack_variables.named_leaves(variable)
        if behavior is None and all(nx.is_namedarray(x) and axis in x.named_shape for x in leaves):
            return False  # nothing in it yet, or nothing that could be shared
        raise ValueError(
            f"LayerStack: state variable {variable.label!r} inside a stack must say how it behaves along "
            f'the stack axis {axis!r}; metadata["layerstack_axes"][{axis!r}] is {behavior!r}, '
            f"metadata={variable.metadata!r}. Give it LayerStackVarBehavior.SHARED (one value for all "
            "blocks) or LayerStackVarBehavior.PER_LAYER (every array in it has the stack axis)."
        )

    def key_for_field(self, field_name: str) -> LayerStackGetAttrKey:
        """A key that tells the stack axis."""
        return LayerStackGetAttrKey(field_name, self.stack_axis, self.stack_axis_size)

    @classmethod
    def from_sublayer_builder(
        cls,
        builder: Callable[..., Any],
        stack_axis: str,
        stack_axis_size: int,
        init_base_rng: jax.Array | None,
        builder_kwargs: dict[str, Any],
        *,
        is_shared_state: Callable[[StateVariable[Any]], bool] = lambda _: False,
        unroll: int = 1,
        checkpoint: Checkpoint = None,
    ) -> Self:
        """Builds a stack by running a block's builder once, vmapped over keys.

        Block i has the parameters that `builder` gives alone with `jax.random.split(key, n)[i]`. Every
        named array that the builder makes gains the stack axis, as its first.

        Args:
            builder: Called as `builder(init_base_rng=key, **builder_kwargs)`; returns the block.
            stack_axis: Name of the stack axis; no axis of the block's arrays.
            stack_axis_size: The number of blocks.
            init_base_rng: Key, or None to build the structure only, with parameter slots.
            builder_kwargs: What else the builder takes, such as its name. Labels of parameters get no
                suffix for the block.
            is_shared_state: Tells which state variables of the block all blocks share. Their values
                may be any trees of arrays, but must not depend on the key. By default none.
            unroll: See `LayerStack.unroll`.
            checkpoint: See `LayerStack.checkpoint`.

        Returns:
            The stack, with fresh variables.

        Raises:
            DuplicateParameterNameError: If the builder makes two parameters of one label.
            ValueError: If an array already has the stack axis, a variable holds arrays without names, a
                plain array depends on the key, or a variable is neither parameter nor state variable.
            TypeError: If the block has a leaf that is no array.
        """
        block = _block_building.build_stacked(
            builder,
            _block_building.Stacking(
                stack_axis,
                stack_axis_size,
                is_shared_state,
                shared=LayerStackVarBehavior.SHARED,
                per_layer=LayerStackVarBehavior.PER_LAYER,
            ),
            init_base_rng,
            builder_kwargs,
        )
        return cls(
            stacked_sublayers=block,
            stack_axis=stack_axis,
            stack_axis_size=stack_axis_size,
            unroll=unroll,
            checkpoint=checkpoint,
        )


def layerstack_axes_from_keypath(keypath: tuple[Any, ...]) -> dict[str, int]:
    """The stack axes that arrays at a key path have, with their sizes.

    Args:
        keypath: A key path from the root of a model, as selectors give it.

    Returns:
        Sizes by axis, outermost stack first; empty outside of stacks.
    """
    return {
        key.stack_axis: key.stack_axis_size
        for key in keypath
        if isinstance(key, LayerStackGetAttrKey)
    }
