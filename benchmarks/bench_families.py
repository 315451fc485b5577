"""Every family beside HuggingFace and beside hand-written JAX, at one small shape.

Models are built by transformers with random weights and loaded from memory; the logits are compared
before anything is timed. The hand-written peer of the compile times is a Llama of the same sizes, with
experts (then it computes what Mixtral does) where the family has them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import handwritten_llama
import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, compare

from pz_core.variables import freeze_params
from pz_models import from_huggingface
from pz_named import named_axes as nx

__all__ = ["PROGRAMS"]

LAYERS, EMBEDDING, HEADS, KV_HEADS, HEAD, NEURONS, VOCABULARY = 12, 256, 8, 4, 32, 768, 4096
SHAPE = handwritten_llama.Shape(
    LAYERS, EMBEDDING, KV_HEADS, HEADS // KV_HEADS, HEAD, NEURONS, VOCABULARY
)
TOKENS = 128

_COMMON: dict[str, Any] = {
    "hidden_size": EMBEDDING,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "intermediate_size": NEURONS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": NEURONS // 2}

# model_type -> what its configuration has besides, or instead of, the common fields.
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": EMBEDDING, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS},
    "gpt_neox": {},
    "llama": {},
    "smollm3": {},
    "mistral": {"sliding_window": 64},
    "ministral": {"sliding_window": 64},
    "ministral3": {},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "gemma": {},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": HEAD},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": HEAD},
    "olmo2": {},
    "phi3": {},
}


@functools.cache
def _reference(model_type: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    common = {key: value for key, value in _COMMON.items() if key in known}
    config = transformers.AutoConfig.for_model(model_type, **common | _FAMILIES[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config)
    return model.float().eval()


@functools.cache
def _ours(model_type: str) -> Any:
    return freeze_params(from_huggingface(_reference(model_type), use_layer_stack=True))


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (1, TOKENS))


def forward() -> list[Row]:
    """Logits of 128 tokens, compiled and stacked, against transformers on torch."""
    import torch

    tokens, rows = _tokens(), []
    named = nx.wrap(jnp.asarray(tokens), "batch", "seq")
    call = jax.jit(lambda model, tokens: model(tokens))
    for model_type in _FAMILIES:

        def theirs(model_type: str = model_type) -> Any:
            with torch.no_grad():
                return _reference(model_type)(torch.from_numpy(tokens)).logits.numpy()

        ours = functools.partial(call, _ours(model_type), named)
        error = np.abs(np.asarray(ours().unwrap("batch", "seq", "vocabulary")) - theirs()).max()
        assert error < 1e-3, (model_type, error)
        rows += compare(f"forward, {model_type}", ours, {"HuggingFace": theirs}, max_s=10)
    return rows


def _shape_by_hand(model_type: str) -> handwritten_llama.Shape:
    config = _reference(model_type).config
    if not hasattr(config, "num_experts_per_tok"):
        return SHAPE
    return dataclasses.replace(
        SHAPE,
        neurons=getattr(config, "moe_intermediate_size", NEURONS),
        experts=8,
        experts_per_token=2,
    )


def _weights_by_hand(model_type: str) -> dict[str, jax.Array]:
    """A live Llama's or Mixtral's weights for the hand-written forward pass."""
    state = {
        key.removeprefix("model."): jnp.asarray(value.numpy())
        for key, value in _reference(model_type).state_dict().items()
    }

    def stacked(key: str) -> jax.Array:
        return jnp.stack([state[f"layers.{layer}.{key}"] for layer in range(LAYERS)])

    weights = {"embed": state["embed_tokens.weight"], "norm_final": state["norm.weight"]}
    weights |= {
        name: stacked(f"self_attn.{name[0]}_proj.weight")
        for name in ("query", "key", "value", "output")
    }
    weights["norm_1"] = stacked("input_layernorm.weight")
    weights["norm_2"] = stacked("post_attention_layernorm.weight")
    if "layers.0.mlp.gate.weight" not in state:
        return weights | {
            name: stacked(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")
        }
    both = stacked("mlp.experts.gate_up_proj").swapaxes(2, 3)
    gate, up = jnp.split(both, 2, axis=3)
    down = stacked("mlp.experts.down_proj").swapaxes(2, 3)
    return weights | {"router": stacked("mlp.gate.weight"), "gate": gate, "up": up, "down": down}


def _check_by_hand(model_type: str) -> None:
    """That the hand-written model computes what the family's does."""
    rope = _reference(model_type).config.rope_parameters["rope_theta"]
    epsilon = _reference(model_type).config.rms_norm_eps
    shape = dataclasses.replace(_shape_by_hand(model_type), rope_base=rope, epsilon=epsilon)
    logits = handwritten_llama.forward(_weights_by_hand(model_type), _tokens(), shape=shape)
    ours = jax.jit(lambda model, tokens: model(tokens))(
        _ours(model_type), nx.wrap(jnp.asarray(_tokens()), "batch", "seq")
    )
    error = jnp.abs(logits - ours.unwrap("batch", "seq", "vocabulary")).max()
    assert error < 1e-3, (model_type, error)


def compilation() -> list[Row]:
    """Tracing, lowering and compiling the stacked forward pass."""
    for model_type in ("llama", "mixtral"):
        _check_by_hand(model_type)
    tokens, rows = _tokens(), []
    named = nx.wrap(jnp.asarray(tokens), "batch", "seq")
    forward = handwritten_llama.forward.__wrapped__
    for model_type in _FAMILIES:
        model, shape = _ours(model_type), _shape_by_hand(model_type)
        weights = handwritten_llama.init(jax.random.key(0), shape)

        # A new function each time, so that nothing is found in JAX's caches.
        def by_hand(weights: Any = weights, shape: Any = shape) -> None:
            jax.jit(lambda w, t: forward(w, t, shape=shape)).lower(weights, tokens).compile()

        def ours(model: Any = model) -> None:
            jax.jit(lambda model, tokens: model(tokens)).lower(model, named).compile()

        rows += compare(
            f"trace, lower and compile, {model_type}",
            ours,
            {"hand-written Mixtral" if shape.experts else "hand-written Llama": by_hand},
            targets={"hand-written Mixtral": 1.5, "hand-written Llama": 1.5},
            at_least_s=0.0,
            max_s=10,
        )
    return rows


PROGRAMS: dict[str, Callable[[], list[Row]]] = {"forward": forward, "compilation": compilation}
