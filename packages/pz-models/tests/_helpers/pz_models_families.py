"""One or more tiny configurations of every family, and random checkpoints of them."""

import numpy as np

from pz_models.checkpoints import Checkpoint, StoredTensor
from pz_models.config_reader import ConfigReader
from pz_models.families import family_of
from pz_models.parameter_plan import plan_reads

_SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 3,
    "pad_token_id": 0,
}
_NESTED_ROTARY = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
         "original_max_position_embeddings": 16}  # fmt: skip

# Name of the case -> fields beside the sizes; the name begins with the model_type.
CASES = {
    "llama": {"tie_word_embeddings": False},
    "llama tied": {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 5e5},
    "llama biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 6},
    "mistral": {"sliding_window": 5, "num_key_value_heads": 1},
    "ministral": {"sliding_window": 5, "head_dim": 6},
    "ministral3": {
        "head_dim": 4,
        "rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1, "max_position_embeddings": 64},
    },
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 6},
    "qwen3_moe": {
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 6
    },
    "qwen3_moe partly dense": {
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "decoder_sparse_step": 2,
    },
    "gemma": {"head_dim": 6, "num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {"head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 6, "sliding_window": 5, "rope_parameters": _NESTED_ROTARY},
    "olmo2": {"attention_bias": True},
    "phi3": {"sliding_window": None, "num_key_value_heads": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "gpt_neox": {"num_key_value_heads": None, "use_parallel_residual": False, "rotary_pct": 0.5},
    "gpt2": {
        "n_embd": 16, "n_head": 4, "n_layer": 4, "n_inner": 12, "n_positions": 32,
        **dict.fromkeys(set(_SIZES) - {"vocab_size", "bos_token_id", "pad_token_id"}),
    },
}  # fmt: skip


def config_of(case):
    """The tiny `config.json` of a case."""
    stated = _SIZES | CASES[case] | {"model_type": case.split()[0]}
    return {key: value for key, value in stated.items() if value is not None}


class RandomCheckpoint(Checkpoint):
    """The tensors that the family's plan asks for, with random values."""

    def __init__(self, config, dtype=np.float32):
        family = family_of(config, "test")
        outer, blocks = family.parameters(family.read_config(ConfigReader(config, "test")))
        rng = np.random.default_rng(0)
        self.name, self.config, self.dtype = "random", config, np.dtype(dtype)
        self.arrays = {
            read.key: (rng.normal(size=read.shape) * 0.2).astype(dtype)
            for read in plan_reads(outer, blocks)
        }
        self.tensors = {k: StoredTensor(v.shape, "", v.nbytes) for k, v in self.arrays.items()}

    def read_into(self, key, out):
        out[...] = self.arrays[key]
