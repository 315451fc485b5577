"""Blocks for tests of layer stacks: each a builder `(name, init_base_rng) -> Layer` on {batch, seq, f}.

`CACHED` blocks also read `kv_positions` and `end`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pz_core.struct import pytree_dataclass
from pz_core.variables import StateVariable
from pz_named import named_axes as nx
from pz_nn.attention import (
    ApplyCausalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    Attention,
    KVCachingAttention,
)
from pz_nn.basic_ops import Elementwise, Softmax
from pz_nn.batch_norm import BatchNorm
from pz_nn.combinators import BranchAndMultiplyTogether, Residual
from pz_nn.dropout import StochasticDropout
from pz_nn.embeddings import ApplyRoPE
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import Affine, ConstantRescale, Linear, NamedEinsum
from pz_nn.mixture_of_experts import MixtureOfExperts
from pz_nn.recurrent import GRUCell, ScanOver
from pz_nn.ring_cache import RingKVCachingAttention
from pz_nn.standardization import LayerNorm, RMSLayerNorm

F, H, P = 4, 2, 4
CAPACITY = 8


@pytree_dataclass
class CountCalls(Layer):
    """Multiplies by 1 + 0.1 · (number of calls before), and counts."""

    count: StateVariable[Any]

    def __call__(self, x, /, **_side_inputs):
        """Counts and scales."""
        factor = 1.0 + 0.1 * self.count.value
        self.count.value = self.count.value + 1.0
        return x * factor


@pytree_dataclass
class Remember(Layer):
    """Saves its input."""

    saved: StateVariable[Any]

    def __call__(self, x, /, **_side_inputs):
        """Saves and returns."""
        self.saved.value = x
        return x


def affine(name, init_base_rng):
    return Affine.from_config(name, init_base_rng, {"f": F}, {"f": F})


def gated_mlp(name, init_base_rng):
    gate = Linear.from_config(f"{name}/gate", init_base_rng, {"f": F}, {"h": H})
    up = Linear.from_config(f"{name}/up", init_base_rng, {"f": F}, {"h": H})
    down = Linear.from_config(f"{name}/down", init_base_rng, {"h": H}, {"f": F})
    both = BranchAndMultiplyTogether([Sequential([gate, Elementwise(jax.nn.silu)]), up])
    return Residual(
        Sequential([RMSLayerNorm.from_config(f"{name}/n", init_base_rng, {"f": F}), both, down])
    )


def layer_norm(name, init_base_rng):
    return Sequential(
        [LayerNorm.from_config(f"{name}/norm", init_base_rng, {"f": F}), Elementwise(jnp.tanh)]
    )


def attention(name, init_base_rng, *, mask=None):
    mask = mask or ApplyCausalAttentionMask(-1e30)

    def project(which):
        return Linear.from_config(f"{name}/{which}", init_base_rng, {"f": F}, {"heads": H, "p": P})

    rope = ApplyRoPE("p", 100.0, "token_positions")
    head = {"heads": "h", "p": "p"}
    logits = {"heads": "h", "seq": "q", "kv_seq": "k"}
    return Attention(
        Sequential([project("query"), rope, ConstantRescale(P**-0.5)]),
        Sequential([project("key"), rope]),
        project("value"),
        Sequential(
            [
                NamedEinsum(({"seq": "q", **head}, {"seq": "k", **head}), logits),
                mask,
                Softmax("kv_seq"),
            ]
        ),
        Sequential(
            [
                NamedEinsum((logits, {"seq": "k", **head}), {"seq": "q", **head}),
                Linear.from_config(f"{name}/out", init_base_rng, {"heads": H, "p": P}, {"f": F}),
            ]
        ),
    )


def attention_block(name, init_base_rng):
    return Residual(attention(name, init_base_rng))


def sliding_block(name, init_base_rng):
    mask = ApplyCausalSlidingWindowAttentionMask(-1e30, 2)
    return Residual(attention(name, init_base_rng, mask=mask))


def dropout(name, init_base_rng):
    return Sequential([affine(name, init_base_rng), StochasticDropout(0.5), StochasticDropout(0.1)])


def counting(name, init_base_rng):
    state = StateVariable(nx.wrap(jnp.zeros(())), label=f"{name}/count")
    return Sequential([affine(name, init_base_rng), CountCalls(state)])


def remembering(name, init_base_rng):
    state = StateVariable(None, label=f"{name}/saved")
    return Sequential([affine(name, init_base_rng), Remember(state)])


def caching(name, init_base_rng, *, capacity=CAPACITY):
    mask = ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
    uncached = attention(name, init_base_rng, mask=mask)
    axes = {"batch": 2, "heads": H, "p": P}
    return Residual(
        KVCachingAttention.from_uncached(
            uncached, "seq", capacity, axes, "end", cache_label=f"{name}/cache"
        )
    )


def ring(name, init_base_rng):
    mask = ApplyCausalSlidingWindowAttentionMask(-1e30, 2)
    uncached = attention(name, init_base_rng, mask=mask)
    axes = {"batch": 2, "heads": H, "p": P}
    return Residual(
        RingKVCachingAttention.from_uncached(
            uncached, "seq", 3, axes, "end", cache_label=f"{name}/cache",
            kv_positions_input_name="kv_positions",
        )
    )  # fmt: skip


def recurrent(name, init_base_rng):
    cell = GRUCell.from_config(f"{name}/cell", init_base_rng, {"f": F}, {"f": F})
    return ScanOver(cell, "seq")


def batch_norm(name, init_base_rng):
    return Sequential(
        [affine(name, init_base_rng), BatchNorm.from_config(f"{name}/bn", init_base_rng, {"f": F})]
    )


def experts(name, init_base_rng):
    moe = MixtureOfExperts.from_config(f"{name}/moe", init_base_rng, {"f": F}, {"h": H}, 3, 2)
    return Residual(moe)


STATELESS = [affine, gated_mlp, layer_norm, attention_block, sliding_block, experts, recurrent]
STATEFUL = [dropout, batch_norm, counting, remembering, caching, ring]
ZOO = [*STATELESS, *STATEFUL]
