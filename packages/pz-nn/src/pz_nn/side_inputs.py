"""Side inputs as inputs: what cross-attention reads its keys and values from.

input_to_key = Sequential([TakeSideInput("encoded"), Linear.from_config(...)])
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pz_core.struct import pytree_dataclass
from pz_nn._side_inputs import required
from pz_nn.layer import Layer

__all__ = ["TakeSideInput"]


@pytree_dataclass
class TakeSideInput(Layer):
    """Returns a side input in place of its input.

    Attributes:
        input_name: Name of the side input.
    """

    input_name: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, _value: Any, /, **side_inputs: Any) -> Any:
        """Returns the side input.

        Raises:
            KeyError: If it is missing.
        """
        return required(side_inputs, self.input_name, type(self).__name__)
