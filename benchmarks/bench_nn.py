"""Costs of pz-nn beside hand-written JAX and upstream: stacks, dispatch, decoding, program size.

Each row runs `handwritten_llama` and the same model built from layers (`layered_llama`) in turn, in one
process. Upstream joins where `penzai` 0.2.5 is installed (never beside our umbrella).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import handwritten_llama as peer
import jax
import jax.numpy as jnp
import layered_llama as layered
from harness import Row, compare, counted

from pz_core.struct import Struct
from pz_core.variables import unbind_variables
from pz_named import named_axes as nx
from pz_nn.stack_surgery import unstack

__all__ = ["PROGRAMS"]

# The blocks of the 135M shape; a small vocabulary, so that the head does not hide the stack.
STACK = dataclasses.replace(peer.SHAPE_135M, vocabulary=512)
TINY = peer.Shape(30, 8, 2, 2, 4, 16, 32)
SEQ = 128
HAND = "hand-written JAX"


def _tokens(vocabulary: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (1, SEQ), 0, vocabulary)


def _logits(model: Any, tokens: jax.Array) -> jax.Array:
    named = nx.wrap(tokens, "batch", "seq")
    positions = nx.arange("seq", tokens.shape[1])
    logits: jax.Array = model(named, token_positions=positions).unwrap("batch", "seq", "vocabulary")
    return logits


@functools.cache
def _models(shape: peer.Shape) -> tuple[Any, dict[str, jax.Array]]:
    weights = peer.init(jax.random.key(0), shape)
    return layered.build_llama(weights, shape), weights


def forward() -> list[Row]:
    """A forward pass over 128 tokens."""
    model, weights = _models(STACK)
    tokens = _tokens(STACK.vocabulary)
    run = jax.jit(_logits)
    rows = compare(
        "forward of 30 stacked blocks, 128 tokens",
        lambda: run(model, tokens),
        {HAND: lambda: peer.forward(weights, tokens, shape=STACK)},
        targets={HAND: 1.05},
    )
    upstream = _upstream_model(STACK, stacked=True)
    if upstream is not None:
        theirs = jax.jit(_upstream_logits)
        rows += compare(
            "forward of 30 stacked blocks, 128 tokens",
            lambda: run(model, tokens),
            {"upstream": lambda: theirs(upstream, tokens)},
            targets={"upstream": 1.0},
        )
    return rows


def gradient() -> list[Row]:
    """The gradient of a loss with respect to all weights."""
    model, weights = _models(STACK)
    tokens = _tokens(STACK.vocabulary)
    ours = jax.jit(jax.grad(lambda model: jnp.square(_logits(model, tokens)).mean()))
    theirs = jax.jit(jax.grad(lambda w: jnp.square(peer.forward(w, tokens, shape=STACK)).mean()))
    peers: dict[str, Callable[[], Any]] = {HAND: lambda: theirs(weights)}
    upstream = _upstream_parts(STACK, stacked=True)
    if upstream is not None:
        slots, params = upstream

        @jax.jit
        def upstream_gradient(params: Any) -> Any:
            def loss(params: Any) -> Any:
                return jnp.square(_upstream_logits(slots.bind_variables(params), tokens)).mean()

            return jax.grad(loss)(params)

        peers["upstream"] = lambda: upstream_gradient(params)
    return compare(
        "gradient of 30 stacked blocks, 128 tokens",
        lambda: ours(model),
        peers,
        targets={HAND: 1.05, "upstream": 1.0},
        max_s=60.0,
    )


def compilation() -> list[Row]:
    """Tracing, lowering and compiling, with all caches cleared before."""
    model, weights = _models(STACK)
    tokens = _tokens(STACK.vocabulary)

    def compiled(function: Callable[..., Any], *arguments: Any) -> None:
        jax.clear_caches()
        jax.jit(lambda *a: function(*a)).lower(*arguments).compile()

    def hand(weights: Any, tokens: Any) -> Any:
        return peer.forward(weights, tokens, shape=STACK)

    peers: dict[str, Callable[[], Any]] = {HAND: lambda: compiled(hand, weights, tokens)}
    upstream = _upstream_model(STACK, stacked=True)
    if upstream is not None:
        peers["upstream"] = lambda: compiled(_upstream_logits, upstream, tokens)
    return compare(
        "trace, lower and compile 30 stacked blocks",
        lambda: compiled(_logits, model, tokens),
        peers,
        targets={HAND: 1.5, "upstream": 1.0},
        max_s=60.0,
    )


def program_size() -> list[Row]:
    """Lines of StableHLO for 8 and 64 blocks."""

    def lines(layers: int) -> int:
        shape = dataclasses.replace(TINY, layers=layers)
        lowered = jax.jit(_logits).lower(_models(shape)[0], _tokens(TINY.vocabulary))
        return lowered.as_text().count("\n")

    return counted(
        "StableHLO of 64 blocks", lines(64), {"8 blocks": lines(8)}, unit="lines",
        targets={"8 blocks": 1.0},
    )  # fmt: skip


def dispatch() -> list[Row]:
    """Calling a compiled function that takes the model: what its structure costs per call."""
    model, weights = _models(TINY)
    separate = _with_separate_blocks(model)
    call = jax.jit(lambda tree, x: x + 1.0, keep_unused=True)
    x = jnp.float32(0.0)
    dataclass_tree = _as_registered_dataclasses(separate)
    peers: dict[str, Callable[[], Any]] = {
        "register_dataclass throughout": lambda: call(dataclass_tree, x)
    }
    upstream = _upstream_model(TINY, stacked=False)
    if upstream is not None:
        peers["upstream"] = lambda: call(upstream, x)
    rows = compare(
        "dispatch, 30 separate blocks",
        lambda: call(separate, x),
        peers,
        targets={"register_dataclass throughout": 1.2, "upstream": 1 / 7},
    )
    return rows + compare(
        "dispatch, 30 stacked blocks",
        lambda: call(model, x),
        {"raw arrays": lambda: call(weights, x)},
        targets={"raw arrays": 2.0},
    )


def decoding() -> list[Row]:
    """Greedy decoding with caches: 16 steps in one program, and the bytes that one step touches."""
    shape, capacity, steps = peer.SHAPE_135M, 256, 16
    model, weights = _models(shape)
    cached = layered.with_caches(model, shape, 1, capacity)
    slots, values = unbind_variables(cached, freeze=True)
    first, start = jnp.zeros(1, int), jnp.int32(5)
    held: dict[str, Any] = {
        "states": list(values),
        "caches": peer.empty_caches(shape, 1, capacity),
    }

    def ours() -> Any:
        tokens, held["states"] = layered.decode(slots, held["states"], first, start, steps=steps)
        return tokens

    def theirs() -> Any:
        tokens, held["caches"] = peer.decode(
            weights, held["caches"], first, start, shape=shape, steps=steps
        )
        return tokens

    rows = compare(
        "decode 16 tokens, room for 256", ours, {HAND: theirs}, targets={HAND: 1 / 0.9}, max_s=60.0
    )
    our_step = layered.decode.lower(slots, held["states"], first, start, steps=1)
    their_step = peer.decode.lower(weights, held["caches"], first, start, shape=shape, steps=1)
    return rows + counted(
        "bytes accessed by the program of a step", _bytes(our_step), {HAND: _bytes(their_step)},
        unit="bytes", targets={HAND: 1.05},
    )  # fmt: skip


def decode_steps() -> list[Row]:
    """Decoding token by token, each step a call of a compiled function: upstream's idiom."""
    shape, capacity, steps = peer.SHAPE_135M, 256, 4
    model, _ = _models(shape)
    slots, values = unbind_variables(layered.with_caches(model, shape, 1, capacity), freeze=True)
    held: dict[str, Any] = {"states": list(values)}
    first = jnp.zeros(1, int)

    def ours() -> Any:
        token = first
        for step in range(steps):
            tokens, held["states"] = layered.decode(
                slots, held["states"], token, jnp.int32(5 + step), steps=1
            )
            token = tokens[:, 0]
        return token

    upstream = _upstream_model(shape, stacked=True)
    if upstream is None:
        return []
    from penzai import pz
    from penzai.models.transformer import sampling_mode
    from penzai.toolshed import jit_wrapper

    sampler = sampling_mode.KVCachingTransformerLM.from_uncached(
        upstream, cache_len=capacity, batch_axes={"batch": 1}
    )
    sampler = pz.select(sampler).at(lambda s: s.body).apply(jit_wrapper.Jitted)

    def theirs() -> Any:
        sampler.cache_end_index.value = jnp.int32(5)
        token = pz.nx.wrap(first[:, None]).tag("batch", "seq")
        for _ in range(steps):
            logits = sampler(token)
            token = pz.nx.nmap(jnp.argmax)(logits.untag("vocabulary"))
        return token.unwrap("batch", "seq")

    return compare(
        "decode 4 tokens, one call each", ours, {"upstream": theirs}, targets={"upstream": 1.0},
        max_s=60.0,
    )  # fmt: skip


def _bytes(lowered: Any) -> float:
    return float(lowered.compile().cost_analysis()["bytes accessed"])


def eager_calls() -> list[Row]:
    """A stack that is called eagerly again and again: nothing is traced twice."""
    model, _ = _models(TINY)
    tokens = _tokens(TINY.vocabulary)
    compiled = jax.jit(_logits)
    compiled(model, tokens)
    return compare(
        "eager call of a stacked model, again",
        lambda: _logits(model, tokens),
        {"the same call compiled": lambda: compiled(model, tokens)},
        max_s=5.0,
    )


# --- the other spellings ----------------------------------------------------------------------------


def _with_separate_blocks(model: Any) -> Any:
    lookup, stack, *rest = model.sublayers
    return dataclasses.replace(model, sublayers=[lookup, unstack(stack), *rest])


def _as_registered_dataclasses(tree: Any) -> Any:
    """The same tree with every struct as a plain dataclass of `jax.tree_util.register_dataclass`."""
    if isinstance(tree, Struct) or nx.is_namedarray(tree):
        names = [field.name for field in dataclasses.fields(tree)]
        static = [
            field.name
            for field in dataclasses.fields(tree)
            if not (kind := field.metadata.get("pytree_node", True))
            or field.name == "named_axes"
            or (kind == "unless_number" and isinstance(getattr(tree, field.name), int | float))
        ]
        mirror = _mirror(type(tree).__name__, tuple(names), tuple(static))
        return mirror(*(_as_registered_dataclasses(getattr(tree, name)) for name in names))
    if isinstance(tree, list | tuple):
        return type(tree)(_as_registered_dataclasses(item) for item in tree)
    return tree


@functools.cache
def _mirror(name: str, fields: tuple[str, ...], static: tuple[str, ...]) -> Any:
    return jax.tree_util.register_dataclass(
        dataclasses.make_dataclass(name, fields, frozen=True),
        data_fields=[field for field in fields if field not in static],
        meta_fields=static,
    )


def _upstream_model(shape: peer.Shape, *, stacked: bool) -> Any:
    """Upstream's Llama of a shape, parameters frozen; None where upstream is not installed."""
    parts = _upstream_parts(shape, stacked=stacked)
    return None if parts is None else parts[0].bind_variables(parts[1])


def _upstream_parts(shape: peer.Shape, *, stacked: bool) -> Any:
    """Upstream's Llama without its parameters, and these, frozen; None where it is not installed."""
    try:
        if importlib.metadata.version("penzai") != "0.2.5":
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common

    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=shape.kv_heads,
        query_head_multiplier=shape.queries_per_kv,
        embedding_dim=shape.embedding,
        projection_dim=shape.head,
        mlp_hidden_dim=shape.neurons,
        num_decoder_blocks=shape.layers,
        vocab_size=shape.vocabulary,
        mlp_variant="swiglu",
        tie_embedder_and_logits=True,
        use_layer_stack=stacked,
    )
    model = llamalike_common.build_llamalike_transformer(config, jax.random.key(0))
    return pz.unbind_params(model, freeze=True)


def _upstream_logits(model: Any, tokens: jax.Array) -> Any:
    from penzai import pz

    return model(pz.nx.wrap(tokens).tag("batch", "seq")).unwrap("batch", "seq", "vocabulary")


PROGRAMS: dict[str, Callable[[], list[Row]]] = {
    "forward": forward,
    "gradient": gradient,
    "compilation": compilation,
    "program size": program_size,
    "dispatch": dispatch,
    "decoding": decoding,
    "decode steps": decode_steps,
    "eager calls": eager_calls,
}
