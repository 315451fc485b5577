"""Results of a sweep, such as patching every head at every position, as a heat-map.

effect_view(effects, rows="block", columns="position", labels={"position": tokens})
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from pz_viz._axes import Axis, arranged, axes_of, find_axis
from pz_viz._heatmap import HeatmapAxis, heatmap, strongest_cells
from pz_viz._markup import escaped, number, spaced
from pz_viz.host_copies import to_host
from pz_viz.views import View

__all__ = ["effect_view"]

EFFECT_BUDGET = 2_000_000
"""The most elements that `effect_view` copies to the host."""


def effect_view(
    effects: Any,
    *,
    rows: Hashable | None = None,
    columns: Hashable | None = None,
    sliders: Sequence[Hashable] | None = None,
    labels: Mapping[Hashable, Sequence[str]] | None = None,
    around_zero: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    title: str = "Effects",
) -> View:
    """Shows a named array as a heat-map with sliders.

    Args:
      effects: Named array (or plain array, whose axes are then 0, 1, …) of numbers.
      rows: The axis drawn downwards; None takes the last but one.
      columns: The axis drawn across; None takes the last one.
      sliders: The other axes in the order of their sliders; None takes them as they come.
      labels: For any axis, one string per index (tokens, for example); others are numbered.
      around_zero: Whether zero is the neutral colour; None asks whether values are negative.
      vmin: Value at the lower end of the colours; None takes the least.
      vmax: Value at the upper end; None takes the greatest.
      title: Heading of the view.

    Returns:
      A view: hover or move with the arrow keys to read a value.

    Raises:
      ValueError: If an axis is unknown, or labels do not fit their axis.
      HostCopyError: If the data cannot be read, or is more than `EFFECT_BUDGET`.
    """
    order = _ordered(axes_of(effects), rows, columns, sliders)
    values = to_host(arranged(effects, order, "effects"), EFFECT_BUDGET, "effects")
    if values.dtype.kind == "c":
        raise ValueError("effect_view: the values are complex; show their real part or magnitude.")
    values = values.astype(np.float32)
    axes = [_heatmap_axis(axis, labels or {}) for axis in order]
    unknown = [key for key in labels or {} if key not in [axis.key for axis in order]]
    if unknown:
        raise ValueError(
            f"effect_view: labels names the axes {unknown}, which the array lacks; its axes are "
            f"{[axis.key for axis in order]}."
        )
    while len(axes) < 2:  # a vector is one row, a scalar one cell
        axes.insert(0, HeatmapAxis("", [""]))
        values = values[None]
    finite = values[np.isfinite(values)]
    low = float(vmin if vmin is not None else finite.min(initial=0.0))
    high = float(vmax if vmax is not None else finite.max(initial=0.0))
    diverging = low < 0 if around_zero is None else around_zero
    body, static_body = heatmap(title, values, axes, low=low, high=high, diverging=diverging)
    text = _text(title, values, axes, low, high)
    note = f'<p class="pz-note">{escaped(text.splitlines()[0])}</p>'
    return View(
        title, note + body, text, note + static_body, min(900, 200 + 24 * min(values.shape[-2], 30))
    )


def _ordered(
    axes: list[Axis],
    rows: Hashable | None,
    columns: Hashable | None,
    sliders: Sequence[Hashable] | None,
) -> list[Axis]:
    free = list(axes)
    chosen: dict[str, Axis] = {}
    for role, wanted in (("rows", rows), ("columns", columns)):
        axis = find_axis(free, wanted, (), role)
        if axis is not None:
            chosen[role] = axis
            free.remove(axis)
    slider_axes = []
    for wanted in sliders or ():
        axis = find_axis(free, wanted, (), "sliders")
        assert axis is not None
        slider_axes.append(axis)
        free.remove(axis)
    if "columns" not in chosen and free:
        chosen["columns"] = free.pop()
    if "rows" not in chosen and free:
        chosen["rows"] = free.pop()
    ends = [chosen[role] for role in ("rows", "columns") if role in chosen]
    return [*slider_axes, *free, *ends]


def _heatmap_axis(axis: Axis, labels: Mapping[Hashable, Sequence[str]]) -> HeatmapAxis:
    given = labels.get(axis.key)
    if given is None:
        return HeatmapAxis(axis.label, [str(i) for i in range(axis.size)])
    if len(given) != axis.size:
        raise ValueError(
            f"effect_view: labels[{axis.key!r}] has {len(given)} entries and the axis has size "
            f"{axis.size}; give one label per index."
        )
    return HeatmapAxis(axis.label, [spaced(str(label)) for label in given])


def _text(
    title: str, values: np.ndarray, axes: Sequence[HeatmapAxis], low: float, high: float
) -> str:
    shape = ", ".join(f"{axis.name or 'value'}: {len(axis.labels)}" for axis in axes)
    first = f"{title} {{{shape}}}, from {number(low)} to {number(high)}"
    if not values.size:
        return f"{first}\nno values"
    flat = np.nan_to_num(np.abs(values))
    best = tuple(map(int, np.unravel_index(int(np.argmax(flat)), values.shape)))[:-2]
    where = ", ".join(f"{a.name} {a.labels[i]}" for a, i in zip(axes, best, strict=False))
    strongest = strongest_cells(values[best], axes[-2], axes[-1], 5)
    return f"{first}\n{where + ': ' if where else ''}strongest: {strongest}"
