"""Tiny Llamas: configurations, weights under HuggingFace's names, GGUF files."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pz_models.transformer.variants import llamalike_common

CONFIG = llamalike_common.LlamalikeTransformerConfig(
    num_kv_heads=2,
    query_head_multiplier=2,
    embedding_dim=32,
    projection_dim=8,
    mlp_hidden_dim=64,
    num_decoder_blocks=2,
    vocab_size=64,
    mlp_variant="swiglu",
    tie_embedder_and_logits=True,
    scale_embeddings=False,
)


def build(key: Any, **changes: Any) -> Any:
    config = dataclasses.replace(CONFIG, **changes)
    return llamalike_common.build_llamalike_transformer(config, init_base_rng=key)


METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 8,
    "llama.vocab_size": 64,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the tiny Llama, under GGUF's names."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, 32), "output_norm.weight": (32,)}
    for block in range(2):
        found |= {
            f"blk.{block}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (32,),
                "ffn_norm": (32,),
                "attn_q": (32, 32),
                "attn_k": (16, 32),
                "attn_v": (16, 32),
                "attn_output": (32, 32),
                "ffn_gate": (64, 32),
                "ffn_up": (64, 32),
                "ffn_down": (32, 64),
            }.items()
        }
    return found


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes().items()
    }


def write_gguf(
    path: pathlib.Path,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    storage: str = "F32",
) -> pathlib.Path:
    """Writes a GGUF file with the gguf library's own writer; matrices stored as `storage`."""
    import gguf

    metadata = METADATA if metadata is None else metadata
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(key, value)
    kind = gguf.GGMLQuantizationType[storage]
    for name, value in (random_tensors() if tensors is None else tensors).items():
        if storage != "F32" and value.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
