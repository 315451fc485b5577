"""Compiles a layer, or the part of a model that it wraps.

The idea: `Jitted` is a layer around a layer, so compiling is an edit of the model, and editing
the model compiles again by itself.

    from pz_toolshed import jit_wrapper

    compiled = jit_wrapper.Jitted(model)
    logits = compiled(tokens, token_positions=positions)

The compiled code is kept by structure (classes, static fields, variable labels) and by shapes and
dtypes; two `Jitted` around equal structures share it. Variables in the body, the argument and the
side inputs go in and come back: state changes and assignments to parameters happen as in an eager
call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pz_core.struct import pytree_dataclass
from pz_core.variables import variable_jit
from pz_nn.layer import Layer

__all__ = ["Jitted"]


def _call_layer(body: Layer, argument: Any, side_inputs: dict[str, Any]) -> Any:
    return body(argument, **side_inputs)


_call_compiled = variable_jit(_call_layer)
_call_compiled_donating = variable_jit(_call_layer, donate_variables=True)


@pytree_dataclass
class Jitted(Layer):
    """Runs its body compiled.

    The implementation is just `variable_jit(lambda body, x, side: body(x, **side))`.

    The argument, side inputs and result are pytrees of arrays; a string or function among them
    is a `TypeError`, a variable in the result a `ValueError`. State variables without a label of
    their own compile again when they are made anew: label them, or make them under
    `scoped_auto_state_var_labels`.

    Attributes:
      body: The layer to compile.
      donate_variables: Give the buffers of all variables to the compiled code, which may write
        the new values in place: for decoding with a large key/value cache. Arrays taken from the
        variables before a call (frozen copies included) are deleted by it.
    """

    body: Layer
    donate_variables: bool = dataclasses.field(default=False, metadata={"pytree_node": False})

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Calls the body, compiled, with the argument and all side inputs."""
        call = _call_compiled_donating if self.donate_variables else _call_compiled
        return call(self.body, argument, side_inputs)
