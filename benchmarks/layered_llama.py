"""The model of `handwritten_llama`, built from the layers of pz-nn with the very same weights.

One idea: rows of the benchmarks compare two spellings of one computation, so both models hold the same
arrays and this module only names their axes.

    model = build_llama(peer.init(jax.random.key(0), shape), shape)
    logits = model(tokens, token_positions=positions)
    slots, states = unbind_variables(with_caches(model, shape, batch=1, capacity=256), freeze=True)
    new, states = decode(slots, list(states), first, start, steps=64)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import handwritten_llama as peer
import jax
import jax.numpy as jnp

from pz_core.selectors import select
from pz_core.variables import ParameterValue, bind_variables
from pz_named import named_axes as nx
from pz_nn import attention, embeddings, layer_stack
from pz_nn import basic_ops as ops
from pz_nn import linear_and_affine as linear
from pz_nn.combinators import BranchAndMultiplyTogether, Residual
from pz_nn.grouping import Sequential
from pz_nn.standardization import RMSLayerNorm

__all__ = ["build_block", "build_llama", "decode", "decode_step", "with_caches"]


def build_block(name: str, init_base_rng: Any, shape: peer.Shape) -> Any:
    """One Llama block: attention with grouped queries and rotary positions, gated MLP."""
    D, F, P = shape.embedding, shape.neurons, shape.head
    groups, queries = {"head_groups": shape.kv_heads}, {"query_heads": shape.queries_per_kv}
    make = functools.partial(linear.Linear.from_config, init_base_rng=init_base_rng)

    def norm(which: str) -> Any:
        return RMSLayerNorm.from_config(
            f"{name}/{which}", init_base_rng, {"embedding": D}, epsilon=shape.epsilon
        )

    rope = embeddings.ApplyRoPE("projection", shape.rope_base, "token_positions")
    group, query, head = {"head_groups": "hg"}, {"query_heads": "hq"}, {"projection": "p"}
    logits = {**group, **query, "seq": "tq", "kv_seq": "tkv"}
    mixing = attention.Attention(
        Sequential([
            make(f"{name}/query", input_axes={"embedding": D},
                 output_axes={**groups, **queries, "projection": P}),
            rope,
            linear.ConstantRescale(P**-0.5),
        ]),
        Sequential([
            make(f"{name}/key", input_axes={"embedding": D},
                 output_axes={**groups, "projection": P}),
            rope,
        ]),
        make(f"{name}/value", input_axes={"embedding": D},
             output_axes={**groups, "projection": P}),
        Sequential([
            linear.NamedEinsum(
                ({"seq": "tq", **group, **query, **head}, {"seq": "tkv", **group, **head}), logits
            ),
            attention.ApplyCausalAttentionMask(-1e30),
            ops.Softmax("kv_seq"),
        ]),
        Sequential([
            linear.NamedEinsum(
                (logits, {"seq": "tkv", **group, **head}), {"seq": "tq", **group, **query, **head}
            ),
            make(f"{name}/output", input_axes={**groups, **queries, "projection": P},
                 output_axes={"embedding": D}),
        ]),
    )  # fmt: skip
    gate = make(f"{name}/gate", input_axes={"embedding": D}, output_axes={"neurons": F})
    up = make(f"{name}/up", input_axes={"embedding": D}, output_axes={"neurons": F})
    down = make(f"{name}/down", input_axes={"neurons": F}, output_axes={"embedding": D})
    gated = BranchAndMultiplyTogether([Sequential([gate, ops.Elementwise(jax.nn.silu)]), up])
    return Sequential([
        Residual(Sequential([norm("norm_1"), mixing])),
        Residual(Sequential([norm("norm_2"), gated, down])),
    ])  # fmt: skip


AXES = {
    "query": "head_groups query_heads projection embedding",
    "key": "head_groups projection embedding",
    "value": "head_groups projection embedding",
    "output": "embedding head_groups query_heads projection",
    "gate": "neurons embedding",
    "up": "neurons embedding",
    "down": "embedding neurons",
}


def _named_weights(weights: dict[str, jax.Array], shape: peer.Shape) -> dict[str, Any]:
    """The peer's weights by the labels that ours have, the axis of layers first."""
    sizes = {
        "embedding": shape.embedding,
        "neurons": shape.neurons,
        "head_groups": shape.kv_heads,
        "query_heads": shape.queries_per_kv,
        "projection": shape.head,
    }
    named = {}
    for which, axes in AXES.items():
        split = weights[which].reshape(shape.layers, *(sizes[name] for name in axes.split()))
        named[f"llama/blocks/{which}.weights"] = nx.wrap(split).tag("blocks", *axes.split())
    for which in ("norm_1", "norm_2"):
        label = f"llama/blocks/{which}/scale.weights"
        named[label] = nx.wrap(weights[which]).tag("blocks", "embedding")
    named["llama/norm_final/scale.weights"] = nx.wrap(weights["norm_final"]).tag("embedding")
    named["llama/embed.embeddings"] = nx.wrap(weights["embed"]).tag("vocabulary", "embedding")
    return named


def build_llama(weights: dict[str, jax.Array], shape: peer.Shape, **stack_options: Any) -> Any:
    """The whole model, stacked, with frozen parameters that are the peer's arrays."""
    table = embeddings.EmbeddingTable.from_config(
        "llama/embed", None, shape.vocabulary, {"embedding": shape.embedding}
    )
    stack = layer_stack.LayerStack.from_sublayer_builder(
        build_block, "blocks", shape.layers, None, {"name": "llama/blocks", "shape": shape},
        **stack_options,
    )  # fmt: skip
    norm = RMSLayerNorm.from_config(
        "llama/norm_final", None, {"embedding": shape.embedding}, epsilon=shape.epsilon
    )
    model = Sequential(
        [
            embeddings.EmbeddingLookup(table, embedding_axes_last=True),
            stack,
            norm,
            embeddings.EmbeddingDecode(table),
        ]
    )
    values = [
        ParameterValue(label, value) for label, value in _named_weights(weights, shape).items()
    ]
    return bind_variables(model, values)


def with_caches(model: Any, shape: peer.Shape, batch: int, capacity: int) -> Any:
    """The model with caching attention, as pz-models does it for sampling."""
    axes = {"batch": batch, "head_groups": shape.kv_heads, "projection": shape.head}

    def convert(path: Any, layer: attention.Attention) -> attention.KVCachingAttention:
        return attention.KVCachingAttention.from_uncached(
            layer, "seq", capacity, axes, "cache_end_index", cache_label="cache",
            layerstack_axes=layer_stack.layerstack_axes_from_keypath(path),
        )  # fmt: skip

    caching = select(model).at_instances_of(attention.Attention).apply(convert, with_keypath=True)
    masks = select(caching).at_instances_of(attention.ApplyCausalAttentionMask)
    return masks.apply(
        lambda mask: dataclasses.replace(mask, kv_positions_input_name="kv_token_positions")
    )


def decode_step(model: Any, states: Any, token: jax.Array, end: jax.Array) -> Any:
    """One greedy step: the next token {batch} and the new states.

    Args:
        model: The model without its state variables.
        states: Their frozen values.
        token: The newest token {batch}.
        end: Its index.
    """
    variables = [value.unfreeze_as_copy() for value in states]
    places = jnp.arange(states[0].value[0].named_shape["seq"])
    logits = bind_variables(model, variables)(
        nx.wrap(token[:, None], "batch", "seq"),
        token_positions=nx.wrap(end[None], "seq"),
        kv_token_positions=nx.wrap(jnp.where(places <= end, places, -1), "seq"),
        cache_end_index=end,
    )
    token = jnp.argmax(logits.unwrap("batch", "seq", "vocabulary")[:, 0], axis=-1)
    return token, [variable.freeze() for variable in variables]


@functools.partial(jax.jit, static_argnames="steps", donate_argnames="states")
def decode(model: Any, states: Any, first: Any, start: Any, *, steps: int) -> Any:
    """Greedy tokens {batch, steps}, as `handwritten_llama.decode`, and the new states."""

    def step(carry: Any, offset: jax.Array) -> tuple[Any, jax.Array]:
        token, states = decode_step(model, *reversed(carry), start + offset)
        return (token, states), token

    (_, states), tokens = jax.lax.scan(step, (first, states), jnp.arange(steps))
    return tokens.T, states
