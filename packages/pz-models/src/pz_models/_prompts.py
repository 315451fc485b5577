"""Prompts in all the forms callers have them, as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pz_models.errors import PromptError
from pz_models.tokenizer import Tokenizer
from pz_named import named_axes as nx

__all__ = ["as_rows"]


def as_rows(
    prompt: Any, tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[list[list[int]], bool]:
    """Rows of token ids, and whether a single prompt was given.

    Args:
      prompt: Text, token ids or an array {seq}; or a sequence of those, or an array {batch, seq}.
      tokenizer: Encodes text.
      vocab_size: Ids are below it.

    Raises:
      PromptError: There is no prompt, one is empty, holds no integers, or ids outside the model.
    """
    if nx.is_namedarray(prompt):
        prompt = _array(prompt)
    single = _is_single(prompt)
    rows = [_row(item, tokenizer) for item in ([prompt] if single else prompt)]
    if not rows:
        raise PromptError("generate: there is no prompt; received an empty sequence.")
    for index, row in enumerate(rows):
        which = "the prompt" if single else f"prompt {index}"
        if not row:
            raise PromptError(
                f"generate: {which} is empty; there is nothing to continue. Give one token at"
                " least, such as the tokenizer's BOS."
            )
        if outside := [token for token in row if not 0 <= token < vocab_size]:
            raise PromptError(
                f"generate: {which} holds the token {outside[0]}, but the model knows 0 to"
                f" {vocab_size - 1}. Is it the tokenizer of another model?"
            )
    return rows, single


def _is_single(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    if hasattr(prompt, "ndim"):
        return bool(prompt.ndim == 1)
    return isinstance(prompt, Sequence) and (
        len(prompt) == 0 or isinstance(prompt[0], int | np.integer)
    )


def _array(prompt: Any) -> np.ndarray:
    shape = prompt.named_shape
    axes = tuple(name for name in shape if name != "seq")
    if "seq" not in shape or len(axes) > 1 or prompt.positional_shape:
        raise PromptError(
            "generate: a named prompt has the axis 'seq' and at most one batch axis; received"
            f" named_shape={shape}, positional_shape={prompt.positional_shape}."
        )
    return np.asarray(prompt.unwrap(*axes, "seq"))


def _row(item: Any, tokenizer: Tokenizer | None) -> list[int]:
    if isinstance(item, str):
        if tokenizer is None:
            raise PromptError(
                f"generate: the prompt {item[:40]!r} is text; pass the model's tokenizer as"
                " tokenizer=, or token ids."
            )
        return tokenizer.encode(item)
    array = np.asarray(_array(item) if nx.is_namedarray(item) else item)
    if array.size == 0:
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise PromptError(
            "generate: a prompt is text or one row of integers; received"
            f" {type(item).__name__} of shape {array.shape} and dtype {array.dtype}."
        )
    return [int(token) for token in array]
