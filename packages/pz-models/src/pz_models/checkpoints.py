"""What every checkpoint format is reduced to before a model is built from it.

One idea: a format only has to say three things in HuggingFace's vocabulary: the configuration,
which tensors there are with which shapes, and how to read one of them into memory that somebody
else allocated. Building, validating, casting, stacking and sharding are then the same for all.

    source = GGUFCheckpoint("model.gguf")
    source.config["hidden_size"], source.tensors["model.norm.weight"].shape
    source.read_into("model.norm.weight", numpy.empty(576, numpy.float32))
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["Checkpoint", "StoredTensor", "commonest_storage"]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, before it is read.

    Attributes:
      shape: Its sizes, in HuggingFace's order.
      storage: How it is stored, such as "BF16" or "Q4_1"; for messages.
      n_bytes: Stored length, for progress bars.
    """

    shape: tuple[int, ...]
    storage: str
    n_bytes: int


def commonest_storage(tensors: Iterable[StoredTensor]) -> str | None:
    """How most bytes of the tensors are stored; None where there are none."""
    n_bytes: collections.Counter[str] = collections.Counter()
    for tensor in tensors:
        n_bytes[tensor.storage] += tensor.n_bytes
    return n_bytes.most_common(1)[0][0] if n_bytes else None


class Checkpoint(abc.ABC):
    """A configuration and named tensors, in HuggingFace's spelling, readable one at a time.

    Attributes:
      name: What to call it in messages; a path where there is one.
      config: The configuration, spelled as a HuggingFace `config.json`.
      tensors: The tensors, under HuggingFace's state-dict keys.
      dtype: The dtype of most of its weights (by bytes), which all get when nobody asks for another.
    """

    name: str
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    dtype: Any

    @abc.abstractmethod
    def read_into(self, key: str, out: np.ndarray) -> None:
        """Fills `out`, of the tensor's shape and any floating dtype, with tensor `key`."""

    def describe(self, key: str) -> str:
        """Where `key` lies, for messages; formats with names of their own say those."""
        return f"{self.name}: tensor {key!r}"
