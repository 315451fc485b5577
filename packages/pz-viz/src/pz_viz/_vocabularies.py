"""One small interface over everything that turns token ids into text.

`as_vocabulary` takes a HuggingFace tokenizer, a `tokenizers.Tokenizer`, a SentencePiece processor,
a tiktoken encoding, pz_models' `Tokenizer`, a list or dict of pieces, or a function from id to
string. They are told apart by their methods, so none of these libraries is imported. A function
is looked for last: HuggingFace tokenizers are callable too, and encode when called.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pz_viz._markup import spaced

__all__ = ["Vocabulary", "as_vocabulary"]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: character → byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in set(kept)]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _text_of_byte_level(piece: str) -> str | None:
    """The text of a byte-level piece (`Ġthe` → ` the`); None if it holds a part of a character."""
    try:
        return bytes(_BYTE_OF_CHARACTER[ch] for ch in piece).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids to text.

    Attributes:
      piece_of: The stored piece of an id; may be bytes, and None or an error for an unknown id.
      special: Ids of control tokens.
      size: Number of ids, or None if unknown.
      byte_level: Whether pieces are written in GPT-2's byte alphabet.
    """

    piece_of: Callable[[int], Any]
    special: Callable[[int], bool]
    size: int | None = None
    byte_level: bool = False

    def known(self, token_id: int) -> bool:
        """Whether the id lies in the vocabulary (true where the size is unknown)."""
        return token_id >= 0 and (self.size is None or token_id < self.size)

    def piece(self, token_id: int) -> Any:
        """The stored piece, or a note that the id is out of range."""
        if not self.known(token_id):
            return f"<id {token_id} is out of range>"
        try:
            piece = self.piece_of(token_id)
        except (IndexError, KeyError):
            piece = None
        return f"<id {token_id} is out of range>" if piece is None else piece

    def text(self, token_id: int) -> str:
        """The text that the token stands for, as far as it can be told from the token alone."""
        piece = self.piece(token_id)
        if isinstance(piece, bytes):
            return piece.decode("utf-8", "backslashreplace")
        piece = str(piece)
        if self.special(token_id) or not self.known(token_id):
            return piece
        if self.byte_level:
            text = _text_of_byte_level(piece)
            return piece if text is None else text
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte is not None:  # SentencePiece's spelling of a byte without a piece of its own
            return bytes.fromhex(byte[1]).decode("ascii", "backslashreplace")
        return piece.replace("▁", " ")

    def label(self, token_id: int) -> str:
        """The text on one line, with spaces at its ends visible, for cells and axes."""
        return spaced(self.text(token_id))


def _never(token_id: int) -> bool:
    del token_id
    return False


def _of_sentencepiece(vocab: Any) -> Vocabulary:
    size = vocab.GetPieceSize() if hasattr(vocab, "GetPieceSize") else None
    return Vocabulary(vocab.IdToPiece, vocab.IsControl, size)


def _of_huggingface(vocab: Any) -> Vocabulary:
    special = frozenset(vocab.all_special_ids)
    size = len(vocab)
    return Vocabulary(
        vocab.convert_ids_to_tokens,
        special.__contains__,
        size,
        _looks_byte_level(vocab.convert_ids_to_tokens, size),
    )


def _of_tokenizers(vocab: Any) -> Vocabulary:
    special = frozenset(
        token_id
        for token_id, token in vocab.get_added_tokens_decoder().items()
        if getattr(token, "special", True)
    )
    size = vocab.get_vocab_size()
    return Vocabulary(
        vocab.id_to_token, special.__contains__, size, _looks_byte_level(vocab.id_to_token, size)
    )


def _of_tiktoken(vocab: Any) -> Vocabulary:
    special = frozenset(vocab.encode_single_token(t) for t in vocab.special_tokens_set)

    def piece(token_id: int) -> str:
        data: bytes = vocab.decode_single_token_bytes(token_id)
        return data.decode("utf-8", "backslashreplace")

    return Vocabulary(piece, special.__contains__, vocab.n_vocab)


def _looks_byte_level(piece_of: Callable[[int], Any], size: int) -> bool:
    """Whether `Ġ` opens pieces: it stands for a space in GPT-2's alphabet and nowhere else."""
    samples = (piece_of(i) for i in range(0, size, max(1, size // 512)))
    return any(isinstance(piece, str) and piece.startswith("Ġ") for piece in samples)


def as_vocabulary(vocab: Any) -> Vocabulary:
    """Wraps a tokenizer, a list or dict of pieces, or a function from id to string.

    Args:
      vocab: See the module's docstring.

    Returns:
      The common interface.

    Raises:
      TypeError: If `vocab` is none of these.
    """
    if isinstance(vocab, Vocabulary):
        return vocab
    if hasattr(vocab, "IdToPiece") and hasattr(vocab, "IsControl"):
        return _of_sentencepiece(vocab)
    if hasattr(vocab, "convert_ids_to_tokens") and hasattr(vocab, "all_special_ids"):
        return _of_huggingface(vocab)
    if hasattr(vocab, "id_to_token") and hasattr(vocab, "get_added_tokens_decoder"):
        return _of_tokenizers(vocab)
    if hasattr(vocab, "decode_single_token_bytes"):
        return _of_tiktoken(vocab)
    for inner in ("tokenizer", "backend", "_tokenizer"):  # a wrapper, such as pz_models' own
        if hasattr(vocab, inner) and not isinstance(vocab, type):
            wrapped = getattr(vocab, inner)
            if wrapped is not vocab and hasattr(wrapped, "id_to_token"):
                return as_vocabulary(wrapped)
    if isinstance(vocab, Mapping):
        return Vocabulary(vocab.get, _never)
    if isinstance(vocab, Sequence) and not isinstance(vocab, (str, bytes)):
        return Vocabulary(vocab.__getitem__, _never, len(vocab))
    if callable(vocab):
        return Vocabulary(vocab, _never)
    raise TypeError(
        f"vocab: expected a tokenizer, a list or dict of pieces, or a function from id to string; "
        f"got {type(vocab).__name__}. A list of strings always works: "
        f"[tokenizer.decode([i]) for i in range(size)]."
    )
