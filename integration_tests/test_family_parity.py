"""Every family against HuggingFace: tiny random models, in the variants that catch silent errors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pz_core.variables import freeze_params, unbind_params  # noqa: E402
from pz_models import UnsupportedConfigError, from_huggingface, generate, load  # noqa: E402
from pz_models.config_reader import ConfigReader  # noqa: E402
from pz_models.families import family_of, known_families  # noqa: E402
from pz_models.huggingface import LiveModel  # noqa: E402
from pz_models.loading import model_from_checkpoint  # noqa: E402
from pz_named import named_axes as nx  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compile_fast")]
torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LOCAL_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
MINISTRAL_3 = {
    "head_dim": 12,
    "rope_parameters": YARN
    | {"llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}
    | {"original_max_position_embeddings": 7},
}
GPT_2 = {"intermediate_size": None, "num_key_value_heads": None}  # what it does not have
CASES = {
    "llama": ("Llama", {}),
    "llama-mqa-tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-mha-head-biases": (
        "Llama",
        {"num_key_value_heads": 4, "head_dim": 10, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-epsilon-theta": (
        "Llama",
        {"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    ),
    "llama-3-scaling": ("Llama", {"rope_parameters": LLAMA_3}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    ),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-dynamic": (
        "Llama",
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        },
    ),
    "llama-gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral-window": ("Mistral", {"sliding_window": 5, "head_dim": 6}),
    "mistral-global": ("Mistral", {"sliding_window": None}),
    "mistral-mqa-tied": (
        "Mistral",
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-mqa-yarn-tied": (
        "Qwen2",
        {
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False},
        },
    ),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 6}),
    "qwen3-bias-tied": (
        "Qwen3",
        {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3-mha-linear": (
        "Qwen3",
        {
            "head_dim": 8,
            "num_key_value_heads": 4,
            "rms_norm_eps": 0.1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
        },
    ),
    "gemma": ("Gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma-2": ("Gemma2", {"head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 20}),
    "gemma-2-no-caps": (
        "Gemma2",
        {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma-3": (
        "Gemma3Text",
        {
            "head_dim": 6,
            "sliding_window": 5,
            "layer_types": LOCAL_GLOBAL,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma-mha-bias-epsilon": (
        "Gemma",
        {"head_dim": 6, "num_key_value_heads": 4, "attention_bias": True, "rms_norm_eps": 0.1},
    ),
    "gemma-2-mqa-bias-untied": (
        "Gemma2",
        {
            "head_dim": 6,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "sliding_window": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma-3-mqa-cap-epsilon": (  # with the default pattern of windows
        "Gemma3Text",
        {
            "head_dim": 12,
            "num_key_value_heads": 1,
            "num_hidden_layers": 7,
            "sliding_window": 5,
            "final_logit_softcapping": 3.0,
            "rms_norm_eps": 0.1,
            "query_pre_attn_scalar": 7,
        },
    ),
    "olmo-2": ("Olmo2", {"num_key_value_heads": 4}),
    "olmo-2-grouped-bias": ("Olmo2", {"attention_bias": True}),
    "olmo-2-mqa-tied-epsilon": (
        "Olmo2",
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    ),
    "phi-3": ("Phi3", {"sliding_window": 5}),
    "phi-3-partial-longrope": (
        "Phi3",
        {
            "hidden_size": 64,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            },
        },
    ),
    "phi-3-mqa-tied": ("Phi3", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gpt-neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "gpt-neox-sequential": (
        "GPTNeoX",
        {
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "layer_norm_eps": 0.1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 77.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gpt-2": ("GPT2", GPT_2),
    "gpt-2-by-depth-untied": (
        "GPT2",
        GPT_2
        | {
            "n_inner": 48,
            "scale_attn_by_inverse_layer_idx": True,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 0.1,
            "activation_function": "relu",
        },
    ),
    "mixtral": ("Mixtral", EXPERTS),
    "mixtral-window-tied": (
        "Mixtral",
        EXPERTS | {"sliding_window": 5, "head_dim": 6, "tie_word_embeddings": True},
    ),
    "qwen3-moe": ("Qwen3Moe", QWEN_EXPERTS | {"head_dim": 6}),
    "qwen3-moe-normalised-bias-window": (
        "Qwen3Moe",
        QWEN_EXPERTS
        | {
            "norm_topk_prob": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "qwen3-moe-some-dense": (
        "Qwen3Moe",
        QWEN_EXPERTS | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "qwen3-moe-half-dense": (  # stacked as super-blocks
        "Qwen3Moe",
        QWEN_EXPERTS | {"num_hidden_layers": 4, "decoder_sparse_step": 2},
    ),
    "ministral": (
        "Ministral",
        {"sliding_window": 5, "layer_types": LOCAL_GLOBAL, "head_dim": 6},
    ),
    "ministral-3": ("Ministral3", MINISTRAL_3),
    "gpt-neox-linear-tanh": (
        "GPTNeoX",
        {
            "num_key_value_heads": None,
            "hidden_act": "gelu_new",
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 100.0,
                "factor": 3.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "smollm-3-biases-window": (
        "SmolLM3",
        {
            "num_hidden_layers": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
    ),
    "smollm-3-yarn": ("SmolLM3", {"rope_parameters": YARN, "num_hidden_layers": 4}),
    "smollm-3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
}
# Families that older versions of transformers lack.
CASES = {name: case for name, case in CASES.items() if hasattr(transformers, f"{case[0]}Config")}
NOT_STACKED = {"qwen3-moe-some-dense"}
TOKENS = np.random.default_rng(0).integers(0, 97, 24)


# One case a family, for what is slow to compare.
PLAIN = [
    "llama-3-scaling", "mistral-window", "qwen2", "qwen3", "gemma", "gemma-2", "gemma-3", "olmo-2",
    "phi-3", "gpt-neox", "gpt-2", "mixtral", "qwen3-moe", "ministral", "ministral-3", "smollm-3",
]  # fmt: skip


@jax.jit
def _logits(model, tokens):
    return model(nx.wrap(tokens, "seq")).unwrap("seq", "vocabulary")


def _spelled(name, changes):
    """The rotary settings as the installed version of transformers spells them."""
    changes = dict(changes)
    if int(transformers.__version__.split(".")[0]) >= 5 or "rope_parameters" not in changes:
        return changes
    settings = dict(changes.pop("rope_parameters"))
    if "sliding_attention" in settings:
        changes["rope_local_base_freq"] = settings["sliding_attention"]["rope_theta"]
        settings = dict(settings["full_attention"])
    of_neox = name == "GPTNeoX"
    changes["rotary_emb_base" if of_neox else "rope_theta"] = settings.pop("rope_theta")
    if (fraction := settings.pop("partial_rotary_factor", None)) is not None:
        changes["rotary_pct" if of_neox else "partial_rotary_factor"] = fraction
    if settings["rope_type"] != "default":
        name = "type" if settings["rope_type"] == "longrope" else "rope_type"  # Phi-3 checks it
        changes["rope_scaling"] = {name: settings.pop("rope_type"), **settings}
    return changes


def _theirs(name, changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**_spelled(name, SIZES | changes))
    # The plain implementation: fused ones leave some of GPT-2's scales out in transformers 4.
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are constant when fresh
            parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return model, logits


def _their_greedy_tokens(model, prompts, count):
    """New tokens of a batch, padded on the left as transformers wants it."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.no_grad():
        tokens = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return tokens[:, width:].tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_huggingface(case, tmp_path):
    model, expected = _theirs(*CASES[case])
    model.save_pretrained(tmp_path)
    live = from_huggingface(model)
    np.testing.assert_allclose(_logits(freeze_params(live), TOKENS), expected, atol=1e-4)
    folder = load(tmp_path, use_layer_stack=case not in NOT_STACKED, progress=False)
    np.testing.assert_allclose(_logits(freeze_params(folder), TOKENS), expected, atol=1e-4)
    if "dynamic" not in case and "longrope" not in case:  # there, frequencies change on the way
        prompts = [TOKENS[:9], TOKENS[9:12]]
        ours = generate(folder, prompts, max_new_tokens=6)
        assert [list(row.tokens) for row in ours] == _their_greedy_tokens(model, prompts, 6)


ONE_WINDOW = [
    "mistral-window",
    "phi-3",
    "mixtral",
    "qwen3-moe-normalised-bias-window",
    "ministral-3",
]


@pytest.mark.parametrize("case", [case for case in ONE_WINDOW if case in CASES])
def test_families_with_one_window_pass_over_layer_types(case):
    # Logits alone: transformers' own `generate` fails, as its caches follow the field.
    name, changes = CASES[case]
    model, expected = _theirs(name, changes | {"sliding_window": 5, "layer_types": LOCAL_GLOBAL})
    ours = freeze_params(from_huggingface(model))
    np.testing.assert_allclose(_logits(ours, TOKENS), expected, atol=1e-4)


VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
COMPOSITES = {
    "gemma-3": ("Gemma3", "Gemma3Text", CASES["gemma-3"][1]),
    "ministral-3": ("Mistral3", "Ministral3", MINISTRAL_3),
    "mistral-tied": ("Mistral3", "Mistral", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case", COMPOSITES)
def test_the_text_part_of_a_model_with_vision(case, tmp_path):
    outer, inner, changes = COMPOSITES[case]
    if not hasattr(transformers, f"{inner}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {inner}")
    text = getattr(transformers, f"{inner}Config")(**_spelled(inner, SIZES | changes)).to_dict()
    tied = text["tie_word_embeddings"]
    vision = {"model_type": "siglip_vision_model" if outer == "Gemma3" else "pixtral"}
    config = getattr(transformers, f"{outer}Config")(
        text_config=text, vision_config=VISION | vision, tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{outer}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    for ours in (from_huggingface(model), load(tmp_path, progress=False)):
        np.testing.assert_allclose(_logits(freeze_params(ours), TOKENS), expected, atol=1e-4)


class _Gradients(LiveModel):
    """A model's gradients in place of its weights, to be named as a checkpoint is."""

    def __init__(self, model):
        super().__init__(model)
        self._state = {
            # An expert that no token chose has none.
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for name, tensor in model.named_parameters()
        }
        self.tensors = {name: self.tensors[name] for name in self._state}


@jax.jit
def _our_gradients(slots, values, tokens):
    def loss(values):
        logits = slots.bind_variables(values)(nx.wrap(tokens[:-1], "seq"))
        scores = jax.nn.log_softmax(logits.unwrap("seq", "vocabulary"))
        return -scores[jnp.arange(len(tokens) - 1), tokens[1:]].mean()

    return jax.grad(loss)(values)


@pytest.mark.parametrize("case", [case for case in PLAIN if case in CASES])
def test_gradients_equal_huggingface(case):
    model, _ = _theirs(*CASES[case])
    ids = torch.from_numpy(TOKENS)[None]
    model(ids, labels=ids).loss.backward()
    theirs = {p.label: p.value for p in unbind_params(model_from_checkpoint(_Gradients(model)))[1]}
    slots, values = unbind_params(from_huggingface(model), freeze=True)
    ours = {p.label: p.value for p in _our_gradients(slots, values, TOKENS)}
    assert set(ours) == set(theirs)
    for label, gradient in ours.items():
        expected = theirs[label]
        error = nx.nmap(jnp.abs)(gradient - expected).untag(*expected.named_shape).max()
        size = nx.nmap(jnp.abs)(expected).untag(*expected.named_shape).max()
        assert float(error.unwrap()) <= 1e-3 * float(size.unwrap()) + 1e-7, label


KNOWN = [name for name in known_families() if name in transformers.CONFIG_MAPPING]


def _read(config):
    reader = ConfigReader(config, "test")
    found = family_of(config, "test").read_config(reader)
    reader.finish()
    return found


@pytest.mark.parametrize("model_type", KNOWN)
def test_a_field_that_a_file_leaves_out_has_the_default_of_transformers(model_type):
    whole = transformers.AutoConfig.for_model(model_type).to_dict()
    expected = _read(whole)
    for field in whole.keys() - {"model_type"}:
        try:
            found = _read({key: value for key, value in whole.items() if key != field})
        except UnsupportedConfigError:
            continue  # a size that has to be said
        assert found == expected, field


def test_the_comparison_can_fail():
    model, expected = _theirs("Llama", {})
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    other = _logits(freeze_params(from_huggingface(model)), TOKENS)
    assert jnp.abs(other - expected).max() > 1e-3
