"""SentencePiece vocabularies in GGUF files, against the sentencepiece library itself."""

import io

import pytest
import pz_models_tiny as tiny
from hypothesis import given
from hypothesis import strategies as st

from pz_models import Tokenizer
from pz_models._gguf_sentencepiece import merges_of

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

WORDS = "the quick brown fox jumps over a lazy dog while other foxes sleep in their den".split()
CORPUS = [" ".join(WORDS[i % 16 : i % 16 + 4]) + ("  x" if i % 3 else "\n") for i in range(200)]


@pytest.fixture(scope="module", params=["prefix", "no prefix"])
def pair(request, tmp_path_factory):
    """A trained model of the library, and the tokenizer that we read from a file of it."""
    prefix, model = request.param == "prefix", io.BytesIO()
    # As Gemma has them; vocabularies with a space in front of texts have none.
    defined = [] if prefix else ["<turn>", "\u2581\u2581\u2581"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=defined,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.vocab_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i)
        else 4 if theirs.id_to_piece(i) in defined else 1
        for i in ids
    ]  # fmt: skip
    metadata = tiny.METADATA | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [float(theirs.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
        "tokenizer.ggml.eos_token_id": theirs.eos_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    folder = tmp_path_factory.mktemp("sentencepiece")
    return theirs, Tokenizer.from_gguf(tiny.write_gguf(folder / "x.gguf", metadata))


TEXTS = st.text(st.sampled_from([*"thequickbrownfx .é🎉\n日<>"]), max_size=20) | st.lists(
    st.sampled_from([*WORDS, "<turn>", "   ", "ü", "  the"]), max_size=8
).map(" ".join)


@given(text=TEXTS)
def test_ids_and_text_are_those_of_the_library(pair, text):
    theirs, ours = pair
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_text_begins_with_bos_and_control_tokens_are_one_token(pair):
    theirs, ours = pair
    assert ours.encode("the dog") == [theirs.bos_id(), *theirs.encode("the dog")]
    assert ours.encode("the</s>", add_special_tokens=False)[-1] == theirs.eos_id()
    assert ours.decode(ours.encode("the dog")) == "the dog"


def test_pairs_are_joined_by_the_score_of_what_they_make():
    tokens, scores = ["a", "b", "ab", "abb", "</s>"], [0.0, 0.0, -1.0, -2.0, 0.0]
    assert merges_of(tokens, scores, range(4)) == [("a", "b"), ("ab", "b")]
    assert merges_of(tokens, [0.0, 0.0, -2.0, -1.0, 0.0], range(4)) == [("ab", "b"), ("a", "b")]
    assert merges_of(tokens, scores, [0, 1, 3]) == []
