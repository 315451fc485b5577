"""A text coloured by how much each token surprised the model, and two runs side by side.

Surprise is the negative log-probability of the token that came, in nats, given the tokens before.
Only the best few alternatives of each position are copied to the host.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_viz._axes import arranged, axes_of, find_axis
from pz_viz._markup import escaped, number, shaded, shortened, table, visible
from pz_viz._vocabularies import Vocabulary, as_vocabulary
from pz_viz.host_copies import HostCopyError, to_host, unreadable_reason
from pz_viz.logit_lens import (
    _POSITION_NAMES,
    _VOCABULARY_NAMES,
    TopTokens,
    alternatives,
    chunks_of,
    log_probabilities,
    tip,
    top_tokens,
)
from pz_viz.views import View

__all__ = ["comparison_view", "token_probabilities_view"]

POSITION_BUDGET = 4_000
"""The most tokens that `token_probabilities_view` draws; later ones are left out with a note."""

_FULL_SURPRISE = 10.0  # nats; the deepest colour


def token_probabilities_view(
    tokens: Any,
    logits: Any,
    tokenizer: Any,
    *,
    position_axis: Hashable | None = None,
    vocabulary_axis: Hashable | None = None,
    top: int = 10,
    title: str = "Surprise of each token",
) -> View:
    """Colours a text by surprise; hover or focus shows what the model expected instead.

    Args:
      tokens: Token ids `[position]`.
      logits: Logits or log-probabilities: what the model predicted *after* each position, named or
        plain `[position, vocabulary]`. The last row predicts a token that has not come yet.
      tokenizer: Turns ids into text; see `show_token_array`.
      position_axis: Name or position of that axis in `logits`; None looks for `seq`, `position`….
      vocabulary_axis: The same for the vocabulary; None takes the largest other axis.
      top: How many alternatives to list.
      title: Heading of the view.

    Returns:
      A view that needs no script. Surprising tokens are underlined, so that colour is not the
      only sign.

    Raises:
      ValueError: If shapes do not fit.
      HostCopyError: If the arrays cannot be read.
    """
    ids = _token_ids(tokens)
    axes = axes_of(logits, ("position", "vocabulary"))
    if len(axes) != 2:
        raise ValueError(
            "token_probabilities_view: logits needs a position and a vocabulary axis; got "
            f"{[axis.label for axis in axes]}. Choose one sequence first."
        )
    position = find_axis(axes, position_axis, _POSITION_NAMES, "position_axis")
    rest = [axis for axis in axes if axis is not position]
    vocabulary = find_axis(rest, vocabulary_axis, _VOCABULARY_NAMES, "vocabulary_axis")
    vocabulary = vocabulary or max(rest, key=lambda axis: axis.size)
    position = next(axis for axis in axes if axis is not vocabulary)
    if position.size != len(ids):
        raise ValueError(
            f"token_probabilities_view: {len(ids)} tokens and logits for {position.size} "
            "positions; give the logits after each token."
        )
    data = arranged(logits, [position, vocabulary], "logits")
    strange = ids[(ids < 0) | (ids >= vocabulary.size)]
    if strange.size:
        raise ValueError(
            f"token_probabilities_view: tokens holds the id {int(strange[0])}, and logits has "
            f"{vocabulary.size} entries per position; ids lie below that. Take tokens and logits "
            "from one tokenizer and model."
        )
    cut = max(0, len(ids) - POSITION_BUDGET)
    ids, data = ids[: len(ids) - cut], data[: len(ids) - cut]
    best = top_tokens(data[None], top)
    return _draw(title, ids, _surprises(ids, data), best, as_vocabulary(tokenizer), cut)


def _token_ids(tokens: Any) -> np.ndarray:
    if hasattr(tokens, "named_shape"):
        tokens = arranged(tokens, axes_of(tokens), "tokens")
    ids = to_host(tokens, 1_000_000, "tokens")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"tokens: expected integer ids with one axis, got {ids.dtype} of shape {ids.shape}."
        )
    return ids


def _surprises(ids: np.ndarray, data: Any) -> np.ndarray:
    """Nats per token, {position}; NaN for the first, which nothing predicted."""
    if len(ids) < 2:
        return np.full(len(ids), np.nan)
    surprises = np.full(len(ids), np.nan)
    came = np.asarray(ids[1:])
    for at in chunks_of(len(came)):
        log_p, _ = log_probabilities(jnp.asarray(data[:-1][at]))
        told = jnp.take_along_axis(log_p, jnp.asarray(came[at])[:, None], axis=-1)[:, 0]
        surprises[1:][at] = -np.asarray(told)
    return surprises


def _draw(
    title: str,
    ids: np.ndarray,
    surprises: np.ndarray,
    best: TopTokens,
    vocabulary: Vocabulary,
    cut: int,
) -> View:
    words = []
    for i, token_id in enumerate(ids):
        text = escaped_text(vocabulary.text(int(token_id)))
        if i == 0:
            words.append(f'<span class="pz-word">{text}</span>')
            continue
        nats = float(surprises[i])
        lines = (
            f"{vocabulary.label(int(token_id))}: probability {np.exp(-nats):.2%}, "
            f"surprise {number(nats)} nats\nexpected instead:\n"
            + alternatives(vocabulary, best.ids[0, i - 1], best.probabilities[0, i - 1])
        )
        amount = min(max(nats, 0.0) / _FULL_SURPRISE, 1.0)
        classes = "pz-word pz-more pz-hot"
        classes += " pz-surprising" if nats > _FULL_SURPRISE / 2 else ""
        words.append(
            f'<span{shaded(classes, amount)} tabindex="0"><bdi>{text}</bdi>{tip(lines)}</span>'
        )
    mean = float(np.nanmean(surprises)) if len(ids) > 1 else float("nan")
    note = f"Mean surprise {number(mean)} nats per token. Underlined: over 5 nats."
    cut_note = f'<p class="pz-cut">The last {cut} tokens are left out.</p>' if cut else ""
    body = (
        f'<p class="pz-note">{note}</p>{cut_note}'
        f'<div class="pz-words pz-grid"><span class="pz-line">{"".join(words)}</span></div>'
    )
    return View(title, body, _text(title, ids, surprises, best, vocabulary, note))


def escaped_text(text: str) -> str:
    """Running text: line breaks stay, each with a visible mark; all else is escaped."""
    return "⏎\n".join(escaped(line) for line in text.split("\n"))


def _text(
    title: str,
    ids: np.ndarray,
    surprises: np.ndarray,
    best: TopTokens,
    vocabulary: Vocabulary,
    note: str,
) -> str:
    rows = [["token", "nats", "expected"]]
    rows += [
        [
            shortened(vocabulary.label(int(ids[i])), 20),
            number(surprises[i]),
            shortened(vocabulary.label(int(best.ids[0, i - 1, 0])), 20),
        ]
        for i in range(1, len(ids))
    ][:40]
    more = f"\n({len(ids) - 41} more tokens are not printed)" if len(ids) > 41 else ""
    return f"{title}\n{note}\n{table(rows, '<><')}{more}"


def comparison_view(
    left: Any,
    right: Any,
    tokenizer: Any,
    *,
    names: tuple[str, str] = ("before", "after"),
    top: int = 10,
    title: str = "Next token, two runs",
) -> View:
    """Compares the next-token distributions of two runs.

    Args:
      left: Logits `[vocabulary]` of the first run, named or plain.
      right: Logits of the second run, of the same size.
      tokenizer: Turns ids into text; see `show_token_array`.
      names: What to call the runs.
      top: How many of each run's best tokens to list.
      title: Heading of the view.

    Returns:
      A table of the best tokens of either run with both probabilities, and the divergence
      KL(left ‖ right) in nats.

    Raises:
      ValueError: If the arrays have more than one axis, or different sizes.
      HostCopyError: If they cannot be read.
    """
    p, q = (_distribution(x, name) for x, name in ((left, "left"), (right, "right")))
    if p.shape != q.shape:
        raise ValueError(
            f"comparison_view: the runs have vocabularies of {p.size} and {q.size} tokens; "
            "compare runs of one tokenizer."
        )
    divergence = float(jnp.sum(jnp.where(p > -jnp.inf, jnp.exp(p) * (p - q), 0.0)))
    count = min(top, p.size)
    best = np.concatenate([np.asarray(jax.lax.top_k(x, count)[1]) for x in (p, q)])
    chosen = jnp.asarray(list(dict.fromkeys(best.tolist())))
    before, after = (np.exp(np.asarray(x[chosen])) for x in (p, q))
    order = np.argsort(-np.maximum(before, after), kind="stable")
    vocabulary = as_vocabulary(tokenizer)
    first_names = tuple(visible(name) for name in names)
    rows, lines = [], [["token", *first_names, "change"]]
    for i in order:
        label = vocabulary.label(int(chosen[i]))
        change = float(after[i] - before[i])
        lines.append(
            [shortened(label, 20), f"{before[i]:.2%}", f"{after[i]:.2%}", f"{change:+.2%}"]
        )
        arrow = "▲" if change > 5e-5 else ("▼" if change < -5e-5 else "=")
        rows.append(
            f'<tr><th scope="row"><bdi>{escaped(shortened(label, 40))}</bdi></th>'
            f"{_bar(before[i])}{_bar(after[i])}"
            f'<td class="pz-number">{arrow} {change:+.2%}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col" class="pz-number">{escaped(name)}</th>' for name in first_names
    )
    note = f"Divergence KL({first_names[0]} ‖ {first_names[1]}) = {number(divergence)} nats."
    body = (
        f'<p class="pz-note">{escaped(note)}</p><div class="pz-scroll"><table>'
        f"<caption>{escaped(title)}</caption><thead><tr><th>token</th>{heads}"
        '<th scope="col" class="pz-number">change</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    return View(
        title, body, f"{title}\n{note}\n{table(lines, '<>>>')}", height=120 + 32 * len(rows)
    )


def _bar(probability: float) -> str:
    return (
        '<td class="pz-number pz-bar" '
        f'style="--amount:{float(probability):.4f}">{probability:.2%}</td>'
    )


def _distribution(value: Any, what: str) -> Any:
    """Log-probabilities with one axis, on their device."""
    axes = axes_of(value)
    if len(axes) != 1:
        raise ValueError(
            f"comparison_view: {what} needs one axis, the vocabulary; got "
            f"{[axis.label for axis in axes]}. Choose one position first."
        )
    if unreadable_reason(getattr(value, "data_array", value)) is not None and not isinstance(
        value, list
    ):
        raise HostCopyError(f"comparison_view: {what} holds no values to read.")
    return log_probabilities(jnp.asarray(arranged(value, axes, what)))[0]
