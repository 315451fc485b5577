"""Labels of variables in a stack and in its separate blocks.

In text labels one part between slashes names the stack or the block: `model/blocks/mlp.weights` in the
stack is `model/block_3/mlp.weights` in block 3. Other labels are wrapped in a `BlockLabel`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Sequence
from typing import Any

from pz_core.auto_order_types import AutoOrderedAcrossTypes


@dataclasses.dataclass(frozen=True)
class BlockLabel(AutoOrderedAcrossTypes):
    """The label in one block of a variable whose label in the stack is no text.

    Attributes:
        label: The label in the stack.
        index: The block.
    """

    label: Any
    index: int


def label_in_block(label: Hashable, stacked: str, block: str, index: int) -> Hashable:
    """The label in block `index` of what is labelled `label` in the stack.

    Args:
        label: Label in the stack.
        stacked: The part that names the stack, such as `blocks`; it may have slashes itself.
        block: The part that names the block, such as `block_3`.
        index: The block.

    Raises:
        ValueError: If the label is a text without the part `stacked`.
    """
    if not isinstance(label, str):
        return BlockLabel(label, index)
    renamed, count = _part(stacked).subn(lambda _: block, label, count=1)
    if not count:
        raise ValueError(
            f"unstack: the label {label!r} has no part {stacked!r} between slashes that could become "
            f"{block!r}. Say which part names the stack: unstack(stack, stacked_name=...)."
        )
    return renamed


def label_in_stack(labels: Sequence[Hashable], stacked: str, blocks: Sequence[str]) -> Hashable:
    """The label in the stack of variables that are labelled `labels` in its blocks.

    Args:
        labels: One label for each block.
        stacked: The part that will name the stack.
        blocks: The parts that name the blocks.

    Raises:
        ValueError: If the labels differ in more than these parts.
    """
    first = labels[0]
    if all(label == first for label in labels[1:]):
        if isinstance(first, str) and len(labels) == 1:
            return _part(blocks[0]).sub(lambda _: stacked, first, count=1)
        return first
    if not isinstance(first, str):
        # Made-up labels differ from block to block; the first is as good as any.
        return first.label if isinstance(first, BlockLabel) else first
    renamed = {
        _part(block).sub(lambda _: stacked, str(label), count=1)
        for label, block in zip(labels, blocks, strict=True)
    }
    if len(renamed) > 1:
        raise ValueError(
            f"restack: variables that are stacked must have labels that differ in the block's name only "
            f"({', '.join(blocks[:3])}, …), but these do not agree: {', '.join(map(repr, labels[:4]))}. "
            "Say how blocks are named: restack(blocks, block_name=...), or relabel them."
        )
    return renamed.pop()


def _part(name: str) -> re.Pattern[str]:
    """Matches a name between slashes, or before the attribute at the end of a label."""
    return re.compile(rf"(?<![^/]){re.escape(name)}(?=[/.]|$)")
