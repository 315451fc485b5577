"""A stream of random keys whose position is a state variable.

>>> import jax
>>> stream = RandomStream.from_base_key(jax.random.key(0))
>>> first, second = stream.next_key(), stream.next_key()
>>> int(stream.offset.value)
2
"""

from __future__ import annotations

import jax

from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import StateVariable, VariableLabel

__all__ = ["RandomStream"]


@pytree_dataclass
class RandomStream(Struct):
    """Yields one key after another; the implementation is just:

        key = jax.random.fold_in(base_key, offset.value)
        offset.value += 1

    Attributes:
      base_key: The key that all others are derived from: a typed key or a raw one.
      offset: How many keys were drawn.
    """

    base_key: jax.Array
    offset: StateVariable[jax.Array]

    @classmethod
    def from_base_key(
        cls, base_key: jax.Array, offset_label: VariableLabel = "random_stream_offset"
    ) -> RandomStream:
        """Starts a stream.

        Args:
          base_key: The key that all others are derived from.
          offset_label: Label of the offset. Two streams in one tree need different labels.

        Returns:
          A stream at offset 0.
        """
        offset: StateVariable[jax.Array] = StateVariable(jax.numpy.asarray(0), label=offset_label)
        return cls(base_key=base_key, offset=offset)

    def next_key(self) -> jax.Array:
        """Returns the next key, and advances the offset."""
        key = jax.random.fold_in(self.base_key, self.offset.value)
        self.offset.value += 1
        return key
