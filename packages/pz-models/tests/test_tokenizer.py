"""Tokenizers: from a tiny GGUF vocabulary, from a folder; chat templates; errors."""

import dataclasses

import pytest
import pz_models_tiny as tiny

from pz_models import CheckpointError, Tokenizer

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<s>", "</s>", *LETTERS, "he", "ll", "hell", "hello"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}" \
    "{% if add_generation_prompt %}<s>{{ raise_exception('no') if shout else 'a' }}{% endif %}"  # fmt: skip
METADATA = tiny.METADATA | {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
    "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": TEMPLATE,
}


def _tokenizer(folder, **changes):
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {k: v for k, v in (METADATA | changes).items() if v is not None}
    return Tokenizer.from_gguf(tiny.write_gguf(folder / "tiny.gguf", metadata))


@pytest.mark.smoke
def test_texts_round_trip_and_merge(tmp_path):
    tokenizer = _tokenizer(tmp_path)
    assert tokenizer.encode("hello") == [TOKENS.index("hello")]
    for text in ("hello hell 12", "üñí 日本語 🎉\n\ttab", "<odd> </s", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(TOKENS)
    assert len(tokenizer.encode("12")) == 2


def test_special_tokens_are_explicit(tmp_path):
    tokenizer = _tokenizer(tmp_path, add_bos_token=True)
    assert tokenizer.special.pad is None
    assert tokenizer.encode("hello") == [0, TOKENS.index("hello")]
    assert tokenizer.encode("hello", add_special_tokens=False) == [TOKENS.index("hello")]
    assert tokenizer.encode("hello</s>", add_special_tokens=False)[-1] == 1
    assert tokenizer.decode([0, TOKENS.index("hello"), 1]) == "hello"
    assert tokenizer.decode([0], skip_special_tokens=False) == tokenizer.token(0) == "<s>"


def test_streamed_text_is_whole_characters(tmp_path):
    tokenizer = _tokenizer(tmp_path)
    pieces = list(tokenizer.decode_stream(tokenizer.encode("é🎉a")))
    assert pieces == ["é", "🎉", "a"]


def test_chat_templates_are_rendered(tmp_path):
    tokenizer = _tokenizer(tmp_path)
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.render_chat(messages) == "<s>user: hello</s><s>a"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == "<s>user: hello</s>"
    with pytest.raises(ValueError, match="chat template failed: no"):
        tokenizer.render_chat(messages, shout=True)
    bare = dataclasses.replace(tokenizer, chat_template=None)
    with pytest.raises(ValueError, match="no chat template"):
        bare.render_chat(messages)


def test_a_folder_gives_the_same_tokenizer(tmp_path):
    tokenizer = _tokenizer(tmp_path)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "hi"}'
    )
    read = Tokenizer.from_folder(tmp_path)
    assert read.encode("hello 12") == tokenizer.encode("hello 12")
    assert (read.special.bos, read.special.eos, read.special.pad) == (0, 1, None)
    assert read.chat_template == "hi"


BAD_VOCABULARIES = [
    ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; supported are 'gpt2'"),
    ({"model": "llama"}, "'tokenizer.ggml.scores' should be a list of float"),
    ({"model": "llama", "scores": [0.5]}, "tokens and 1 scores"),
    ({"pre": "smolm"}, "pre is 'smolm'.*Did you mean 'smollm'"),
    ({"merges": None}, "'tokenizer.ggml.merges' should be a list of str"),
    ({"merges": ["h zz"]}, "merges are corrupt"),
    ({"token_type": [3, 3]}, "tokens and 2 kinds"),
    ({"eos_token_id": 100_000}, "eos id is 100000, outside"),
]


@pytest.mark.parametrize("changes, message", BAD_VOCABULARIES)
def test_bad_vocabularies_are_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        _tokenizer(tmp_path, **changes)


def test_other_things_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"not a readable tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TypeError, match=r"needs a fast tokenizer.*received object"):
        Tokenizer.from_huggingface(object())
