"""A Llama of the 135M shape in plain JAX: the speed limit that our figures are compared with.

One idea: write what a careful JAX programmer would write if speed were the only aim. Weights of
all layers are stacked and scanned over, the caches are stacked too, travel in the scan's carry
and get only the new positions written, generation is one program (a scan over layers inside a
loop over tokens), and the caches are donated to it.

    weights = init(jax.random.key(0), SHAPE_135M)
    logits = forward(weights, tokens, shape=SHAPE_135M)               # {batch, seq, vocabulary}
    caches = empty_caches(SHAPE_135M, batch=1, capacity=256)
    logits, caches = prefill(weights, caches, tokens, shape=SHAPE_135M)
    new, caches = decode(weights, caches, logits[:, -1].argmax(-1), tokens.shape[1],
                         shape=SHAPE_135M, steps=64)

Architecture: Llama (RMS norm, rotary positions by halves, grouped queries, SwiGLU), tied head; the
feed-forward parts may be mixtures of experts (Mixtral).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["SHAPE_135M", "Shape", "decode", "empty_caches", "forward", "init", "prefill"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; letters as in the shape comments: L layers, D embedding, K key/value
    heads, M query heads for each of them, P head size, F neurons, V vocabulary, E experts
    (0 for dense layers)."""

    layers: int
    embedding: int
    kv_heads: int
    queries_per_kv: int
    head: int
    neurons: int
    vocabulary: int
    rope_base: float = 1e5
    epsilon: float = 1e-5
    experts: int = 0
    experts_per_token: int = 0


SHAPE_135M = Shape(30, 576, 3, 3, 64, 1536, 49152)


def init(key: jax.Array, shape: Shape) -> dict[str, jax.Array]:
    """Random float32 weights, those of all layers stacked along axis 0."""
    L, D, K, M, P, F = (shape.layers, shape.embedding, shape.kv_heads, shape.queries_per_kv,
                        shape.head, shape.neurons)  # fmt: skip
    sizes = {
        "embed": (shape.vocabulary, D),
        "query": (L, K * M * P, D),
        "key": (L, K * P, D),
        "value": (L, K * P, D),
        "output": (L, D, K * M * P),
        "gate": (L, F, D),
        "up": (L, F, D),
        "down": (L, D, F),
    }
    if E := shape.experts:
        sizes |= {"router": (L, E, D)}
        sizes |= {"gate": (L, E, D, F), "up": (L, E, D, F), "down": (L, E, F, D)}
    keys = jax.random.split(key, len(sizes))
    weights = {
        name: jax.random.normal(k, size) * D**-0.5
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return weights | {
        "norm_1": jnp.ones((L, D)),
        "norm_2": jnp.ones((L, D)),
        "norm_final": jnp.ones(D),
    }


def empty_caches(shape: Shape, batch: int, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Caches for keys {l, b, k, p, capacity} and values {l, b, k, capacity, p}.

    Keys lie transposed, as the product with the queries reads them without a copy.
    """
    heads = (shape.layers, batch, shape.kv_heads)
    return jnp.zeros((*heads, shape.head, capacity)), jnp.zeros((*heads, capacity, shape.head))


def _norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def _rotary_tables(positions: jax.Array, shape: Shape) -> tuple[jax.Array, jax.Array]:
    frequencies = shape.rope_base ** (-jnp.arange(0, shape.head, 2) / shape.head)
    angles = positions[:, None] * frequencies  # {seq, head / 2}
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x {batch, heads..., seq, head} by halves."""
    cos, sin = tables
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiplies x {..., in} by weight {out, in}.

    As matrices: XLA transposes operands with more axes first when it makes the weight's gradient.
    """
    rows = x.reshape(-1, x.shape[-1])
    return jnp.einsum("ri,oi->ro", rows, weight).reshape(*x.shape[:-1], -1)


def _mix(query: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax attention; query {b, k, m, q, p}, keys {b, k, p, s}, values {b, k, s, p}, visible {q, s}."""
    scores = jnp.einsum("bkmqp,bkps->bkmqs", query, keys) * query.shape[-1] ** -0.5
    scores = jnp.where(visible, scores, -1e30)
    return jnp.einsum("bkmqs,bksp->bkmqp", jax.nn.softmax(scores, axis=-1), values)


def _project(x: jax.Array, w: dict[str, jax.Array], tables: Any, shape: Shape) -> Any:
    """Query {b, k, m, s, p}, key {b, k, p, s} and value {b, k, s, p} of a layer's input {b, s, d}."""
    batch, seq, _ = x.shape
    x = _norm(x, w["norm_1"], shape.epsilon)
    query = _matmul(x, w["query"]).reshape(batch, seq, shape.kv_heads, -1, shape.head)
    key = _matmul(x, w["key"]).reshape(batch, seq, shape.kv_heads, shape.head)
    value = _matmul(x, w["value"]).reshape(batch, seq, shape.kv_heads, shape.head)
    query, key, value = query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2)
    return _rotate(query, tables), _rotate(key, tables).swapaxes(2, 3), value


def _experts(x: jax.Array, w: dict[str, jax.Array], per_token: int) -> jax.Array:
    """Sum over the best experts of each token {batch, seq, d}, dropless."""
    tokens = x.reshape(-1, x.shape[-1])
    probabilities = jax.nn.softmax(tokens @ w["router"].T, axis=-1)
    best, chosen = jax.lax.top_k(probabilities, per_token)
    best = best / jnp.sum(best, axis=-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=probabilities.shape[-1])
    inputs = tokens[order // per_token]
    hidden = jax.nn.silu(jax.lax.ragged_dot(inputs, w["gate"], sizes))
    hidden = hidden * jax.lax.ragged_dot(inputs, w["up"], sizes)
    outputs = jax.lax.ragged_dot(hidden, w["down"], sizes)[jnp.argsort(order)]
    outputs = outputs.reshape(*chosen.shape, -1) * best[..., None]  # {tokens, choices, d}
    return jnp.sum(outputs, axis=1).reshape(x.shape)


def _finish(x: jax.Array, mixed: jax.Array, w: dict[str, jax.Array], shape: Shape) -> jax.Array:
    mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(*x.shape[:2], -1)  # {b, s, k * m * p}
    x = x + _matmul(mixed, w["output"])
    y = _norm(x, w["norm_2"], shape.epsilon)
    if shape.experts:
        return x + _experts(y, w, shape.experts_per_token)
    hidden = jax.nn.silu(_matmul(y, w["gate"])) * _matmul(y, w["up"])
    return x + _matmul(hidden, w["down"])


def _split_layers(weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {k: v for k, v in weights.items() if k not in ("embed", "norm_final")}


def _head(x: jax.Array, weights: dict[str, jax.Array], epsilon: float) -> jax.Array:
    return _matmul(_norm(x, weights["norm_final"], epsilon), weights["embed"])


@functools.partial(jax.jit, static_argnames=("shape", "policy"))
def forward(
    weights: dict[str, jax.Array], tokens: jax.Array, *, shape: Shape, policy: Any = None
) -> jax.Array:
    """Logits {batch, seq, vocabulary} of tokens {batch, seq}, without caches.

    A backward pass keeps of each layer what `policy` says, if one is given.
    """
    seq = tokens.shape[1]
    tables = _rotary_tables(jnp.arange(seq), shape)
    visible = jnp.tril(jnp.ones((seq, seq), bool))

    def layer(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        query, key, value = _project(x, w, tables, shape)
        return _finish(x, _mix(query, key, value, visible), w, shape), None

    body = jax.checkpoint(layer, policy=policy, prevent_cse=False) if policy else layer
    x, _ = jax.lax.scan(body, weights["embed"][tokens], _split_layers(weights))
    return _head(x, weights, shape.epsilon)


def _cached(
    weights: dict[str, jax.Array],
    caches: tuple[jax.Array, jax.Array],
    tokens: jax.Array,
    start: jax.Array,
    shape: Shape,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Residual stream after the last layer, and the caches with the new positions written."""
    seq, capacity = tokens.shape[1], caches[1].shape[3]
    positions = start + jnp.arange(seq)
    tables = _rotary_tables(positions, shape)
    visible = jnp.arange(capacity) <= positions[:, None]  # {seq, capacity}

    def layer(carry: Any, slices: Any) -> tuple[Any, None]:
        x, keys, values = carry
        index, w = slices
        query, key, value = _project(x, w, tables, shape)
        keys = jax.lax.dynamic_update_slice(keys, key[None], (index, 0, 0, 0, start))
        values = jax.lax.dynamic_update_slice(values, value[None], (index, 0, 0, start, 0))
        mixed = _mix(query, keys[index], values[index], visible)
        return (_finish(x, mixed, w, shape), keys, values), None

    layers = (jnp.arange(shape.layers), _split_layers(weights))
    (x, *new), _ = jax.lax.scan(layer, (weights["embed"][tokens], *caches), layers)
    return x, (new[0], new[1])


@functools.partial(jax.jit, static_argnames="shape", donate_argnames="caches")
def prefill(
    weights: dict[str, jax.Array],
    caches: tuple[jax.Array, jax.Array],
    tokens: jax.Array,
    *,
    shape: Shape,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs the prompt {batch, seq} from position 0; logits {batch, vocabulary} of its last token."""
    x, caches = _cached(weights, caches, tokens, jnp.int32(0), shape)
    return _head(x[:, -1], weights, shape.epsilon), caches


@functools.partial(jax.jit, static_argnames=("shape", "steps"), donate_argnames="caches")
def decode(
    weights: dict[str, jax.Array],
    caches: tuple[jax.Array, jax.Array],
    first: jax.Array,
    start: jax.Array,
    *,
    shape: Shape,
    steps: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Greedy tokens {batch, steps}: token `first` {batch} stands at position `start`."""

    def step(carry: Any, offset: jax.Array) -> tuple[Any, jax.Array]:
        token, caches = carry
        x, caches = _cached(weights, caches, token[:, None], start + offset, shape)
        token = jnp.argmax(_head(x[:, 0], weights, shape.epsilon), axis=-1)
        return (token, caches), token

    (_, caches), tokens = jax.lax.scan(step, (first, caches), jnp.arange(steps))
    return tokens.T, caches
