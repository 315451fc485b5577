"""Taking layer stacks apart into blocks and putting blocks together into stacks.

>>> from pz_core.variables import Parameter
>>> from pz_named import named_axes as nx
>>> from pz_nn.linear_and_affine import AddBias
>>> bias = Parameter(label="model/blocks/b.bias", value=nx.arange("blocks", 3))
>>> blocks = unstack(LayerStack(AddBias(bias, ()), "blocks", 3))  # a Sequential of separate blocks
>>> blocks.sublayers[2].bias.label
'model/block_2/b.bias'
>>> restack(blocks, "blocks").stacked_sublayers.bias.label        # and back
'model/blocks/b.bias'

Labels follow: `<name>/blocks/…` in the stack is `<name>/block_{i}/…` in block i.

Blocks of different kinds (local and global attention in turn, layers without rotary embedding) can be
stacked in two forms, which compute the same:

* `form="super_block"`: the loop runs over whole periods; each turn runs one block of each kind. Every
  kind keeps its own structure, so that local layers can have small caches. The j-th block of the period
  is labelled `<name>/blocks/{j}/…`.
* `form="scanned"`: every block gets one structure, and what differs (window, rotary frequencies) becomes
  arrays that the loop slices. The smallest program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

from pz_core.struct import pytree_dataclass
from pz_nn import _uniform_blocks
from pz_nn._block_joining import Joiner
from pz_nn._block_splitting import Splitter
from pz_nn._scan_stack import Checkpoint
from pz_nn._stack_labels import label_in_block, label_in_stack
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack, LayerStackVarBehavior

__all__ = ["SuperBlock", "restack", "unstack"]


@pytree_dataclass(has_implicitly_inherited_fields=True)
class SuperBlock(Sequential):
    """One period of blocks of different kinds: the block of a stack in the form `"super_block"`."""


def unstack(
    stack: LayerStack, block_name: str = "block_{i}", stacked_name: str = "blocks"
) -> Sequential:
    """Takes a stack apart into its blocks.

    Args:
        stack: The stack. It stays as it is; the blocks get variables of their own.
        block_name: What takes the place of `stacked_name` in labels, with `{i}` for the number.
        stacked_name: The part of the labels that names the stack.

    Returns:
        The blocks. Their arrays have lost the stack axis. Parameters without that axis, and state
        variables that the blocks share, are the same objects in every block. Super-blocks come apart
        into their blocks.

    Raises:
        ValueError: If a label does not have `stacked_name` between slashes.
    """
    kinds, is_super = _kinds(stack.stacked_sublayers)
    blocks = []
    for turn in range(stack.stack_axis_size):
        for j, kind in enumerate(kinds):
            index = turn * len(kinds) + j
            part = f"{stacked_name}/{j}" if is_super else stacked_name
            block = block_name.format(i=index)
            label = _labeller(part, block, index)
            blocks.append(Splitter(stack.stack_axis, turn, label, stack.is_shared).split(kind))
    return Sequential(blocks)


def _kinds(block: Any) -> tuple[Sequence[Any], bool]:
    """The kinds of blocks in a stack's block, and whether it is a super-block."""
    is_super = isinstance(block, SuperBlock)
    return (block.sublayers if is_super else [block]), is_super


def _labeller(part: str, block: str, index: int) -> Callable[[Hashable], Hashable]:
    return lambda label: label_in_block(label, part, block, index)


def restack(
    blocks: Sequential | Sequence[Any],
    stack_axis: str,
    form: Literal["super_block", "scanned"] | None = None,
    *,
    block_name: str = "block_{i}",
    stacked_name: str = "blocks",
    first_index: int = 0,
    axis_sizes: Mapping[str, int] | None = None,
    rope_length: int | None = None,
    unroll: int = 1,
    checkpoint: Checkpoint = None,
) -> Layer:
    """Puts separate blocks together into a stack.

    Parameters and state variables may be bound, frozen or slots, the same in all blocks. A variable that
    is one object in all blocks stays shared; others are stacked.

    Args:
        blocks: The blocks, at least one.
        stack_axis: Name of the stack axis; no axis of the blocks' arrays.
        form: How blocks of different kinds are stacked, see the module; by default they are refused.
            Blocks of one kind make a plain stack in either form.
        block_name: What names block i in labels, with `{i}` for its number.
        stacked_name: What takes its place.
        first_index: The number of the first block.
        axis_sizes: For `"scanned"`: sizes of axes that rotary embeddings turn, where the blocks hold no
            array that tells them.
        rope_length: For `"scanned"`: the length of sequence for which rotary frequencies that depend on
            it (dynamic, LongRoPE) are fixed, where blocks differ in them; by default they are refused.
        unroll: See `LayerStack.unroll`.
        checkpoint: See `LayerStack.checkpoint`.

    Returns:
        A `LayerStack`. In the form `"super_block"`, blocks beyond the last whole period follow it
        separately, in a `Sequential` with it.

    Raises:
        ValueError: If there is no block, blocks differ in what `form` does not allow, or labels differ in
            more than the block's name.
    """
    given = list(blocks.sublayers if isinstance(blocks, Sequential) else blocks)
    if not given:
        raise ValueError(
            "restack: there must be at least one block, but there is none. A stack of nothing is "
            "Identity()."
        )
    if form not in (None, "super_block", "scanned"):
        raise ValueError(
            f"restack: form must be None, 'super_block' or 'scanned', but is {form!r}. See the "
            "documentation of pz_nn.stack_surgery for what they do."
        )
    names = [block_name.format(i=first_index + i) for i in range(len(given))]

    def join(period: Sequence[Any], kind_names: Sequence[str], part: str) -> Any:
        def label(labels: Sequence[Hashable]) -> Hashable:
            return label_in_stack(labels, part, kind_names)

        return Joiner(stack_axis, label, LayerStackVarBehavior.PER_LAYER).join(period)

    def stack(block: Any, size: int) -> LayerStack:
        return LayerStack(block, stack_axis, size, unroll, checkpoint)

    period = _uniform_blocks.period_of(given) if form == "super_block" else 1
    if form == "scanned":
        given = _uniform_blocks.with_one_structure(given, axis_sizes or {}, rope_length)
    if period == 1:
        return stack(join(given, names, stacked_name), len(given))
    whole = len(given) - len(given) % period
    kinds = [
        join(given[j:whole:period], names[j:whole:period], f"{stacked_name}/{j}")
        for j in range(period)
    ]
    result = stack(SuperBlock(kinds), whole // period)
    return Sequential([result, *given[whole:]]) if given[whole:] else result
