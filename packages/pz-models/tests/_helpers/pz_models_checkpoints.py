"""A tiny Llama checkpoint in HuggingFace's spelling, and what it computes, in NumPy."""

import numpy as np

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def huggingface_tensors(seed=0):
    """Random tensors under HuggingFace's names, made independently of the loader's tables."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    for i in range(2):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (32,)
        for name, shape in {"q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32)}.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (64, 32), "up": (64, 32), "down": (32, 64)}.items():
            shapes[f"{layer}.mlp.{name}_proj.weight"] = shape
    return {key: rng.normal(size=shape).astype(np.float32) * 0.2 for key, shape in shapes.items()}


def reference_logits(arrays, tokens):
    """The tiny Llama in float64 NumPy, straight from the published formulas."""
    w = {key: value.astype(np.float64) for key, value in arrays.items()}
    norm = lambda x, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * g  # noqa: E731
    n = len(tokens)
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, 8, 2) / 8)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotate(x):
        a, b = x[..., :4], x[..., 4:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(2):
        layer = f"model.layers.{i}"
        y = norm(x, w[f"{layer}.input_layernorm.weight"])
        q, k, v = ((y @ w[f"{layer}.self_attn.{p}_proj.weight"].T).reshape(n, -1, 8) for p in "qkv")
        q, k = rotate(q), np.repeat(rotate(k), 2, axis=1)
        scores = np.einsum("qhp,khp->hqk", q, k) / np.sqrt(8)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khp->qhp", weights, np.repeat(v, 2, axis=1)).reshape(n, -1)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate = y @ w[f"{layer}.mlp.gate_proj.weight"].T
        hidden = gate / (1 + np.exp(-gate)) * (y @ w[f"{layer}.mlp.up_proj.weight"].T)
        x = x + hidden @ w[f"{layer}.mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T
