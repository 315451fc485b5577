"""Token ids and per-token scores as text, block by block.

    show_token_array(tokens, vocab)             # every id with its piece
    show_token_scores(tokens, scores, vocab)    # pieces coloured by score

Both return a treescope figure, which displays itself in a notebook; `to_html` makes a page of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from treescope import figures, rendering_parts

from pz_core.colors import color_from_string
from pz_viz._axes import arranged, axes_of
from pz_viz._markup import visible
from pz_viz._vocabularies import Vocabulary, as_vocabulary
from pz_viz.host_copies import to_host

__all__ = ["SentencePieceProcessorLike", "show_token_array", "show_token_scores"]

TOKEN_BUDGET = 100_000
"""The most tokens that one figure copies to the host."""

_CHIP_STYLE = "font-size:0.75em;border-radius:3px;padding:0 0.4ch"


@runtime_checkable
class SentencePieceProcessorLike(Protocol):
    """The part of `sentencepiece.SentencePieceProcessor` that the views use."""

    def GetPieceSize(self) -> int:
        """The number of pieces."""

    def IdToPiece(self, id: int) -> str:
        """The piece of an id."""

    def IsControl(self, id: int) -> bool:
        """Whether the id is a control token."""


def show_token_array(tokens: Any, vocab: Any, axis_name_order: Sequence[str] | None = None) -> Any:
    """Shows every token as its id with its piece.

    Args:
      tokens: Integer ids; a named array of any names, or a plain array.
      vocab: A SentencePiece processor, a HuggingFace tokenizer, a `tokenizers.Tokenizer`, a
        tiktoken encoding, a list or dict of pieces, or a function from id to string.
      axis_name_order: The axes from the outermost block to the running text; None puts `batch`
        first and `seq` last.

    Returns:
      A treescope figure.

    Raises:
      ValueError: If the axes do not fit `axis_name_order`.
      HostCopyError: If the tokens cannot be read.
    """
    vocabulary = as_vocabulary(vocab)
    names, (ids,) = _aligned({"tokens": tokens}, axis_name_order)
    _require_integers(ids)

    def word(index: tuple[int, ...]) -> Any:
        token_id = int(ids[index])
        # Treescope's digit boxes would need scripts; a colour of its own serves the same purpose.
        chip = f"background:{color_from_string(str(token_id))};color:black;{_CHIP_STYLE}"
        return figures.styled(
            figures.inline(
                figures.styled(str(token_id), chip), " ", _piece(vocabulary, token_id), "  "
            ),
            "white-space:pre;display:inline-block",
        )

    return _blocks(names, ids.shape, word)


def show_token_scores(
    tokens: Any,
    scores: Any,
    vocab: Any,
    axis_name_order: Sequence[str] | None = None,
    vmax: float | None = None,
) -> Any:
    """Shows every token coloured by its score; hovering shows the number.

    Args:
      tokens: Integer ids; a named array of any names, or a plain array.
      scores: One number per token, with the same axes, or fewer names (then repeated).
      vocab: See `show_token_array`.
      axis_name_order: See `show_token_array`.
      vmax: The score drawn in full colour; None takes three times the root mean square.

    Returns:
      A treescope figure.

    Raises:
      ValueError: If the axes do not fit one another or `axis_name_order`.
      HostCopyError: If the arrays cannot be read.
    """
    vocabulary = as_vocabulary(vocab)
    names, (ids, values) = _aligned({"tokens": tokens, "scores": scores}, axis_name_order)
    _require_integers(ids)
    values = values.astype(np.float32)
    if vmax is None:
        finite = values[np.isfinite(values)]
        vmax = 3 * float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 1.0
    limit = float(vmax) or 1.0  # scores that are all zero have no scale

    def word(index: tuple[int, ...]) -> Any:
        piece = vocabulary.piece(int(ids[index]))
        text = visible(piece if isinstance(piece, str) else repr(piece))
        score = float(values[index])
        if np.isnan(score):
            return figures.inline(text, figures.with_color("(nan)", "gray"))
        return figures.text_on_color(text, score, vmax=limit)

    space = figures.figure_from_treescope_rendering_part(rendering_parts.vertical_space("1.5em"))
    return _blocks(names, ids.shape, word, lead=space)


def _require_integers(ids: np.ndarray) -> None:
    if ids.dtype.kind not in "iu":
        raise ValueError(
            f"tokens: expected integer ids, got {ids.dtype}. Convert with .astype(int)."
        )


def _piece(vocabulary: Vocabulary, token_id: int) -> Any:
    """Control tokens in grey, bytes and unknown ids in orange, others with escapes visible."""
    piece = vocabulary.piece(token_id)
    if not isinstance(piece, str):
        return figures.with_color(repr(piece), "orange")
    if not vocabulary.known(token_id):
        return figures.with_color(visible(piece), "orange")
    if vocabulary.special(token_id):
        return figures.with_color(visible(piece), "gray")
    return repr(piece)[1:-1]


def _named(array: Any, argument: str) -> tuple[list[Any], np.ndarray]:
    """Axis names and host data in that order; positional axes become axis0, axis1, …."""
    axes = axes_of(array)
    names = [axis.key if axis.is_named else f"axis{axis.key}" for axis in axes]
    return names, to_host(arranged(array, axes, argument), TOKEN_BUDGET, argument)


def _aligned(
    arrays: dict[str, Any], order: Sequence[str] | None
) -> tuple[list[Any], list[np.ndarray]]:
    """All arrays on the host with the same axes in the same order."""
    named = {argument: _named(array, argument) for argument, array in arrays.items()}
    first, *others = named
    names, data = named[first]
    sizes = dict(zip(names, data.shape, strict=True))
    for other in others:
        other_names, other_data = named[other]
        for name, size in zip(other_names, other_data.shape, strict=True):
            if sizes.get(name) != size:
                raise ValueError(
                    f"{other} has the axis {name!r} of size {size}; {first} has {sizes}. Give both "
                    f"the same axes, for example {other}.tag(*names of {first})."
                )
    if not names:
        names, sizes = ["seq"], {"seq": 1}
    wanted = _default_order(names) if order is None else list(order)
    if sorted(map(str, wanted)) != sorted(map(str, names)):
        raise ValueError(
            f"axis_name_order={wanted}: it must list every axis of the tokens once; they have "
            f"{names}."
        )
    return wanted, [_broadcast(*named[argument], wanted, sizes) for argument in named]


def _broadcast(
    names: Sequence[Any], data: np.ndarray, order: Sequence[Any], sizes: dict[Any, int]
) -> np.ndarray:
    present = [name for name in order if name in names]
    moved = np.transpose(data, [list(names).index(name) for name in present])
    shape = tuple(sizes[name] if name in present else 1 for name in order)
    return np.broadcast_to(moved.reshape(shape), tuple(sizes[name] for name in order))


def _default_order(names: Sequence[Any]) -> list[Any]:
    return sorted(names, key=lambda name: {"batch": -1, "seq": 1}.get(name, 0))


def _blocks(names: Sequence[Any], shape: tuple[int, ...], word: Any, lead: Any = None) -> Any:
    """One block per index of the outer axes, headed by that index; the last axis runs on."""
    blocks = []
    for outer in itertools.product(*map(range, shape[:-1])):
        words = [word((*outer, i)) for i in range(shape[-1])]
        running = figures.indented(figures.inline(*words, wrap=True))
        if outer:
            heading = visible(str(dict(zip(names, outer, strict=False))))
            blocks.append(figures.styled(f"{heading}:", "font-style: italic"))
        elif lead is not None:
            blocks.append(lead)
        blocks.append(running)
    part = rendering_parts.on_separate_lines(
        [figures.treescope_part_from_display_object(block) for block in blocks]
    )
    return figures.figure_from_treescope_rendering_part(part)
