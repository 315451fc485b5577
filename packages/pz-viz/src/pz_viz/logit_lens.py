"""What every block would predict, position by position (the logit lens).

The table holds logits {block, position, vocabulary}: norm and head applied to the residual stream
after each block (nostalgebraist, "interpreting GPT: the logit lens", 2020). Only the best few
tokens of each cell are copied to the host.

    view = logit_lens_view(table, tokenizer, tokens=prompt_ids)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pz_viz._axes import Axis, arranged, axes_of, find_axis
from pz_viz._markup import escaped, number, shaded, shortened
from pz_viz._markup import table as text_table
from pz_viz._vocabularies import Vocabulary, as_vocabulary
from pz_viz.attention import token_labels
from pz_viz.views import View

__all__ = ["logit_lens_view"]

LENS_CELL_BUDGET = 4_000
"""The most cells that `logit_lens_view` draws; further positions are left out with a note."""

POSITIONS_AT_ONCE = 512

_BLOCK_NAMES = ("block", "blocks", "layer", "layers", "depth")
_POSITION_NAMES = ("position", "positions", "seq", "sequence", "token")
_VOCABULARY_NAMES = ("vocabulary", "vocab", "tokens", "logits")


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The best tokens of every cell, on the host.

    Attributes:
      ids: Token ids, {block, position, rank}.
      probabilities: Their probabilities, same shape.
      entropies: Entropy of each cell's distribution in nats, {block, position}.
    """

    ids: np.ndarray
    probabilities: np.ndarray
    entropies: np.ndarray


@jax.jit
def log_probabilities(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities over the last axis in float32, and the entropy of each row in nats."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    return log_p, -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)


def chunks_of(positions: int) -> list[slice]:
    """Slices over positions, so small that their probabilities fit the device beside the logits."""
    return [slice(i, i + POSITIONS_AT_ONCE) for i in range(0, positions, POSITIONS_AT_ONCE)]


def top_tokens(logits: Any, count: int) -> TopTokens:
    """Best tokens of logits `[block, position, vocabulary]`, a few positions at a time.

    Only `count` numbers per cell leave the device.
    """
    blocks, positions, size = logits.shape
    count = min(count, size)
    ids = np.zeros((blocks, positions, count), np.int32)
    probabilities = np.zeros((blocks, positions, count), np.float32)
    entropies = np.zeros((blocks, positions), np.float32)
    for block in range(blocks):
        for at in chunks_of(positions):
            log_p, entropy = log_probabilities(jnp.asarray(logits[block, at]))
            best, best_ids = jax.lax.top_k(log_p, count)  # {position, rank}
            ids[block, at], entropies[block, at] = best_ids, entropy
            probabilities[block, at] = jnp.exp(best)
    return TopTokens(ids, probabilities, entropies)


def logit_lens_view(
    table: Any,
    tokenizer: Any,
    *,
    tokens: Any = None,
    block_labels: list[str] | None = None,
    color: Literal["probability", "entropy"] = "probability",
    block_axis: Hashable | None = None,
    position_axis: Hashable | None = None,
    vocabulary_axis: Hashable | None = None,
    top: int = 10,
    title: str = "Prediction after each block",
) -> View:
    """Shows the most likely next token in each cell of a block-by-position table.

    Args:
      table: Logits or log-probabilities: a named array with a block and a vocabulary axis and at
        most one more (the position), or a plain array `[block, vocabulary]` or
        `[block, position, vocabulary]`.
      tokenizer: Turns ids into text; see `show_token_array`.
      tokens: The tokens at each position, as strings or ids, for the column heads.
      block_labels: One row head per block; None numbers them.
      color: Whether a cell is darker the more probable its token, or the lower its entropy.
      block_axis: Name or position of the block axis; None looks for `block`, `layer`, ….
      position_axis: The same for positions (`position`, `seq`).
      vocabulary_axis: The same for the vocabulary; None looks for `vocabulary`, `vocab`, … and
        then takes the largest axis.
      top: How many alternatives a cell shows on hover or focus.
      title: Heading of the view.

    Returns:
      A view that needs no script.

    Raises:
      ValueError: If the axes cannot be told apart, or labels do not fit them.
      HostCopyError: If the table cannot be read.
    """
    if color not in ("probability", "entropy"):
        raise ValueError(f'color={color!r}: expected "probability" or "entropy".')
    order, has_position = _roles(table, block_axis, position_axis, vocabulary_axis)
    logits = arranged(table, order, "table")
    if not has_position:
        logits = logits[:, None, :]
    labels = None if tokens is None else token_labels(tokens, tokenizer, "tokens")
    blocks = block_labels or [str(i) for i in range(logits.shape[0])]
    if len(blocks) != logits.shape[0]:
        raise ValueError(
            f"block_labels has {len(blocks)} entries and the table has {logits.shape[0]} blocks."
        )
    positions = logits.shape[1]
    if labels is None:
        labels = [str(i) for i in range(positions)] if has_position else ["next token"]
    elif not has_position:
        labels = [f"after {labels[-1]}" if labels else "next token"]
    if len(labels) != positions:
        raise ValueError(
            f"tokens has {len(labels)} entries and the table has {positions} positions."
        )
    kept = max(1, LENS_CELL_BUDGET // max(len(blocks), 1))
    first = max(0, positions - kept)
    best = top_tokens(logits[:, first:], top)
    return _draw(title, best, as_vocabulary(tokenizer), blocks, labels[first:], first, color)


def _roles(
    table: Any,
    block_axis: Hashable | None,
    position_axis: Hashable | None,
    vocabulary_axis: Hashable | None,
) -> tuple[list[Axis], bool]:
    plain = {2: ("block", "vocabulary"), 3: ("block", "position", "vocabulary")}
    axes = axes_of(
        table, plain.get(np.ndim(table), ()) if not hasattr(table, "named_shape") else ()
    )
    if len(axes) not in (2, 3):
        raise ValueError(
            "logit_lens_view: the table needs a block axis, a vocabulary axis and at most one "
            f"position axis; got {[a.label for a in axes]}. Choose one index of the others first."
        )
    free = list(axes)
    block = find_axis(free, block_axis, _BLOCK_NAMES, "block_axis")
    free = [axis for axis in free if axis is not block]
    vocabulary = find_axis(free, vocabulary_axis, _VOCABULARY_NAMES, "vocabulary_axis")
    if vocabulary is None:
        vocabulary = max(free, key=lambda axis: axis.size)
    free = [axis for axis in free if axis is not vocabulary]
    position = find_axis(free, position_axis, _POSITION_NAMES, "position_axis")
    if block is None and position is not None:
        block = next((axis for axis in free if axis is not position), None)
    if block is None and len(axes) == 2:
        block, position = free[0], None
    if block is None:
        raise ValueError(
            "logit_lens_view: cannot tell which axis is the block. The table has the axes "
            f"{', '.join(a.label for a in axes)}. Pass block_axis=."
        )
    rest = [axis for axis in free if axis is not block]
    return [block, *rest, vocabulary], bool(rest)


def alternatives(vocabulary: Vocabulary, ids: np.ndarray, probabilities: np.ndarray) -> str:
    """The text of a tip: one line per token, best first."""
    return "\n".join(
        f"{p:7.2%}  {shortened(vocabulary.label(int(i)), 28)}"
        for i, p in zip(ids, probabilities, strict=True)
    )


def tip(lines: str) -> str:
    """A tip's markup; its line breaks are ours, everything else is escaped."""
    inner = "\n".join(escaped(line) for line in lines.split("\n"))
    return f'<span class="pz-tip" role="tooltip">{inner}</span>'


def _draw(
    title: str,
    best: TopTokens,
    vocabulary: Vocabulary,
    blocks: list[str],
    labels: list[str],
    first: int,
    color: str,
) -> View:
    low = float(np.log(max(best.entropies.max(initial=0.0), 1e-6) + 1))
    rows = []
    for b, block in enumerate(blocks):
        cells = []
        for p in range(len(labels)):
            ids, probabilities = best.ids[b, p], best.probabilities[b, p]
            entropy = float(best.entropies[b, p])
            sure = (
                float(probabilities[0]) if color == "probability" else 1 - np.log1p(entropy) / low
            )
            cells.append(_cell(vocabulary, ids, probabilities, entropy, sure, color))
        rows.append(
            f'<tr class="pz-line"><th scope="row">{escaped(block)}</th>{"".join(cells)}</tr>'
        )
    heads = "".join(f'<th scope="col">{escaped(shortened(x, 16))}</th>' for x in labels)
    shade = "probability of its token" if color == "probability" else "certainty (low entropy)"
    cut = (
        f'<p class="pz-cut">The first {first} positions are left out: at most {LENS_CELL_BUDGET} '
        "cells are drawn.</p>"
        if first
        else ""
    )
    body = (
        f'{cut}<p class="pz-note">A cell is coloured more strongly the higher the {shade}; hover or focus shows '
        f'the alternatives.</p><div class="pz-scroll"><table class="pz-lens pz-grid">'
        f'<caption>{escaped(title)}</caption><thead><tr class="pz-heads"><th>block</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    text = _text(title, best, vocabulary, blocks, labels, first)
    return View(title, body, text, height=min(900, 140 + 34 * len(blocks)))


def _cell(
    vocabulary: Vocabulary,
    ids: np.ndarray,
    probabilities: np.ndarray,
    entropy: float,
    sure: float,
    color: str,
) -> str:
    value = f"{probabilities[0]:.0%}" if color == "probability" else f"{entropy:.2f} nats"
    lines = f"{alternatives(vocabulary, ids, probabilities)}\nentropy {number(entropy)} nats"
    return (
        f'<td><span{shaded("pz-more", sure)} tabindex="0">'
        f"<bdi>{escaped(shortened(vocabulary.label(int(ids[0])), 16))}</bdi>"
        f'<span class="pz-value">{value}</span>{tip(lines)}</span></td>'
    )


def _text(
    title: str,
    best: TopTokens,
    vocabulary: Vocabulary,
    blocks: list[str],
    labels: list[str],
    first: int,
) -> str:
    """The last positions, as many as fit a terminal."""
    shown = min(len(labels), 6)
    start = len(labels) - shown
    head = ["block", *(shortened(x, 14) for x in labels[start:])]
    rows = [
        [
            block,
            *(
                f"{shortened(vocabulary.label(int(best.ids[b, p, 0])), 12)} "
                f"{best.probabilities[b, p, 0]:.0%}"
                for p in range(start, len(labels))
            ),
        ]
        for b, block in enumerate(blocks)
    ]
    hidden = first + start
    note = f"\n({hidden} earlier positions are not printed)" if hidden else ""
    return f"{title}\n{text_table([head, *rows])}{note}"
