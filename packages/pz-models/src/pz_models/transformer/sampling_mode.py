"""A language model that remembers: call it with new tokens only, chunk after chunk.

    sampler = KVCachingTransformerLM.from_uncached(model, cache_len=256, batch_axes={"batch": 1})
    logits = sampler(prompt)            # {batch, seq} -> {batch, seq, vocabulary}
    logits = sampler(next_token)        # continues where the last call ended

State (caches, earlier tokens, how much is filled) lives in state variables that the caller can
see, copy and reset. For fast generation use `pz_models.generate`, which needs no sampler.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_core.variables import StateVariable
from pz_models.transformer._caching import CACHE_END, KV_POSITIONS, with_caches
from pz_models.transformer.model_parts import TransformerLM, TransformerMetadata
from pz_models.transformer.padding import positions_of
from pz_named import named_axes as nx
from pz_named import shapecheck as chk
from pz_nn.kv_cache import KVCacheOverflowError
from pz_nn.layer import Layer

__all__ = ["KVCachingTransformerLM"]


def _static() -> Any:
    return dataclasses.field(metadata={"pytree_node": False})


@pytree_dataclass
class KVCachingTransformerLM(Layer):
    """A transformer language model with key/value caches.

    Attributes:
      body: The layers, attention in its caching form.
      cache_end_index: How many tokens have been given so far.
      previous_tokens: Those tokens, {batch axes, seq: cache_len}.
      metadata: Sizes of the activations.
      cache_len: Capacity.
      batch_axes: Batch axes of the tokens, with sizes.
      pad_id: Token that marks padding. It takes no position, wherever it stands.
    """

    body: Layer
    cache_end_index: StateVariable[Any]
    previous_tokens: StateVariable[Any]
    metadata: TransformerMetadata = _static()
    cache_len: int = _static()
    batch_axes: dict[str, int] = _static()
    pad_id: int = _static()

    @classmethod
    def from_uncached(
        cls,
        uncached: TransformerLM,
        cache_len: int,
        batch_axes: dict[str, int],
        pad_id: int = -1,
        variable_name_prefix: str = "sampler",
    ) -> KVCachingTransformerLM:
        """The caching form of a model; parameters are shared with it.

        Args:
          uncached: The model, edited or not.
          cache_len: Capacity: the most tokens that prompt and continuation may have together.
          batch_axes: Batch axes of the tokens, with sizes; {} for a single sequence.
          pad_id: Token that marks padding; by default -1, which is no token.
          variable_name_prefix: Prefix of the labels of all state; two samplers in one tree need
            different ones.

        Raises:
          ValueError: A causal mask cannot be converted.
        """
        body = with_caches(
            uncached.body,
            uncached.metadata,
            cache_len=cache_len,
            batch_axes=batch_axes,
            label_prefix=variable_name_prefix,
        )
        axes: dict[Any, int] = {**batch_axes, "seq": cache_len}
        return cls(
            body=body,
            cache_end_index=StateVariable(
                value=jnp.zeros((), jnp.int32), label=f"{variable_name_prefix}/cache_end_index"
            ),
            previous_tokens=StateVariable(
                value=nx.zeros(axes, jnp.int32), label=f"{variable_name_prefix}/previous_tokens"
            ),
            metadata=uncached.metadata,
            cache_len=cache_len,
            batch_axes=batch_axes,
            pad_id=pad_id,
        )

    def __call__(self, tokens: Any, /, **extra_side_inputs: Any) -> nx.NamedArrayBase:
        """Scores the next token after each of the new tokens, given all earlier ones.

        Args:
          tokens: The new tokens, {batch axes, seq} with any number of them.
          **extra_side_inputs: Given to every layer.

        Returns:
          Logits {batch axes, seq, vocabulary} at the new tokens; meaningless but finite at padding.

        Raises:
          StructureMismatchError: The axes of `tokens` are others.
          KVCacheOverflowError: There is no room left, and that is known.
          TypeError: More tokens than the whole cache holds, or a reserved side input was given.
        """
        axes: dict[Any, Any] = {**self.batch_axes, "seq": chk.var("new_tokens")}
        expected = chk.ArraySpec(named_shape=axes, dtype=jnp.integer)
        chk.check_structure(tokens, expected, error_prefix="KVCachingTransformerLM: ")
        end, count = self.cache_end_index.value, tokens.named_shape["seq"]
        self._require_room(end, count)
        seen = _write(self.previous_tokens.value, tokens, end)
        positions = positions_of(seen != self.pad_id)
        new = _slice(positions, end, count)
        extra_side_inputs.setdefault("rope_length", self.cache_len)
        outputs: nx.NamedArrayBase = self.body(
            tokens,
            **{"token_positions": new, KV_POSITIONS: positions, CACHE_END: end},
            **extra_side_inputs,
        )
        self.previous_tokens.value = seen
        self.cache_end_index.value = end + count
        return outputs

    def _require_room(self, end: Any, count: int) -> None:
        """Refuses tokens that do not fit, where that can be known."""
        if isinstance(end, jax.core.Tracer) or count > self.cache_len:
            return  # in compiled code outputs become NaN; more than the whole cache is a TypeError
        if int(end) + count > self.cache_len:
            raise KVCacheOverflowError(
                f"KVCachingTransformerLM: the cache has {self.cache_len} places, {int(end)} are"
                f" filled, and {count} new tokens do not fit. Build the sampler with"
                f" cache_len={int(end) + count} or more."
            )


def _write(seen: nx.NamedArrayBase, tokens: nx.NamedArrayBase, end: Any) -> nx.NamedArrayBase:
    """`seen` with `tokens` written at place `end` along "seq"."""
    update = tokens.astype(seen.dtype).order_like(seen)
    at = [end if name == "seq" else 0 for name in seen.named_shape]
    axes = tuple(seen.named_shape)
    data = jax.lax.dynamic_update_slice(seen.unwrap(*axes), update.unwrap(*axes), at)
    return nx.wrap(data, *axes)


def _slice(values: nx.NamedArrayBase, start: Any, count: int) -> nx.NamedArrayBase:
    """`count` entries of `values` along "seq", from `start`."""
    axes = tuple(values.named_shape)
    data = jax.lax.dynamic_slice_in_dim(values.unwrap(*axes), start, count, axes.index("seq"))
    return nx.wrap(data, *axes)
