"""Trades compute for memory in the backward pass, layer by layer.

The idea: a layer around a layer again. What the body computes is forgotten after the forward pass
and computed once more when its gradient is taken (`jax.checkpoint`).

    from pz_toolshed import gradient_checkpointing

    model = select(model).at_instances_of(TransformerBlock).apply(
        gradient_checkpointing.Checkpointed
    )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from pz_core.struct import pytree_dataclass
from pz_core.variables import bind_variables, freeze_params, unbind_variables
from pz_nn.layer import Layer
from pz_toolshed._array_leaves import merge_arrays, split_arrays

__all__ = ["Checkpointed"]


@pytree_dataclass
class Checkpointed(Layer):
    """Runs its body under `jax.checkpoint`: same values and gradients, less memory.

    Parameters are read-only inside. All other variables in the body, the argument and the side
    inputs go in and come back, so state and random streams advance as without the wrapper.

    Attributes:
      body: The layer whose intermediate values are not kept.
      policy: Says which of them to keep after all, e.g.
        `jax.checkpoint_policies.dots_with_no_batch_dims_saveable`; None keeps none. Part of the
        model's structure: make it once, since a policy made anew compiles anew.
      prevent_cse: As in `jax.checkpoint`: keep the compiler from undoing the checkpoint. Not
        needed inside a rolled layer stack, where False may run faster.
    """

    body: Layer
    policy: Callable[..., bool] | None = dataclasses.field(
        default=None, metadata={"pytree_node": False}
    )
    prevent_cse: bool = dataclasses.field(default=True, metadata={"pytree_node": False})

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Calls the body with the argument and all side inputs."""
        inputs, variables = unbind_variables((freeze_params(self.body), argument, side_inputs))
        # Python scalars and objects stay what they are; only arrays are traced.
        arrays, rest = split_arrays(inputs)

        def run(arrays: Any, values: Any) -> Any:
            inside = tuple(value.unfreeze_as_copy() for value in values)
            body, argument, side_inputs = bind_variables(merge_arrays(arrays, rest), inside)
            output = body(argument, **side_inputs)
            return output, tuple(variable.freeze() for variable in inside)

        checkpointed = jax.checkpoint(run, policy=self.policy, prevent_cse=self.prevent_cse)
        output, values = checkpointed(arrays, tuple(variable.freeze() for variable in variables))
        for variable, value in zip(variables, values, strict=True):
            variable.update(value)
        return output
