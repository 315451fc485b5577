"""Builds a tokenizer of the `tokenizers` library from a GGUF file's metadata.

GGUF stores vocabulary, merges (or the scores of SentencePiece) and kinds of tokens, but names the
pre-tokenizer by a word only (`tokenizer.ggml.pre`); what that word means stands in the table below.

Source: `src/llama-vocab.cpp` in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pz_models._gguf_header import GGUFHeader
from pz_models._gguf_sentencepiece import SPACE, backend_of, merges_of
from pz_models._suggestions import near_misses
from pz_models.errors import CheckpointError

__all__ = ["build", "import_tokenizers"]

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # kinds of tokens that are told apart

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# Name of the pre-tokenizer -> the pattern it splits by, or a name for GPT-2's own.
_PRETOKENIZERS: dict[str, str] = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "digits",
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "qwen2": _QWEN_2,
}


def import_tokenizers() -> Any:
    """Returns the `tokenizers` library, or says how to install it."""
    try:
        import tokenizers
    except ImportError as exc:
        raise ImportError(
            "Tokenizers need the tokenizers library: pip install 'pz-models[tokenizers]'"
        ) from exc
    return tokenizers


def build(header: GGUFHeader, special: Mapping[str, int | None]) -> Any:
    """The `tokenizers.Tokenizer` that the header describes.

    Args:
      header: The file's header.
      special: Ids by role; "bos" is put in front of texts if the file says so.

    Raises:
      CheckpointError: The file has no tokenizer, one of an unknown kind, or an inconsistent one.
    """
    tokens, kinds = _vocabulary(header)
    for role, token_id in special.items():
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise CheckpointError(
                f"{header.path}: the tokenizer's {role} id is {token_id}, outside its vocabulary"
                f" of {len(tokens)} tokens."
            )
    library = import_tokenizers()
    of_sentencepiece = header.metadata["tokenizer.ggml.model"] == "llama"
    if of_sentencepiece:
        prefix = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
        pieces = [index for index, kind in enumerate(kinds) if kind in (_NORMAL, _USER_DEFINED)]
        merges = merges_of(tokens, header.metadata["tokenizer.ggml.scores"], pieces)
        tokenizer = backend_of(library, tokens, merges, special.get("unknown"), prefix)
    else:
        tokenizer = _byte_level(header, library, tokens)
    added = [
        # Runs of spaces are found where the text says "▁" for them.
        library.AddedToken(token, special=kind == _CONTROL, normalized=SPACE in token)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    _surround(header, library, tokenizer, tokens, special, of_sentencepiece)
    return tokenizer


def _byte_level(header: GGUFHeader, library: Any, tokens: list[str]) -> Any:
    """Byte-pair encoding as GPT-2 has it."""
    merges = [tuple(line.split(" ", 1)) for line in header.metadata["tokenizer.ggml.merges"]]
    try:
        model = library.models.BPE({t: i for i, t in enumerate(tokens)}, merges)
    except Exception as exc:  # the library raises bare Exception
        raise CheckpointError(f"{header.path}: the tokenizer's merges are corrupt: {exc}") from exc
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = _pretokenizer(header, library)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _surround(
    header: GGUFHeader,
    library: Any,
    tokenizer: Any,
    tokens: list[str],
    special: Mapping[str, int | None],
    of_sentencepiece: bool,
) -> None:
    """Puts the tokens around texts that the file asks for: SentencePiece's has a BOS unless told."""
    around = {}
    for role, default in (("bos", of_sentencepiece), ("eos", False)):
        token_id = special.get(role)
        wanted = header.metadata.get(f"tokenizer.ggml.add_{role}_token", default)
        around[role] = [tokens[token_id]] if wanted and token_id is not None else []
    if not around["bos"] and not around["eos"]:
        return
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=[*around["bos"], "$A", *around["eos"]],
        pair=[*around["bos"], "$A", *around["eos"], *around["bos"], "$B:1", *around["eos"]],
        special_tokens=[
            (tokens[token_id], token_id)
            for role in ("bos", "eos")
            if (token_id := special.get(role)) is not None
        ],
    )


def _vocabulary(header: GGUFHeader) -> tuple[list[str], list[int]]:
    """Tokens and their kinds, checked."""
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{header.path}: tokenizer.ggml.model is {kind!r}; supported are 'gpt2' (byte-level"
            " BPE) and 'llama' (SentencePiece). Pass token ids, or a tokenizer from elsewhere."
        )
    tokens: Any = header.metadata.get("tokenizer.ggml.tokens")
    kinds: Any = header.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens or ()))
    how = "merges" if kind == "gpt2" else "scores"
    joined: Any = header.metadata.get(f"tokenizer.ggml.{how}")
    for key, value, item in (
        ("tokens", tokens, str),
        ("token_type", kinds, int),
        (how, joined, str if how == "merges" else float),
    ):
        if not isinstance(value, list) or (value and not isinstance(value[0], item)):
            raise CheckpointError(
                f"{header.path}: metadata 'tokenizer.ggml.{key}' should be a list of"
                f" {item.__name__}, it is {str(value)[:40]}."
            )
    if how == "scores" and len(joined) != len(tokens):
        raise CheckpointError(
            f"{header.path}: the tokenizer has {len(tokens)} tokens and {len(joined)} scores; the"
            " numbers should agree."
        )
    if len(kinds) != len(tokens) or not tokens:
        raise CheckpointError(
            f"{header.path}: the tokenizer has {len(tokens)} tokens and {len(kinds)} kinds of"
            " tokens; the numbers should agree and not be zero."
        )
    return tokens, kinds


def _pretokenizer(header: GGUFHeader, library: Any) -> Any:
    name = header.metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRETOKENIZERS:
        raise CheckpointError(
            f"{header.path}: tokenizer.ggml.pre is {name!r}, a way of splitting text that is not"
            f" known; known are {', '.join(_PRETOKENIZERS)}.{near_misses(name, _PRETOKENIZERS)}"
        )
    kinds = library.pre_tokenizers
    pattern = _PRETOKENIZERS[name]
    if pattern == "gpt2":
        return kinds.ByteLevel(add_prefix_space=False)
    if pattern == "digits":
        return kinds.Sequence([kinds.Digits(True), kinds.ByteLevel(add_prefix_space=False)])
    return kinds.Sequence(
        [
            kinds.Split(library.Regex(pattern), "isolated"),
            kinds.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
