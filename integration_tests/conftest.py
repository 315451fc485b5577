"""What several whole-system tests start from."""

import sys
import types

import jax
import numpy as np
import pytest


def write_gemma(folder, blocks, generation):
    """Writes a small checkpoint in the layout of Kaggle's Flax files, with random arrays."""
    ocp = pytest.importorskip("orbax.checkpoint")
    rng = np.random.default_rng(0)
    norms = ["pre_attention_norm", "pre_ffw_norm"]
    norms += ["post_attention_norm", "post_ffw_norm"] if generation > 1 else []
    shapes = {"transformer/embedder": {"input_embedding": (16, 8)},
              "transformer/final_norm": {"scale": (8,)}}  # fmt: skip
    for i in range(blocks):
        layer = f"transformer/layer_{i}"
        shapes |= {f"{layer}/{norm}": {"scale": (8,)} for norm in norms}
        shapes |= {
            f"{layer}/attn/q_einsum": {"w": (4, 8, 8)},
            f"{layer}/attn/kv_einsum": {"w": (2, 2, 8, 8)},
            f"{layer}/attn/attn_vec_einsum": {"w": (4, 8, 8)},
            f"{layer}/mlp/gating_einsum": {"w": (2, 16, 8)},
            f"{layer}/mlp/linear": {"w": (16, 8)},
        }
        if generation > 2:
            shapes |= {f"{layer}/attn/_{n}_norm": {"scale": (8,)} for n in ("query", "key")}
    params = jax.tree_util.tree_map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    ocp.PyTreeCheckpointer().save(folder.absolute(), params)


GEMMAS = [  # name on Kaggle, folder of the checkpoint, blocks, generation, window of block 0
    ("google/gemma/Flax/7b", "7b", 28, 1, None),
    ("google/gemma-2/flax/gemma2-9b", "gemma2_9b_pt", 42, 2, 4096),
    ("google/gemma-3/flax/gemma3-4b", "gemma3_4b_pt", 34, 3, 1024),
]


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """In place of the library `kagglehub`: what it would download lies here, with small arrays."""
    module = types.ModuleType("kagglehub")
    module.model_download = lambda name: str(tmp_path / name)
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    for name, folder, blocks, generation, _ in GEMMAS:
        write_gemma(tmp_path / name / folder, blocks, generation)
    return GEMMAS


@pytest.fixture(scope="module")
def compile_fast():
    """For modules that compile every model once: fast compilation matters, fast running does not."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
