"""Models against hand-written JAX, Penzai 0.2.5 and HuggingFace: the 135M-parameter Llama.

All contenders compute the same model; ours, the hand-written one and HuggingFace's hold the same
weights, and their tokens are compared before anything is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import handwritten_llama
import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, compare

from pz_core.variables import freeze_params
from pz_models import generate
from pz_models.checkpoints import Checkpoint, StoredTensor
from pz_models.loading import model_from_checkpoint
from pz_named import named_axes as nx

__all__ = ["PROGRAMS"]

SHAPE = handwritten_llama.SHAPE_135M
PROMPT, NEW = 32, 64


@functools.cache
def _weights() -> dict[str, jax.Array]:
    weights = handwritten_llama.init(jax.random.key(0), SHAPE)
    return {name: weight.block_until_ready() for name, weight in weights.items()}


def _state_dict() -> dict[str, np.ndarray]:
    """The same weights under HuggingFace's names."""
    weights = {name: np.asarray(weight) for name, weight in _weights().items()}
    found = {
        "model.embed_tokens.weight": weights["embed"],
        "model.norm.weight": weights["norm_final"],
    }
    names = {
        "norm_1": "input_layernorm", "norm_2": "post_attention_layernorm",
        "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
        "output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }  # fmt: skip
    for ours, theirs in names.items():
        for i in range(SHAPE.layers):
            found[f"model.layers.{i}.{theirs}.weight"] = weights[ours][i]
    return found


_CONFIG = {
    "vocab_size": SHAPE.vocabulary,
    "hidden_size": SHAPE.embedding,
    "intermediate_size": SHAPE.neurons,
    "num_hidden_layers": SHAPE.layers,
    "num_attention_heads": SHAPE.kv_heads * SHAPE.queries_per_kv,
    "num_key_value_heads": SHAPE.kv_heads,
    "head_dim": SHAPE.head,
    "rms_norm_eps": SHAPE.epsilon,
    "tie_word_embeddings": True,
}


class _InMemory(Checkpoint):
    name, dtype = "handwritten weights", np.dtype(np.float32)
    config = _CONFIG | {"model_type": "llama", "rope_theta": SHAPE.rope_base}

    def __init__(self) -> None:
        self._arrays = _state_dict()
        self.tensors = {k: StoredTensor(v.shape, "F32", v.nbytes) for k, v in self._arrays.items()}

    def read_into(self, key: str, out: np.ndarray) -> None:
        out[...] = self._arrays[key]


@functools.cache
def _ours(stacked: bool) -> Any:
    return model_from_checkpoint(_InMemory(), use_layer_stack=stacked, progress=False)


@functools.cache
def _huggingface() -> Any:
    import torch
    import transformers

    config = transformers.LlamaConfig(**_CONFIG, rope_theta=SHAPE.rope_base)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tensors = {key: torch.from_numpy(value.copy()) for key, value in _state_dict().items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    inner = model.model.rotary_emb
    model.model.rotary_emb = type(inner)(config=config)  # its buffers were on the meta device
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


@functools.cache
def _upstream(stacked: bool = False) -> Any:
    from penzai.models.transformer.variants import llamalike_common as upstream

    config = upstream.LlamalikeTransformerConfig(
        num_kv_heads=SHAPE.kv_heads,
        query_head_multiplier=SHAPE.queries_per_kv,
        embedding_dim=SHAPE.embedding,
        projection_dim=SHAPE.head,
        mlp_hidden_dim=SHAPE.neurons,
        num_decoder_blocks=SHAPE.layers,
        vocab_size=SHAPE.vocabulary,
        mlp_variant="swiglu",
        tie_embedder_and_logits=True,
        use_layer_stack=stacked,
    )
    return upstream.build_llamalike_transformer(config, jax.random.key(0))


def _tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SHAPE.vocabulary, (1, count))


def _handwritten_generate(prompt: Any, count: int, capacity: int = 256) -> jax.Array:
    caches = handwritten_llama.empty_caches(SHAPE, 1, capacity)
    logits, caches = handwritten_llama.prefill(_weights(), caches, prompt, shape=SHAPE)
    first = logits.argmax(-1)
    start = jnp.int32(prompt.shape[1])
    rest, _ = handwritten_llama.decode(
        _weights(), caches, first, start, shape=SHAPE, steps=count - 1
    )
    return jnp.concatenate([first[:, None], rest], axis=1)


def _huggingface_generate(prompt: Any, count: int) -> Any:
    import torch

    with torch.no_grad():
        return _huggingface().generate(
            torch.from_numpy(prompt), max_new_tokens=count, do_sample=False
        )[:, prompt.shape[1] :]


def forward() -> list[Row]:
    """Logits of 128 tokens."""
    import torch

    from penzai import pz as upstream_pz

    tokens = _tokens(128)
    named = nx.wrap(jnp.asarray(tokens), "batch", "seq")
    call = jax.jit(lambda model, tokens: model(tokens))
    rows = []
    for stacked in (True, False):
        model = freeze_params(_ours(stacked))
        peers: dict[str, Callable[[], Any]] = {
            "hand-written": lambda: handwritten_llama.forward(_weights(), tokens, shape=SHAPE),
        }
        if stacked:
            theirs = upstream_pz.freeze_params(_upstream())
            their_tokens = upstream_pz.nx.wrap(jnp.asarray(tokens), "batch", "seq")
            peers["Penzai 0.2.5 (unstacked)"] = functools.partial(call, theirs, their_tokens)

            def torch_forward() -> Any:
                with torch.no_grad():
                    return _huggingface()(torch.from_numpy(tokens)).logits.numpy()

            peers["HuggingFace"] = torch_forward
        ours = functools.partial(call, model, named)
        error = jnp.abs(ours().unwrap("batch", "seq", "vocabulary") - peers["hand-written"]()).max()
        assert error < 1e-2, error
        name = f"forward, 128 tokens, {'stacked' if stacked else 'unstacked'}"
        targets = {"hand-written": 1.05, "HuggingFace": 1.0, "Penzai 0.2.5 (unstacked)": 1.0}
        rows += compare(name, ours, peers, targets=targets, max_s=60)
    return rows


def decode() -> list[Row]:
    """Prompt of 32, 64 new tokens, batch 1."""
    prompt = _tokens(PROMPT)
    peers = {
        "hand-written": functools.partial(_handwritten_generate, prompt, NEW),
        "HuggingFace": functools.partial(_huggingface_generate, prompt, NEW),
    }
    rows = []
    for stacked in (True, False):
        ours = functools.partial(generate, _ours(stacked), prompt[0], max_new_tokens=NEW)
        np.testing.assert_array_equal(ours().tokens, np.asarray(peers["hand-written"]())[0])
        rows += compare(
            f"decode, 32 + 64 tokens, {'stacked' if stacked else 'unstacked'}",
            lambda ours=ours: jnp.asarray(ours().tokens),
            peers,
            targets={"hand-written": 1 / 0.95, "HuggingFace": 1 / 1.4},
            max_s=90,
        )
    return rows


def decode_against_upstream() -> list[Row]:
    """Eight decoding steps: Penzai's supported idiom, a loop around a jitted body."""
    from penzai import pz
    from penzai.models.transformer import sampling_mode, simple_decoding_loop
    from penzai.toolshed import jit_wrapper

    steps, prompt = 8, _tokens(PROMPT)

    def upstream() -> Any:
        sampler = sampling_mode.KVCachingTransformerLM.from_uncached(
            _upstream(), cache_len=256, batch_axes={"batch": 1}
        )
        fast = pz.select(sampler).at(lambda s: s.body).apply(jit_wrapper.Jitted)
        return simple_decoding_loop.temperature_sample_pyloop(
            fast,
            pz.nx.wrap(jnp.asarray(prompt), "batch", "seq"),
            jax.random.key(0),
            max_sampling_steps=steps,
        ).unwrap("batch", "seq")

    def ours() -> Any:
        result = generate(
            _ours(True),
            prompt[0],
            max_new_tokens=steps,
            temperature=1.0,
            key=jax.random.key(0),
        )
        return jnp.asarray(result.tokens)

    return compare(
        "generate, 32 + 8 tokens",
        ours,
        {"Penzai 0.2.5": upstream},
        targets={"Penzai 0.2.5": 1 / 3},
        max_s=90,
    )


def capacity() -> list[Row]:
    """What room for 2,048 tokens costs while 96 are filled."""
    prompt = _tokens(PROMPT)[0]

    def run(room: int) -> Any:
        result = generate(_ours(True), prompt, max_new_tokens=NEW, capacity=room)
        return jnp.asarray(result.tokens)

    hand = functools.partial(_handwritten_generate, _tokens(PROMPT), NEW, 2048)
    return compare(
        "decode with room for 2,048 tokens",
        functools.partial(run, 2048),
        {"room for 256": functools.partial(run, 256), "hand-written, room for 2,048": hand},
        targets={"room for 256": 1 / 0.9},
        max_s=60,
    )


PROGRAMS: dict[str, Callable[[], list[Row]]] = {
    "forward": forward,
    "decode": decode,
    "decode against upstream": decode_against_upstream,
    "capacity": capacity,
}
