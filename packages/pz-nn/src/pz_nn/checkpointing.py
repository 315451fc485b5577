"""Naming values inside a block, so that a checkpointed stack can keep some of them.

A `LayerStack` with `checkpoint="nothing_saveable"` recomputes whole blocks in the backward pass. To keep
what is dear to recompute, name it and keep that name:

    block = Residual(Sequential([norm, attention, CheckpointName("attention")]))
    stack = dataclasses.replace(stack, checkpoint=("save_only_these_names", "attention"))
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from pz_core.struct import pytree_dataclass
from pz_nn.layer import Layer

__all__ = ["CheckpointName"]


@pytree_dataclass
class CheckpointName(Layer):
    """Returns its input, and names it for policies of `jax.checkpoint`.

    Attributes:
        name: The name, as used in `jax.checkpoint_policies.save_only_these_names(name)`.
    """

    name: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, value: Any, /, **_side_inputs: Any) -> Any:
        """Names every array of the value."""
        name_it: Any = checkpoint_name
        return jax.tree.map(lambda leaf: name_it(leaf, self.name), value)
