"""Everything that turns ids into text behaves alike."""

import io

import pytest

from pz_viz._vocabularies import as_vocabulary

PIECES = ["<bos>", "▁the", "▁cat", "'x", "\n", 'a"b']


class FakeSentencePiece:
    def GetPieceSize(self):
        return len(PIECES)

    def IdToPiece(self, id):
        return PIECES[id]

    def IsControl(self, id):
        return id == 0


class FakeHuggingFace:
    """Callable as the real ones are: calling it encodes."""

    all_special_ids = (0,)

    def __len__(self):
        return len(PIECES)

    def convert_ids_to_tokens(self, token_id):
        return PIECES[token_id]

    def __call__(self, text):
        raise TypeError("a tokenizer encodes text when it is called")


class FakeTiktoken:
    n_vocab = 3
    special_tokens_set = frozenset({"<|end|>"})

    def encode_single_token(self, text):
        return 2

    def decode_single_token_bytes(self, token_id):
        return [b"a", b"\xff", b"<|end|>"][token_id]


class Wrapper:
    """As pz_models' own tokenizer: holds a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer):
        self.backend = tokenizer


@pytest.mark.smoke
@pytest.mark.parametrize(
    "vocab, knows_special, knows_size",
    [
        (FakeSentencePiece(), True, True),
        (FakeHuggingFace(), True, True),
        (PIECES, False, True),
        (tuple(PIECES), False, True),
        (dict(enumerate(PIECES)), False, False),
        (PIECES.__getitem__, False, False),
    ],
)
def test_every_kind_of_vocabulary_gives_the_same_pieces(vocab, knows_special, knows_size):
    vocabulary = as_vocabulary(vocab)
    assert [vocabulary.piece(i) for i in range(len(PIECES))] == PIECES
    assert vocabulary.text(2) == " cat"
    assert vocabulary.label(2) == "␣cat"
    assert vocabulary.label(4) == "\\n"
    assert vocabulary.special(0) is knows_special
    assert (vocabulary.size is not None) is knows_size
    assert vocabulary.piece(999) == "<id 999 is out of range>"
    assert vocabulary.piece(-1) == "<id -1 is out of range>"
    assert as_vocabulary(vocabulary) is vocabulary


def test_tiktoken_bytes_that_are_no_text_are_written_out():
    vocabulary = as_vocabulary(FakeTiktoken())
    assert [vocabulary.text(i) for i in range(3)] == ["a", "\\xff", "<|end|>"]
    assert vocabulary.special(2)


@pytest.fixture
def byte_level():
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<s>": 0, "Ġthe": 1, "Ċ": 2, "Ã©": 3, "Ã": 4, "a": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def as_our_own(tokenizer):
    return pytest.importorskip("pz_models.tokenizer").Tokenizer(tokenizer)


def as_huggingface(tokenizer):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, Wrapper, as_our_own, pytest.param(as_huggingface, marks=pytest.mark.torch)],
)
def test_a_real_byte_level_tokenizer(wrap, byte_level):
    vocabulary = as_vocabulary(wrap(byte_level))
    assert [vocabulary.text(i) for i in range(6)] == ["<s>", " the", "\n", "é", "Ã", "a"]
    assert vocabulary.special(0)
    assert not vocabulary.special(1)


def test_a_real_sentencepiece_processor():
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat", "the mat", "a cat"] * 10),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = as_vocabulary(processor)
    ids = processor.encode("the cat")
    assert "".join(vocabulary.text(i) for i in ids) == " the cat"
    assert vocabulary.special(processor.bos_id())
    assert vocabulary.size == processor.get_piece_size()


def test_byte_pieces_are_written_as_what_they_stand_for():
    vocabulary = as_vocabulary(["<0x0A>", "<0xE2>", "<0x41>"])
    assert [vocabulary.text(i) for i in range(3)] == ["\n", "\\xe2", "A"]


def test_what_is_no_vocabulary_is_an_error():
    with pytest.raises(TypeError, match=r"expected a tokenizer, a list or dict .* got int"):
        as_vocabulary(7)
    assert as_vocabulary([str(i) for i in range(7)]).piece(6) == "6"
