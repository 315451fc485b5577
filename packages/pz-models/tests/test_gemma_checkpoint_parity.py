"""Gemma's Flax layout, written from small HuggingFace Gemmas, computes what those compute."""

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny

from pz_models.transformer.variants import gemma
from pz_named import named_axes as nx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's

TOKENS = np.random.default_rng(0).integers(0, 31, 14)
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,  # the seventh block of Gemma 3 begins the pattern anew
    "num_attention_heads": 4,
    "head_dim": 8,
    "pad_token_id": 0,
}
# Case -> class, preset, key/value heads, what the preset says, in HuggingFace's spelling.
CASES = {
    "gemma": ("Gemma", "gemma_2b", 1, {}),
    "gemma fused": ("Gemma", "gemma_7b", 4, {}),
    "gemma 2": ("Gemma2", "gemma2_2b", 2, {"query_pre_attn_scalar": 8, "sliding_window": 4096}),
    "gemma 2 by width": (
        "Gemma2",
        "gemma2_27b",
        2,
        {"query_pre_attn_scalar": 4, "sliding_window": 4096},
    ),
    "gemma 3": (
        "Gemma3Text",
        "gemma3_4b",
        2,
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": 1024,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


def _flax_layout(model, kv_heads, *, gate_is_transposed):
    """The state dict as nested dictionaries in Flax's layout."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    heads, size, width = SIZES["num_attention_heads"], SIZES["head_dim"], SIZES["hidden_size"]
    found = {
        "embedder": {"input_embedding": state["model.embed_tokens.weight"]},
        "final_norm": {"scale": state["model.norm.weight"]},
    }
    later = "model.layers.0.pre_feedforward_layernorm.weight" in state
    norms = {"pre_attention_norm": "input_layernorm"} | (
        {"post_attention_norm": "post_attention_layernorm",
         "pre_ffw_norm": "pre_feedforward_layernorm",
         "post_ffw_norm": "post_feedforward_layernorm"}
        if later else {"pre_ffw_norm": "post_attention_layernorm"}
    )  # fmt: skip
    for i in range(SIZES["num_hidden_layers"]):
        of = lambda name, i=i: state[f"model.layers.{i}.{name}.weight"]  # noqa: E731

        def heads_first(name, count, of=of):  # (heads x size, width) -> (heads, width, size)
            return of(f"self_attn.{name}_proj").reshape(count, size, width).swapaxes(1, 2)

        query, key, value = (
            heads_first(name, count)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if kv_heads == heads:
            attention = {"qkv_einsum": {"w": np.stack([query, key, value])}}
        else:
            attention = {"q_einsum": {"w": query}, "kv_einsum": {"w": np.stack([key, value])}}
        output = of("self_attn.o_proj").reshape(width, heads, size).transpose(1, 2, 0)
        attention["attn_vec_einsum"] = {"w": output}
        if f"model.layers.{i}.self_attn.q_norm.weight" in state:
            attention |= {
                f"_{n}_norm": {"scale": of(f"self_attn.{n[0]}_norm")} for n in ("query", "key")
            }
        gate = np.stack([of("mlp.gate_proj"), of("mlp.up_proj")])
        found[f"layer_{i}"] = {
            "attn": attention,
            "mlp": {
                "gating_einsum": {"w": gate if gate_is_transposed else gate.swapaxes(1, 2)},
                "linear": {"w": of("mlp.down_proj").T},
            },
            **{ours: {"scale": of(theirs)} for ours, theirs in norms.items()},
        }
    return {"transformer": found}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_huggingface(case):
    name, preset, kv_heads, changes = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **SIZES, num_key_value_heads=kv_heads, **changes
    )
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms are constant when fresh
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    tree = _flax_layout(model, kv_heads, gate_is_transposed=kv_heads == 2)
    ours = gemma.gemma_from_pretrained_checkpoint(
        tree, use_layer_stack=kv_heads == 2, preset_name=preset
    )
    logits = tiny.logits(ours, nx.wrap(jnp.asarray(TOKENS), "seq"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
