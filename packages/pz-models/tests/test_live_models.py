"""Live torch models beyond the plain ones: subclasses, merged adapters, other dtypes, and back."""

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny

from pz_core.variables import unbind_params
from pz_models import CheckpointError, from_huggingface, load, save_huggingface
from pz_models.transformer.variants.llama import llama_from_huggingface_model
from pz_named import named_axes as nx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's

TOKENS = np.array([1, 5, 2, 7, 3])


class MyLlama(transformers.LlamaForCausalLM):
    """A subclass, as people write them."""


def _live(kind=transformers.LlamaForCausalLM, **changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, **changes,
    )  # fmt: skip
    return kind(config).eval()


def _assert_alike(ours, theirs):
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    logits = tiny.logits(ours, nx.wrap(jnp.asarray(TOKENS), "seq"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_subclasses_are_converted():
    theirs = _live(MyLlama)
    _assert_alike(llama_from_huggingface_model(theirs), theirs)


# peft reads a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_merged_adapters_are_converted_and_others_refused():
    peft = pytest.importorskip("peft")
    plain = tiny.logits(from_huggingface(_live()), nx.wrap(jnp.asarray(TOKENS), "seq"))
    adapted = peft.get_peft_model(
        _live(), peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter))
    with pytest.raises(TypeError, match=r"PeftModel has adapters.*model.merge_and_unload\(\)"):
        from_huggingface(adapted)
    merged = adapted.merge_and_unload()
    ours = from_huggingface(merged, use_layer_stack=True)
    _assert_alike(ours, merged)
    logits = tiny.logits(ours, nx.wrap(jnp.asarray(TOKENS), "seq"))
    assert np.abs(logits - plain).max() > 1e-2  # the adapter did something


def test_a_live_model_is_saved_like_a_loaded_one(tmp_path):
    theirs = _live(
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 77.0}
    )
    theirs.save_pretrained(tmp_path / "theirs")
    save_huggingface(from_huggingface(theirs), tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    _assert_alike(load(tmp_path / "ours"), again)
    _assert_alike(load(tmp_path / "ours"), theirs)


def test_dtypes_are_those_of_the_tensors():
    theirs = _live().to(torch.bfloat16)
    values = {p.label: p.value for p in unbind_params(from_huggingface(theirs))[1]}
    assert {value.dtype for value in values.values()} == {jnp.dtype(jnp.bfloat16)}
    up = values["transformer/block_1/mlp/value_linear.weights"].unwrap("neurons", "embedding")
    expected = theirs.state_dict()["model.layers.1.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(np.asarray(up, np.float32), expected)
    theirs.model.embed_tokens.float()  # the first tensor, but not most of them
    labels = {p.label: p.value.dtype for p in unbind_params(from_huggingface(theirs))[1]}
    assert set(labels.values()) == {jnp.dtype(jnp.bfloat16)}
    eight_bits = torch.ones(16, dtype=torch.int8)
    theirs.model.norm.weight = torch.nn.Parameter(eight_bits, requires_grad=False)
    with pytest.raises(CheckpointError, match=r"has the dtype torch\.int8"):
        from_huggingface(theirs)


def test_values_are_copied():
    theirs = _live()
    ours = from_huggingface(theirs)
    before = tiny.logits(ours, nx.wrap(jnp.asarray(TOKENS), "seq"))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    after = tiny.logits(ours, nx.wrap(jnp.asarray(TOKENS), "seq"))
    np.testing.assert_array_equal(after, before)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"received dict. To load a folder use pz_models.load"):
        from_huggingface({})
