"""Which part of which stored tensor becomes which parameter, as data.

One idea: every parameter is a rectangular region of a stored tensor that is looked at in some
shape, or several of those side by side. Written down once, that is enough to validate a checkpoint
before reading it, to load it tensor by tensor, and to write it back bit by bit.

    StoredParameter(                     # the query of a fused {q, k, v} projection
        label="attention/query.weights",
        key="model.layers.{i}.self_attn.qkv_proj.weight",
        view=(96, 576),                  # the stored tensor
        region=(slice(0, 64),),          # its first 64 rows ...
        axes={"heads": 4, "projection": 16, "embedding": 576},   # ... as this named array
    )
    StoredParameter(                     # the fourth of eight experts, each in a tensor of its own
        label="mlp/out_linear.weights",
        key="model.layers.{i}.mlp.experts.3.down_proj.weight",
        axes={"embedding": 576, "neurons": 96},
        element_of={"experts": (3, 8)},
    )
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "Layout",
    "PlannedRead",
    "Stacking",
    "StoredParameter",
    "parameter_label",
    "plan_reads",
    "with_keys",
]

Index = slice | int


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """Where one parameter lies in a checkpoint.

    Attributes:
      label: The parameter's label, without the name of model and block.
      key: The stored tensor; `{i}` stands for the block.
      axes: The parameter's named shape, in storage order.
      shape: The stored tensor's shape; by default the sizes of `view`.
      view: The shape it is looked at in; by default the sizes of `axes`.
      region: What of the view is the parameter; by default all of it.
      element_of: Leading axes of a parameter that several tensors make up, each with the index of
        this one and the axis's size; `axes` are those of one element.
    """

    label: str
    key: str
    axes: Mapping[str, int]
    shape: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None
    region: tuple[Index, ...] = ()
    element_of: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of `axes`."""
        return tuple(self.axes.values())

    @property
    def element_axes(self) -> dict[str, int]:
        """Axes, with sizes, along which several tensors make up the parameter."""
        return {axis: size for axis, (_, size) in self.element_of.items()}

    @property
    def element_index(self) -> tuple[int, ...]:
        """Where this tensor stands along `element_axes`."""
        return tuple(index for index, _ in self.element_of.values())

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The stored tensor's shape."""
        return self.shape if self.shape is not None else self.view_shape

    @property
    def view_shape(self) -> tuple[int, ...]:
        """The shape that `region` speaks of."""
        return self.view if self.view is not None else self.sizes

    @property
    def is_whole(self) -> bool:
        """Whether the parameter, or this element of it, is all of the stored tensor."""
        return not self.region and math.prod(self.sizes) == math.prod(self.view_shape)


Layout = tuple[Sequence[StoredParameter], Sequence[Sequence[StoredParameter]]]
"""Where a checkpoint keeps a model: parameters outside of blocks, and those of each block."""


def with_keys(layout: Layout, rename: Callable[[str], str]) -> Layout:
    """The layout with other names of the stored tensors."""

    def renamed(entries: Sequence[StoredParameter]) -> list[StoredParameter]:
        return [dataclasses.replace(entry, key=rename(entry.key)) for entry in entries]

    outer, blocks = layout
    return renamed(outer), [renamed(block) for block in blocks]


@dataclasses.dataclass(frozen=True)
class Stacking:
    """How the blocks of a built model are put together.

    Attributes:
      blocks: How many there are.
      period: How many of them one turn of a layer stack runs: one, or a super-block of different
        kinds. 0 where they are no stack.
    """

    blocks: int
    period: int

    @property
    def size(self) -> int:
        """The stack's size: how many turns it makes; 0 where there is none."""
        return self.blocks // self.period if self.period else 0

    def turn(self, block: int) -> int:
        """Where a block's parameters lie along the axis of the stack."""
        return block // self.period

    def name(self, block: int) -> str:
        """What names a block, or what stands for it in the stack, in labels."""
        if not self.period:
            return f"block_{block}"
        return "blocks" if self.period == 1 else f"blocks/{block % self.period}"


def parameter_label(
    name: str, block: int | None, entry: StoredParameter, stacking: Stacking
) -> str:
    """The label that a parameter has in a built model.

    Args:
      name: Name of the model, which prefixes labels.
      block: Index of its block, or None outside of blocks.
      entry: The parameter.
      stacking: How the blocks are put together.
    """
    return (
        f"{name}/{entry.label}" if block is None else f"{name}/{stacking.name(block)}/{entry.label}"
    )


@dataclasses.dataclass(frozen=True)
class PlannedRead:
    """One stored tensor and the (block, parameter) pairs that it fills.

    Attributes:
      key: The stored tensor.
      parts: The parameters, with the index of their block, or None outside of blocks.
    """

    key: str
    parts: tuple[tuple[int | None, StoredParameter], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored tensor's shape."""
        return self.parts[0][1].stored_shape


def plan_reads(
    outer: Iterable[StoredParameter], blocks: Sequence[Iterable[StoredParameter]]
) -> list[PlannedRead]:
    """Groups parameters by stored tensor, so that each tensor is read once.

    Args:
      outer: Parameters outside of blocks.
      blocks: For each block, its parameters; their keys may contain `{i}`.
    """
    parts: dict[str, list[tuple[int | None, StoredParameter]]] = {}
    for entry in outer:
        parts.setdefault(entry.key, []).append((None, entry))
    for index, entries in enumerate(blocks):
        for entry in entries:
            parts.setdefault(entry.key.replace("{i}", str(index)), []).append((index, entry))
    return [PlannedRead(key, tuple(found)) for key, found in parts.items()]
