"""Attention patterns: who looks at whom, per layer and head.

    view = attention_view(weights, tokens)     # weights: {layer, head, query, key}
    view                                       # in a notebook; print(view) in a terminal
    to_html(view, "attention.html")

The weights are copied to the host once, rounded to 1/254 of their range.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pz_viz._axes import Axis, arranged, axes_of, find_axis
from pz_viz._heatmap import HeatmapAxis, heatmap, strongest_cells
from pz_viz._markup import escaped, spaced
from pz_viz._vocabularies import as_vocabulary
from pz_viz.host_copies import to_host
from pz_viz.views import View

__all__ = ["attention_view"]

ATTENTION_BUDGET = 8_000_000
"""The most weights that `attention_view` copies to the host."""

_QUERY_NAMES = ("query", "query_position", "queries", "tq", "seq", "sequence", "target")
_KEY_NAMES = ("key", "key_position", "keys", "kv_seq", "kv_sequence", "tkv", "tk", "source")


def token_labels(tokens: Any, tokenizer: Any, argument: str) -> list[str]:
    """Labels of tokens: strings as they are, ids through the tokenizer."""
    if isinstance(tokens, str):
        raise ValueError(
            f"{argument}={tokens!r}: expected one entry per token, got a single string. "
            "Pass a list of strings, or ids with tokenizer=."
        )
    if isinstance(tokens, (list, tuple)) and all(isinstance(t, str) for t in tokens):
        return [spaced(token) for token in tokens]
    if hasattr(tokens, "unwrap") and len(tokens.named_shape) == 1:
        tokens = arranged(tokens, axes_of(tokens), argument)
    ids = to_host(tokens, 1_000_000, argument)
    if ids.ndim != 1:
        raise ValueError(
            f"{argument}: expected one axis of token ids, got shape {ids.shape}. "
            "Choose one sequence first."
        )
    if tokenizer is None:
        return [str(int(i)) for i in ids]
    vocabulary = as_vocabulary(tokenizer)
    return [vocabulary.label(int(i)) for i in ids]


def attention_view(
    weights: Any,
    tokens: Any,
    *,
    key_tokens: Any = None,
    tokenizer: Any = None,
    query_axis: Hashable | None = None,
    key_axis: Hashable | None = None,
    start: Sequence[int] = (),
    vmax: float | None = None,
    title: str = "Attention",
) -> View:
    """Shows attention weights with a slider for every axis that is neither query nor key.

    Args:
      weights: Named array with a query and a key axis and any others (layer, head, batch), or a
        plain array `[..., query, key]`, whose axes before these count as `layer`, `head`. Float,
        usually between 0 and 1.
      tokens: One string per query position, or ids `{query}` (labelled through `tokenizer`).
      key_tokens: The same for key positions; None takes `tokens`.
      tokenizer: See `show_token_array`; None prints ids as numbers.
      query_axis: Name (or position) of the query axis; None looks for a usual name, such as
        `query` or `seq`, and then for two positional axes.
      key_axis: The same for the key axis (`key`, `kv_seq`).
      start: Where the sliders start, in order of the axes.
      vmax: The weight drawn in full colour; None takes the largest one.
      title: Heading of the view.

    Returns:
      A view: hover or move with the arrow keys to read a weight with its two tokens.

    Raises:
      ValueError: If the axes cannot be told apart, or the tokens do not fit them.
      HostCopyError: If the weights cannot be read, or are more than `ATTENTION_BUDGET`.

    >>> import numpy as np
    >>> print(attention_view(np.tril(np.ones((2, 2))), ["a", "b"]))
    Attention {query: 2, key: 2}
    strongest: a → a 1, b → a 1, b → b 1
    """
    others, query, key = _roles(weights, query_axis, key_axis)
    order = [*others, query, key]
    values = to_host(arranged(weights, order, "weights"), ATTENTION_BUDGET, "weights")
    values = values.astype(np.float32)
    query_labels = token_labels(tokens, tokenizer, "tokens")
    key_labels = (
        query_labels if key_tokens is None else token_labels(key_tokens, tokenizer, "key_tokens")
    )
    _check_fits(query, query_labels, "tokens")
    _check_fits(key, key_labels, "tokens" if key_tokens is None else "key_tokens")
    axes = [
        *_slider_axes(others, start),
        HeatmapAxis(_role_name(query, "query"), query_labels),
        HeatmapAxis(_role_name(key, "key"), key_labels),
    ]
    high = float(vmax if vmax is not None else np.nanmax(values, initial=0.0)) or 1.0
    body, static_body = heatmap(title, values, axes, low=0.0, high=high, eight_bit=True)
    note = f'<p class="pz-note">{escaped(_shape_line(axes))}</p>'
    return View(
        title=title,
        body=note + body,
        text=_text(title, values, axes),
        static_body=note + static_body,
        height=min(900, 180 + 24 * min(len(query_labels), 30)),
    )


def _roles(
    weights: Any, query_axis: Hashable | None, key_axis: Hashable | None
) -> tuple[list[Axis], Axis, Axis]:
    axes = axes_of(weights, ("batch", "layer", "head", "query", "key"))
    query = find_axis(axes, query_axis, _QUERY_NAMES, "query_axis")
    key = find_axis([a for a in axes if a is not query], key_axis, _KEY_NAMES, "key_axis")
    positional = [axis for axis in axes if not axis.is_named]
    if query is None and key is None and len(positional) == 2:
        query, key = positional
    if query is None or key is None:
        missing = "query_axis" if query is None else "key_axis"
        raise ValueError(
            f"attention_view: cannot tell which axis is the {missing.removesuffix('_axis')}. The "
            f"array has the axes {', '.join(a.label for a in axes)}. Pass {missing}=."
        )
    return [axis for axis in axes if axis is not query and axis is not key], query, key


def _role_name(axis: Axis, role: str) -> str:
    return axis.label if axis.is_named else role


def _check_fits(axis: Axis, labels: Sequence[str], argument: str) -> None:
    if len(labels) != axis.size:
        raise ValueError(
            f"attention_view: {argument} has {len(labels)} entries and the axis {axis.label} has "
            f"size {axis.size}; they must agree. Slice the weights to the part that is filled, or "
            "pass key_tokens=."
        )


def _slider_axes(others: Sequence[Axis], start: Sequence[int]) -> list[HeatmapAxis]:
    starts = [*start, *([0] * len(others))]
    for axis, at in zip(others, starts, strict=False):
        if not -axis.size <= at < axis.size:
            raise ValueError(
                f"start: {at} is outside of the axis {axis.label} of size {axis.size}."
            )
    return [
        HeatmapAxis(axis.label, [str(i) for i in range(axis.size)], at % axis.size)
        for axis, at in zip(others, starts, strict=False)
    ]


def _shape_line(axes: Sequence[HeatmapAxis]) -> str:
    return "{" + ", ".join(f"{axis.name}: {len(axis.labels)}" for axis in axes) + "}"


def _text(title: str, values: np.ndarray, axes: Sequence[HeatmapAxis]) -> str:
    """The slice at which the sliders start, with its strongest links."""
    sliders, rows, columns = axes[:-2], axes[-2], axes[-1]
    matrix = values[tuple(axis.start for axis in sliders)]
    where = ", ".join(f"{axis.name} {axis.labels[axis.start]}" for axis in sliders)
    strongest = strongest_cells(matrix, rows, columns, 5)
    lead = f"{where}: strongest" if where else "strongest"
    return f"{title} {_shape_line(axes)}\n{lead}: {strongest}"
