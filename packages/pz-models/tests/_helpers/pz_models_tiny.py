"""Tiny Llamas: configurations, weights under HuggingFace's names, GGUF files."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from pz_core.selectors import select
from pz_core.variables import ParameterValue, bind_variables, freeze_params
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

# The configuration of the pinned test vectors.
Z = llamalike_common.LlamalikeTransformerConfig(
    num_kv_heads=2,
    query_head_multiplier=2,
    embedding_dim=16,
    projection_dim=4,
    mlp_hidden_dim=32,
    num_decoder_blocks=2,
    vocab_size=11,
    mlp_variant="swiglu",
    tie_embedder_and_logits=True,
)


def build(key: Any, config: Any = CONFIG, **changes: Any) -> Any:
    """A model with frozen parameters; initialised in one compiled program, to save time."""
    config = dataclasses.replace(config, **changes)
    if key is None:
        return llamalike_common.build_llamalike_transformer(config)
    return jax.jit(
        lambda key: freeze_params(
            llamalike_common.build_llamalike_transformer(config, init_base_rng=key)
        )
    )(key)


@jax.jit
def _call(model: Any, tokens: Any, side_inputs: Any) -> Any:
    logits = model(tokens, **side_inputs)
    axes = (*(axis for axis in logits.named_shape if axis not in ("seq", "vocabulary")), "seq")
    return logits.unwrap(*axes, "vocabulary")


def logits(model: Any, tokens: Any, **side_inputs: Any) -> np.ndarray:
    """Logits {batch…, seq, vocabulary} of a model, compiled."""
    return np.asarray(_call(freeze_params(model), tokens, side_inputs))


def rename_blocks(model: Any) -> Any:
    """The unstacked twin of a model with a layer stack of its blocks."""
    config = dataclasses.replace(model.metadata.config, use_layer_stack=False)
    parameters = []
    for value in select(model).at_instances_of(ParameterValue).get_sequence():
        if "blocks" not in value.value.named_shape:
            parameters.append(value)
            continue
        for i in range(config.num_decoder_blocks):
            label = value.label.replace("/blocks/", f"/block_{i}/")
            parameters.append(
                ParameterValue(label=label, value=value.value[{"blocks": i}], metadata={})
            )
    slots = llamalike_common.build_llamalike_transformer(config)
    unique = {value.label: value for value in parameters}
    return bind_variables(slots, unique.values())


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
