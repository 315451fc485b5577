"""Heat-maps with sliders: one block of numbers, drawn by the page's script or as still pictures.

The interactive form carries the numbers themselves, so that a cell's value can be read by pointer
and keyboard. The static form holds one small PNG per slice and names its strongest cells in words.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from pz_viz._markup import escaped, number, shortened, visible

__all__ = ["HeatmapAxis", "heatmap", "strongest_cells"]

_MAX_STILLS = 64


@dataclasses.dataclass(frozen=True)
class HeatmapAxis:
    """One axis: its name, the label of each index, and where its slider starts."""

    name: str
    labels: Sequence[str]
    start: int = 0


def heatmap(
    title: str,
    values: np.ndarray,
    axes: Sequence[HeatmapAxis],
    *,
    low: float,
    high: float,
    diverging: bool = False,
    eight_bit: bool = False,
) -> tuple[str, str]:
    """Markup of a heat-map.

    Args:
      title: What is shown.
      values: Float array, one axis per entry of `axes`; NaN means no value.
      axes: Sliders first, then rows, then columns.
      low: Value at the lower end of the colours.
      high: Value at the upper end.
      diverging: Whether zero is the neutral colour.
      eight_bit: Whether values may be rounded to 1/254 of the range (a quarter of the bytes).

    Returns:
      Interactive and static markup.
    """
    if not values.size:
        empty = f'<p class="pz-note">{escaped(title)}: the array has no elements.</p>'
        return empty, empty
    return (
        _interactive(title, values, axes, low, high, diverging, eight_bit),
        _static(title, values, axes, low, high, diverging),
    )


def _interactive(
    title: str,
    values: np.ndarray,
    axes: Sequence[HeatmapAxis],
    low: float,
    high: float,
    diverging: bool,
    eight_bit: bool,
) -> str:
    if eight_bit:
        data, encoding = _quantised(values, low, high).tobytes(), "u8"
    else:
        data, encoding = np.ascontiguousarray(values, dtype="<f4").tobytes(), "f32"
    block = {
        "title": visible(title),
        "low": float(low),
        "high": float(high),
        "diverging": diverging,
        "encoding": encoding,
        "axes": [
            {
                "name": visible(axis.name),
                "labels": [visible(label) for label in axis.labels],
                "start": axis.start,
            }
            for axis in axes
        ],
        "values": base64.b64encode(data).decode(),
    }
    # A data block: never executed, and `<` is written so that no label can close the element.
    packed = json.dumps(block, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<div class="pz-heatmap"><script type="application/json">{packed}</script></div>'


def _quantised(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as 0…254 over the range; 255 for NaN."""
    scaled = np.clip((values - low) / max(high - low, 1e-30), 0, 1) * 254
    codes: np.ndarray = np.where(np.isnan(values), 255, np.rint(np.nan_to_num(scaled)))
    return codes.astype(np.uint8)


def strongest_cells(
    matrix: np.ndarray, rows: HeatmapAxis, columns: HeatmapAxis, count: int = 3
) -> str:
    """The cells of largest magnitude in words: `the → cat 0.53, …`."""
    flat = np.nan_to_num(np.abs(matrix)).ravel()
    count = min(count, max(1, int(np.count_nonzero(flat))))
    if not flat.size:
        return "no cells"
    top = np.argpartition(-flat, count - 1)[:count]
    order = sorted(top.tolist(), key=lambda i: (-flat[i], i))
    return ", ".join(
        f"{shortened(rows.labels[r], 20)} → {shortened(columns.labels[c], 20)} "
        f"{number(matrix[r, c])}"
        for r, c in (divmod(i, matrix.shape[1]) for i in order)
    )


def _static(
    title: str,
    values: np.ndarray,
    axes: Sequence[HeatmapAxis],
    low: float,
    high: float,
    diverging: bool,
) -> str:
    sliders, rows, columns = axes[:-2], axes[-2], axes[-1]
    stills = []
    slices = itertools.product(*(range(len(axis.labels)) for axis in sliders))
    for index in itertools.islice(slices, _MAX_STILLS):
        name = ", ".join(
            f"{axis.name} {axis.labels[i]}" for axis, i in zip(sliders, index, strict=True)
        )
        matrix = values[index]
        words = strongest_cells(matrix, rows, columns)
        scale = max(1, min(16, 240 // max(*matrix.shape, 1)))
        source = base64.b64encode(_png(_colours(matrix, low, high, diverging))).decode()
        stills.append(
            f'<figure><img alt="{escaped(f"{title} {name}: strongest {words}")}" '
            f'width="{matrix.shape[1] * scale}" height="{matrix.shape[0] * scale}" '
            f'src="data:image/png;base64,{source}"><figcaption>{escaped(name)}<br>'
            f"strongest: {escaped(words)}</figcaption></figure>"
        )
    total = int(np.prod([len(axis.labels) for axis in sliders], dtype=np.int64))
    cut = (
        f'<p class="pz-cut">{total - _MAX_STILLS} of {total} slices are not drawn in the static '
        "page.</p>"
        if total > _MAX_STILLS
        else ""
    )
    caption = (
        f"rows: {escaped(rows.name)}; columns: {escaped(columns.name)}; "
        f"colours from {number(low)} to {number(high)}"
    )
    return f'<p class="pz-note">{caption}</p>{cut}<div class="pz-stills">{"".join(stills)}</div>'


def _colours(matrix: np.ndarray, low: float, high: float, diverging: bool) -> np.ndarray:
    """RGB bytes, {rows, columns, 3}, on a white ground."""
    white, plus, minus = np.full(3, 255.0), np.array([11, 61, 145]), np.array([150, 40, 10])
    if diverging:
        amount = np.clip(matrix / max(abs(low), abs(high), 1e-30), -1, 1)
    else:
        amount = np.clip((matrix - low) / max(high - low, 1e-30), 0, 1)
    amount = np.nan_to_num(amount)[..., None]  # {rows, columns, 1}
    ends = np.where(amount < 0, minus, plus)
    rgb = white + (ends - white) * np.abs(amount)
    rgb[np.isnan(matrix)] = 214
    pixels: np.ndarray = rgb.astype(np.uint8)
    return pixels


def _png(rgb: np.ndarray) -> bytes:
    """The bytes of a PNG file (https://www.w3.org/TR/png-3/): truecolour, no filter."""
    height, width, _ = rgb.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
