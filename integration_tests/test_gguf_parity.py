"""GGUF files written by the gguf library, read by transformers and by us."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

import jax  # noqa: E402

from pz_core.variables import freeze_params  # noqa: E402
from pz_models import load  # noqa: E402
from pz_named import named_axes as nx  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compile_fast")]
torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's

TOKENS = np.random.default_rng(0).integers(0, 96, 24)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Heads are as large as transformers takes them to be where its reader of GGUF does not look.
CASES = {
    "llama": ("Llama", "llama", {"head_dim": 16}),
    "llama-tied": ("Llama", "llama", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", "qwen2", {}),
    "qwen2-tied": ("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "qwen3", {"head_dim": 128}),
    "gemma-2": ("Gemma2", "gemma2", {"head_dim": 256, "sliding_window": 5}),
    "gemma-3": ("Gemma3Text", "gemma3", {"head_dim": 256, "sliding_window": 5}),
}


def _interleaved(name, array, config):
    """What llama.cpp's converter does to the rows of Llama's queries and keys."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return array
    return array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _plus_one(name, array, config):
    return array + 1 if name.endswith("norm.weight") else array


CONVERTED = {"llama": _interleaved, "gemma2": _plus_one, "gemma3": _plus_one}


def _model(kind, changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    # The plain implementation: in transformers 4 the default one leaves Gemma 2's caps out.
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are constant when fresh
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _write(path, model, architecture, storage, more=None):
    """A file as llama.cpp's converter writes it; matrices stored as `storage`."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(SIZES["rope_theta"])
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if more:
        more(writer)
    names = gguf.get_tensor_name_map(
        {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture],
        config.num_hidden_layers,
    )
    kind = gguf.GGMLQuantizationType[storage]
    convert = CONVERTED.get(architecture, lambda name, array, config: array)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        array = convert(name, tensor.numpy(), config)
        target = f"{names.get_name(stem)}.{suffix}"
        if storage != "F32" and array.ndim > 1:
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@jax.jit
def _logits(model, tokens):
    return model(nx.wrap(tokens, "seq")).unwrap("seq", "vocabulary")


def _their_logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


@pytest.mark.parametrize("storage", ["F32", "Q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_files_are_read_as_transformers_reads_them(case, storage, tmp_path):
    kind, architecture, changes = CASES[case]
    model = _model(kind, changes)
    path = _write(tmp_path / "model.gguf", model, architecture, storage)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    expected = _their_logits(theirs)
    ours = load(path, use_layer_stack=True, progress=False)
    np.testing.assert_allclose(_logits(freeze_params(ours), TOKENS), expected, atol=1e-4)
    if storage == "F32":
        np.testing.assert_allclose(expected, _their_logits(model), atol=1e-4)


# What transformers' reader of GGUF leaves out, against the model that the file was made of.
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


def _add_llama_3_divisors(writer):
    """As the converter works them out."""
    frequencies = 500.0 ** (-np.arange(0, 16, 2) / 16)
    turns = 16 * frequencies / (2 * np.pi)
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    divisors = 1 / ((1 - smooth) / 8 + smooth)
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))


def _add_linear_scaling(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def _add_yarn_scaling(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_finetuned(True)


SCALED = {
    "llama-3": ("Llama", "llama", {"rope_parameters": LLAMA_3}, _add_llama_3_divisors),
    "qwen2-yarn": (
        "Qwen2",
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        _add_yarn_scaling,
    ),
    "gemma-3-linear": (
        "Gemma3Text",
        "gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        _add_linear_scaling,
    ),
}


@pytest.mark.skipif(transformers.__version__.startswith("4"), reason="spelled as in 5; same files")
@pytest.mark.parametrize("case", SCALED)
def test_rotary_scaling_is_read(case, tmp_path):
    kind, architecture, changes, add = SCALED[case]
    model = _model(kind, {key: v for key, v in changes.items() if key != "rope_theta"})
    path = _write(tmp_path / "model.gguf", model, architecture, "F32", add)
    ours = load(path, use_layer_stack=True, progress=False)
    logits = _logits(freeze_params(ours), TOKENS)
    np.testing.assert_allclose(logits, _their_logits(model), atol=1e-4)
