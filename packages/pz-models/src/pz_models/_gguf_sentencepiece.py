"""SentencePiece vocabularies of GGUF files (Llama 2, Mistral, Gemma) as byte-pair encodings.

SentencePiece joins the two neighbouring pieces whose union has the highest score; byte-pair
encoding joins the pair that stands first in a list. So the list is all pairs of pieces that make a
piece, by the score of what they make:

    merges_of(["a", "b", "ab", "abb"], [0, 0, -1, -2], range(4))   # [("a", "b"), ("ab", "b")]

Text without a piece becomes bytes, and spaces are written "▁".

Reference: Kudo and Richardson, SentencePiece (2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["SPACE", "backend_of", "merges_of"]

SPACE = "▁"


def merges_of(
    tokens: Sequence[str], scores: Sequence[float], pieces: Iterable[int]
) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, those that are joined first in front.

    Args:
      tokens: The vocabulary.
      scores: A score of each token.
      pieces: Ids of the tokens that stand for text, unlike those for control and bytes.
    """
    ids = {tokens[index]: index for index in pieces}
    found = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right))
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(found)]


def backend_of(
    library: Any,
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    unknown: int | None,
    prefix: bool,
) -> Any:
    """The `tokenizers.Tokenizer`, without special tokens.

    Args:
      library: The `tokenizers` library.
      tokens: The vocabulary.
      merges: Pairs that are joined, the first ones first.
      unknown: Id of what stands for text that has neither a piece nor bytes.
      prefix: Whether a space is put in front of texts.
    """
    tokenizer = library.Tokenizer(
        library.models.BPE(
            {token: index for index, token in enumerate(tokens)},
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = library.normalizers.Replace(" ", SPACE)
    front = [library.normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = library.normalizers.Sequence([*front, spaces])
    decoders = library.decoders
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return tokenizer
