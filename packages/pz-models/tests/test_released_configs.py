"""Configurations with the fields of released files, sizes made small: all are understood."""

import pytest
from pz_models_families import RandomCheckpoint

from pz_models.loading import model_from_checkpoint

SIZES = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
BOOKKEEPING = {
    "architectures": ["X"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
    "initializer_range": 0.02, "torch_dtype": "float32", "transformers_version": "4.45.0",
    "use_cache": True,
}  # fmt: skip
PLAIN = {"attention_bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_scaling": None}
LLAMA_3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GEMMA = {
    "attention_bias": False, "pad_token_id": 0, "rms_norm_eps": 1e-6, "head_dim": 6,
    "query_pre_attn_scalar": 256,
}  # fmt: skip
YARN_OF_MINISTRAL_3 = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
    "rope_theta": 1e6, "rope_type": "yarn", "type": "yarn",
}  # fmt: skip
RELEASED = {
    "Llama 2": {**PLAIN, "model_type": "llama", "pretraining_tp": 1, "tie_word_embeddings": False},
    "Llama 3.1": {
        **PLAIN, "model_type": "llama", "mlp_bias": False, "pretraining_tp": 1,
        "rope_scaling": LLAMA_3, "rope_theta": 5e5, "tie_word_embeddings": False,
    },
    "SmolLM 2": {
        **PLAIN, "model_type": "llama", "is_llama_config": True, "mlp_bias": False,
        "pretraining_tp": 1, "rope_interleaved": False, "rope_theta": 100_000,
        "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {}},
    },
    "SmolLM 3": {
        **PLAIN, "model_type": "smollm3", "layer_types": ["full_attention"] * 4,
        "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0], "pretraining_tp": 2, "rope_theta": 5e6,
        "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True,
    },
    "Mistral 0.1": {
        "model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "sliding_window": 4096, "tie_word_embeddings": False,
    },
    "Mixtral": {
        "model_type": "mixtral", "hidden_act": "silu", "num_experts_per_tok": 2,
        "num_local_experts": 3, "output_router_logits": False, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "Ministral 3": {
        "model_type": "ministral3", "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_parameters": YARN_OF_MINISTRAL_3, "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "Qwen 2.5": {
        "model_type": "qwen2", "hidden_act": "silu", "max_window_layers": 21, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "sliding_window": 32768, "tie_word_embeddings": True,
        "use_mrope": False, "use_sliding_window": False,
    },
    "Qwen 3": {
        **PLAIN, "model_type": "qwen3", "head_dim": 6, "max_window_layers": 28, "rope_theta": 1e6,
        "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "Qwen 3 30B-A3B": {
        **PLAIN, "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 6,
        "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 8,
        "norm_topk_prob": True, "num_experts": 4, "num_experts_per_tok": 2,
        "output_router_logits": False, "rope_theta": 1e6, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
    },
    "Gemma": {
        "model_type": "gemma", "attention_bias": False, "head_dim": 6, "hidden_act": "gelu",
        "hidden_activation": None, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1e4,
    },
    "Gemma 2": {
        **GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e4, "sliding_window": 4096,
    },
    "Gemma 3 1B": {
        **GEMMA, "model_type": "gemma3_text", "attn_logit_softcapping": None,
        "cache_implementation": "hybrid", "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10_000,
        "rope_scaling": None, "rope_theta": 1_000_000, "sliding_window": 512,
        "sliding_window_pattern": 6,
    },
    "Gemma 3 270M": {
        **GEMMA, "model_type": "gemma3_text", "_sliding_window_pattern": 6,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 1e4, "rope_theta": 1e6,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "rope_scaling": None,
        "sliding_window": 512, "use_bidirectional_attention": False,
    },
    "OLMo 2": {
        **PLAIN, "model_type": "olmo2", "pad_token_id": 1, "rope_theta": 500_000,
        "tie_word_embeddings": False,
    },
    "Phi-3 mini": {
        **PLAIN, "model_type": "phi3", "auto_map": {}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "original_max_position_embeddings": 4096, "rope_theta": 1e4, "sliding_window": 2047,
        "tie_word_embeddings": False,
    },
    "Phi-4 mini": {
        **PLAIN, "model_type": "phi3", "auto_map": {}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "full_attn_mod": 1, "hidden_size": 32, "interpolate_factor": 1, "lm_head_bias": False,
        "mlp_bias": False, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rope_theta": 1e4, "sliding_window": 262_144,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 3, "short_factor": [1.0] * 3},
        "tie_word_embeddings": True,
    },
    "Pythia": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "num_key_value_heads": None, "hidden_size": 32, "rotary_emb_base": 10_000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
    },
    "GPT-2": {
        **dict.fromkeys(set(SIZES) - {"vocab_size"}), "model_type": "gpt2",
        "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "n_ctx": 32, "n_embd": 16, "n_head": 4, "n_layer": 2,
        "n_positions": 32, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
        "summary_use_proj": True, "task_specific_params": {"text-generation": {"max_length": 50}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_the_fields_of_released_models_are_understood(name):
    stated = BOOKKEEPING | SIZES | RELEASED[name]
    config = {
        key: value
        for key, value in stated.items()
        if value is not None or key not in SIZES  # sizes that a family does not have
    }
    model = model_from_checkpoint(RandomCheckpoint(config))
    assert model.metadata.huggingface_config == config
