"""Sampling with a plain Python loop around a sampler: short, to read and to change.

    sampler = KVCachingTransformerLM.from_uncached(model, cache_len=64, batch_axes={"batch": 2})
    new_tokens = temperature_sample_pyloop(sampler, prompt, jax.random.key(0))

`pz_models.generate` does the same as one compiled program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pz_models.transformer.sampling_mode import KVCachingTransformerLM
from pz_named import named_axes as nx

__all__ = ["temperature_sample_pyloop"]


def temperature_sample_pyloop(
    model: KVCachingTransformerLM,
    prompt: nx.NamedArray,
    rng: jax.Array,
    temperature: float = 1.0,
    max_sampling_steps: int | None = None,
) -> nx.NamedArrayBase:
    """Continues a prompt token by token.

    The sampler keeps its state, so a second call goes on in the same conversation; the last
    sampled token has then not been given to it yet.

    Args:
      model: The sampler.
      prompt: Tokens {batch axes, seq}, padded with the sampler's `pad_id` where rows differ in
        length; each row is continued after its own last token.
      rng: Key.
      temperature: What logits are divided by; 0 takes the likeliest token.
      max_sampling_steps: Most tokens to sample; by default as many as the cache has room for.

    Returns:
      The sampled tokens, int32 {batch axes, seq}, without the prompt.
    """
    steps = model.cache_len if max_sampling_steps is None else max_sampling_steps
    logits = _at_last_token(model(prompt), prompt, model.pad_id)
    sampled = []
    while True:
        rng, key = jax.random.split(rng)
        sampled.append(_sample(key, logits, temperature, model.batch_axes))
        filled = int(model.cache_end_index.value)
        if filled >= model.cache_len or len(sampled) >= steps:
            return nx.concatenate([t[None].tag("seq") for t in sampled], "seq")
        logits = model(sampled[-1][None].tag("seq")).untag("seq")[-1]


def _at_last_token(
    logits: nx.NamedArrayBase, prompt: nx.NamedArray, pad_id: int
) -> nx.NamedArrayBase:
    """Logits at the last token of each row that is not padding."""

    def last(row: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(row != pad_id, jnp.arange(row.shape[0]), 0))

    index = nx.nmap(last)(prompt.untag("seq"))
    found: nx.NamedArrayBase = nx.nmap(lambda row, i: row[i])(logits.untag("seq"), index)
    return found


def _sample(
    key: jax.Array, logits: nx.NamedArrayBase, temperature: float, batch_axes: dict[str, int]
) -> nx.NamedArrayBase:
    """One token for each row, with a key of its own."""
    rows = logits.untag("vocabulary")
    tokens: nx.NamedArrayBase
    if temperature == 0:
        tokens = nx.nmap(jnp.argmax)(rows)
    else:
        keys = nx.random_split(key, sorted(batch_axes.items()))
        tokens = nx.nmap(jax.random.categorical)(keys, rows / temperature)
    return tokens.astype(jnp.int32)
