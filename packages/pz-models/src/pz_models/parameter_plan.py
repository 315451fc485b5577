"""Which part of which stored tensor becomes which parameter, as data.

One idea: every parameter is a rectangular region of a stored tensor that is looked at in some
shape. Written down once, that is enough to validate a checkpoint before reading it, to load it
tensor by tensor, and to write it back bit by bit.

    StoredParameter(                     # the query of a fused {q, k, v} projection
        label="attention/query.weights",
        key="model.layers.{i}.self_attn.qkv_proj.weight",
        view=(96, 576),                  # the stored tensor
        region=(slice(0, 64),),          # its first 64 rows ...
        axes={"heads": 4, "projection": 16, "embedding": 576},   # ... as this named array
    )
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["PlannedRead", "StoredParameter", "plan_reads"]

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
    """

    label: str
    key: str
    axes: Mapping[str, int]
    shape: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None
    region: tuple[Index, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the parameter's axes."""
        return tuple(self.axes.values())

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
        """Whether the parameter is all of the stored tensor, in its order."""
        return not self.region and math.prod(self.sizes) == math.prod(self.view_shape)


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
