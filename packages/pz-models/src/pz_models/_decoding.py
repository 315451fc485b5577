"""The compiled programs behind `generate`: prefill, decode, grow.

Decoding is one `while_loop` whose carry holds the caches; they are donated, so every step writes
in place. Places in the caches: row r has its n_r prompt tokens at 0 … n_r - 1; the t-th new token
of all rows stands at place e + t with e = max n_r, at position n_r + t. Everything about positions
follows from n, e and t:

    positions of keys = slot                  for slot < n_r
                        n_r + slot - e        for e <= slot <= e + t
                        -1                    elsewhere (never attended to)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_core.variables import unbind_state_vars
from pz_models.transformer._caching import CACHE_END, KV_POSITIONS, with_caches
from pz_models.transformer.model_parts import TransformerLM
from pz_named import named_axes as nx
from pz_nn.basic_ops import TanhSoftCap
from pz_nn.embeddings import EmbeddingDecode
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Affine, Linear
from pz_nn.standardization import LayerNorm, RMSLayerNorm

__all__ = ["Progress", "Settings", "decode", "grow", "prefill"]

_CACHE_LABEL = "generate"
_POINTWISE = (RMSLayerNorm, LayerNorm, EmbeddingDecode, Linear, Affine, TanhSoftCap)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What may differ between calls without a new program.

    Attributes:
      stop_ids: Tokens that end a row, {any}; -1 fills up.
      temperature: What logits are divided by, if the program samples.
      key: Random key.
      rope_length: Length that length-dependent rotary frequencies assume, {row}.
    """

    stop_ids: jax.Array
    temperature: jax.Array
    key: jax.Array
    rope_length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a batch has come.

    Attributes:
      caches: Values of the cache variables.
      lengths: n, prompt tokens of each row.
      fed: t, how many new tokens the model has been given.
      token: The newest token of each row, not given to the model yet.
      done: Which rows have ended.
      counts: How many tokens each row has, its last one included.
      tokens: All new tokens, {row, step}.
      log_probabilities: The model's log-probability of each.
    """

    caches: Any
    lengths: jax.Array
    fed: jax.Array
    token: jax.Array
    done: jax.Array
    counts: jax.Array
    tokens: jax.Array
    log_probabilities: jax.Array


@functools.partial(jax.jit, static_argnames=("capacity", "sampling"))
def prefill(
    model: TransformerLM,
    other_state: Any,
    prompt: jax.Array,
    lengths: jax.Array,
    settings: Settings,
    *,
    capacity: int,
    sampling: bool,
) -> Progress:
    """Gives the model all prompts {row, place} and chooses the first new token of each."""
    rows, width = prompt.shape
    slots, caches = _cached_body(model, rows, capacity, last_token_only=True)
    places = jnp.arange(capacity)
    key_positions = jnp.where(places < lengths[:, None], places, -1)
    logits, caches = _call(
        slots,
        (caches, other_state),
        prompt,
        {
            "token_positions": key_positions[:, :width],
            KV_POSITIONS: key_positions,
            CACHE_END: jnp.zeros((), jnp.int32),
            _TakeToken.input_name: lengths - 1,
            "rope_length": settings.rope_length,
        },
    )
    logits = logits if logits.ndim == 2 else logits[jnp.arange(rows), lengths - 1]
    start = Progress(
        caches=caches,
        lengths=lengths,
        fed=jnp.zeros((), jnp.int32),
        token=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        counts=jnp.zeros(rows, jnp.int32),
        tokens=jnp.zeros((rows, capacity), jnp.int32),
        log_probabilities=jnp.zeros((rows, capacity), jnp.float32),
    )
    return _choose(start, logits, jnp.zeros((), jnp.int32), settings, sampling)


@functools.partial(jax.jit, static_argnames=("capacity", "sampling"), donate_argnames=("progress",))
def decode(
    model: TransformerLM,
    other_state: Any,
    progress: Progress,
    until: jax.Array,
    settings: Settings,
    *,
    capacity: int,
    sampling: bool,
) -> Progress:
    """Goes on until every row has `until` new tokens or has ended."""
    slots, _ = _cached_body(model, progress.lengths.shape[0], capacity)
    lengths = progress.lengths[:, None]
    end = jnp.max(progress.lengths)
    places = jnp.arange(capacity)

    def unfinished(progress: Progress) -> jax.Array:
        return (progress.fed + 1 < until) & ~jnp.all(progress.done)

    def step(progress: Progress) -> Progress:
        at = end + progress.fed
        new = (places >= end) & (places <= at)
        key_positions = jnp.where(
            places < lengths, places, jnp.where(new, lengths + places - end, -1)
        )
        logits, caches = _call(
            slots,
            (progress.caches, other_state),
            progress.token[:, None],
            {
                "token_positions": lengths + progress.fed,
                KV_POSITIONS: key_positions,
                CACHE_END: at,
                "rope_length": settings.rope_length,
            },
        )
        fed = progress.fed + 1
        progress = dataclasses.replace(progress, caches=caches, fed=fed)
        return _choose(progress, logits[:, 0], fed, settings, sampling)

    # Between the steps, caches lie as attention multiplies them. A loop that carried them with their
    # own axes would copy every cache at every step.
    def merged_step(merged: Progress) -> Progress:
        return _merge_axes(step(_split_axes(merged, like=progress)), like=progress)

    merged = jax.lax.while_loop(unfinished, merged_step, _merge_axes(progress, like=progress))
    return _split_axes(merged, like=progress)


@functools.partial(jax.jit, static_argnames="capacity")
def grow(progress: Progress, *, capacity: int) -> Progress:
    """The same with room for `capacity` tokens."""

    def longer(cache: nx.NamedArray) -> nx.NamedArray:
        axes = tuple(cache.named_shape)
        return nx.wrap(_pad(cache.unwrap(*axes), axes.index("seq"), capacity), *axes)

    return dataclasses.replace(
        progress,
        caches=jax.tree.map(longer, progress.caches, is_leaf=nx.is_namedarray),
        tokens=_pad(progress.tokens, 1, capacity),
        log_probabilities=_pad(progress.log_probabilities, 1, capacity),
    )


def _merge_axes(progress: Progress, like: Progress) -> Progress:
    """The same with caches as arrays {batch and heads, second last, last axis}.

    Caches of a layer stack keep their axes: there the loop over layers carries them.
    """

    def merge(wanted: nx.NamedArray, cache: nx.NamedArray) -> jax.Array:
        array = cache.order_like(wanted).data_array
        stacked = next(iter(wanted.named_axes)) != "batch"
        merged: jax.Array = array if stacked else array.reshape(-1, *array.shape[-2:])
        return merged

    caches = jax.tree.map(merge, like.caches, progress.caches, is_leaf=nx.is_namedarray)
    return dataclasses.replace(progress, caches=caches)


def _split_axes(progress: Progress, like: Progress) -> Progress:
    """The inverse of `_merge_axes`."""

    def split(wanted: nx.NamedArray, array: jax.Array) -> nx.NamedArray:
        return dataclasses.replace(wanted, data_array=array.reshape(wanted.data_array.shape))

    caches = jax.tree.map(split, like.caches, progress.caches, is_leaf=nx.is_namedarray)
    return dataclasses.replace(progress, caches=caches)


def _pad(array: jax.Array, axis: int, size: int) -> jax.Array:
    widths = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths)


def _cached_body(
    model: TransformerLM, rows: int, capacity: int, last_token_only: bool = False
) -> tuple[Layer, Any]:
    """The body with slots for all state, and empty caches."""
    body = _with_last_token_only(model.body) if last_token_only else model.body
    cached = with_caches(
        body,
        model.metadata,
        cache_len=capacity,
        batch_axes={"batch": rows},
        label_prefix=_CACHE_LABEL,
    )
    return unbind_state_vars(cached, freeze=True)


def _call(
    slots: Any, state: tuple[Any, Any], tokens: jax.Array, side_inputs: dict[str, jax.Array]
) -> tuple[jax.Array, Any]:
    """Logits, float32 {row, …, vocabulary}, and the caches afterwards."""
    caches, other_state = state
    named = {
        name: value if value.ndim == 0 else nx.wrap(value, *("batch", "seq")[: value.ndim])
        for name, value in side_inputs.items()
    }
    logits, state = slots.stateless_call(
        (*caches, *other_state), nx.wrap(tokens, "batch", "seq"), **named
    )
    axes = (
        ("batch", "seq", "vocabulary") if "seq" in logits.named_shape else ("batch", "vocabulary")
    )
    return logits.unwrap(*axes).astype(jnp.float32), state[: len(caches)]


def _choose(
    progress: Progress, logits: jax.Array, index: jax.Array, settings: Settings, sampling: bool
) -> Progress:
    """Chooses each row's token number `index` from its logits {row, vocabulary}."""
    rows = logits.shape[0]
    if sampling:
        key = jax.random.fold_in(settings.key, index)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))
        token = jax.vmap(jax.random.categorical)(keys, logits / settings.temperature)
    else:
        token = jnp.argmax(logits, axis=-1)
    token = token.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    log_probability = chosen - jax.nn.logsumexp(logits, axis=-1)
    return dataclasses.replace(
        progress,
        token=token,
        done=progress.done | jnp.any(token[:, None] == settings.stop_ids, axis=-1),
        counts=progress.counts + ~progress.done,
        tokens=jax.lax.dynamic_update_slice(progress.tokens, token[:, None], (0, index)),
        log_probabilities=jax.lax.dynamic_update_slice(
            progress.log_probabilities, log_probability[:, None], (0, index)
        ),
    )


@pytree_dataclass
class _TakeToken(Layer):
    """Keeps one token of each row: what a prompt's head needs to see."""

    input_name = "index_of_last_token"

    def __call__(self, value: nx.NamedArrayBase, /, **side_inputs: Any) -> nx.NamedArrayBase:
        index = side_inputs[self.input_name]
        taken: nx.NamedArrayBase = nx.nmap(lambda row, i: row[i])(value.untag("seq"), index)
        return taken


def _with_last_token_only(body: Any) -> Any:
    """Lets norm and head see the last token alone, where nothing after the blocks mixes tokens.

    Logits of a whole prompt are large (1,000 tokens of a vocabulary of 128,000: 0.5 GB) and only
    those of the last token are used. A body that was edited into another shape is left as it is.
    """
    if type(body) is not Sequential:
        return body
    layers = list(body.sublayers)
    tail = len(layers)
    while tail and isinstance(layers[tail - 1], _POINTWISE):
        tail -= 1
    if tail == len(layers):
        return body
    return Sequential([*layers[:tail], _TakeToken(), *layers[tail:]])
