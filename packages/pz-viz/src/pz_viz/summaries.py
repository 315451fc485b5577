"""A model as a table: what it holds, how large it is, and what trains.

    print(summary(model, depth=2))
    summary(model, depth=3, inputs=(tokens,))     # with operations per block

Nothing is computed and no data is read, so it works on slots, on frozen values and on models made
of `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from pz_viz._array_walk import Found, dtype_and_size, shape_of, sharding_text, walk
from pz_viz._flops import Operations, flops_by_keypath
from pz_viz._markup import escaped, table, visible
from pz_viz.views import View

__all__ = ["SummaryRow", "rich_summary", "summary", "summary_rows"]

MOST_ROWS = 200
"""The most rows that are listed; the rest are added up in one more."""


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One row: one array, or all arrays below one struct.

    Attributes:
      path: Key path of the array, or of the struct.
      holder: Class of the struct that holds it.
      arrays: Number of arrays, shared ones counted once.
      shape: `dtype(positional | name:size)` of a single array; empty for several.
      dtypes: The dtypes, in order of appearance.
      count: Number of elements; what is shared counts where it appears first.
      bytes: Size of the data.
      roles: "trainable" (a bound parameter), "frozen", "state", "slot" or "array".
      sharding: Over which mesh axes each axis is split; empty on a single device.
      shared_with: Path of the first appearance, for an array that appeared before.
      flops: Operations of one call of the struct; None where unknown or not asked for.
      flops_is_lower_bound: Whether a loop that counts as one turn is among them, since its turns
        are known only when it runs.
    """

    path: str
    holder: str
    arrays: int
    shape: str
    dtypes: tuple[str, ...]
    count: int
    bytes: int
    roles: tuple[str, ...]
    sharding: str = ""
    shared_with: str | None = None
    flops: float | None = None
    flops_is_lower_bound: bool = False


def _row_of(found: Found, first_path: str | None) -> SummaryRow:
    path = jax.tree_util.keystr(found.keypath)
    holder = found.structs[-1][1] if found.structs else ""
    if found.role == "slot":
        return SummaryRow(path, holder, 0, "", (), 0, 0, ("slot",), "", first_path)
    try:
        dtype, count, size = dtype_and_size(found.value)
        shape = shape_of(found.value)
    except (AttributeError, ValueError, TypeError):  # after a tree map the leaf may be anything
        return SummaryRow(path, holder, 0, "invalid", (), 0, 0, (found.role,))
    if first_path is not None:
        return SummaryRow(path, holder, 0, shape, (dtype,), 0, 0, (found.role,), "", first_path)
    sharding = sharding_text(found.value)
    return SummaryRow(path, holder, 1, shape, (dtype,), count, size, (found.role,), sharding)


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _merged(path: str, holder: str, rows: Sequence[SummaryRow]) -> SummaryRow:
    if len(rows) == 1 and rows[0].path == path:
        return rows[0]
    return SummaryRow(
        path=path,
        holder=holder,
        arrays=sum(row.arrays for row in rows),
        shape="",
        dtypes=_unique(dtype for row in rows for dtype in row.dtypes),
        count=sum(row.count for row in rows),
        bytes=sum(row.bytes for row in rows),
        roles=_unique(role for row in rows for role in row.roles),
        sharding="; ".join(_unique(row.sharding for row in rows if row.sharding)),
        shared_with=rows[0].shared_with if rows and all(r.shared_with for r in rows) else None,
    )


def summary_rows(
    model: Any,
    *,
    depth: int | None = None,
    inputs: tuple[Any, ...] | None = None,
    keyword_inputs: Mapping[str, Any] | None = None,
) -> tuple[SummaryRow, ...]:
    """The rows of `summary`, for programs.

    Args:
      model: Any pytree.
      depth: How many structs below the root a row stands for; 0 is the whole model, None gives
        every array a row of its own.
      inputs: Arguments with which to count operations, arrays or `ShapeDtypeStruct`s; needs a
        depth.
      keyword_inputs: Keyword arguments likewise.

    Returns:
      The rows, in flatten order.

    Raises:
      ValueError: For a negative depth, or inputs without a depth.
    """
    return _rows_and_operations(model, depth, inputs, keyword_inputs)[0]


def _rows_and_operations(
    model: Any,
    depth: int | None,
    inputs: tuple[Any, ...] | None,
    keyword_inputs: Mapping[str, Any] | None,
) -> tuple[tuple[SummaryRow, ...], Operations | None]:
    """The rows, and the operations of one call of the whole model."""
    if depth is not None and depth < 0:
        raise ValueError(f"summary: depth={depth}; it counts structs below the root, from 0 on.")
    if depth is None and (inputs is not None or keyword_inputs is not None):
        raise ValueError(
            "summary: operations are counted per block, so inputs need a depth, such as depth=1."
        )
    first: dict[Any, str] = {}
    groups: dict[tuple[Any, ...], tuple[str, list[SummaryRow]]] = {}
    for found in walk(model):
        path = jax.tree_util.keystr(found.keypath)
        earlier = first.get(found.identity)
        first.setdefault(found.identity, path)
        row = _row_of(found, earlier)
        if depth is None:
            groups[found.keypath] = (row.holder, [row])
        else:
            keypath, holder = found.structs[min(depth, len(found.structs) - 1)]
            groups.setdefault(keypath, (holder, []))[1].append(row)
    flops: Mapping[tuple[Any, ...], Operations | None] = {}
    if inputs is not None or keyword_inputs is not None:
        flops = flops_by_keypath(model, list(groups), inputs or (), keyword_inputs or {})
    merged = tuple(
        _with_operations(_merged(jax.tree_util.keystr(keypath), holder, rows), flops.get(keypath))
        for keypath, (holder, rows) in groups.items()
    )
    return merged, flops.get(())


def _with_operations(row: SummaryRow, operations: Operations | None) -> SummaryRow:
    if operations is None:
        return row
    return dataclasses.replace(
        row, flops=operations.count, flops_is_lower_bound=operations.is_lower_bound
    )


def summary(
    model: Any,
    *,
    depth: int | None = None,
    inputs: tuple[Any, ...] | None = None,
    keyword_inputs: Mapping[str, Any] | None = None,
    title: str = "Summary",
) -> View:
    """Tabulates a model: classes, shapes by axis name, sizes, roles and sharding.

    What appears more than once is counted once, and says with what it is shared.

    Args:
      model: Any pytree; variables may be bound, frozen or slots, arrays abstract.
      depth: See `summary_rows`.
      inputs: See `summary_rows`.
      keyword_inputs: See `summary_rows`.
      title: Heading of the view.

    Returns:
      A view that needs no script; its text is a table for a terminal.

    Raises:
      ValueError: For a negative depth, or inputs without a depth.

    >>> import jax.numpy as jnp
    >>> print(summary({"w": jnp.ones((2, 3))}))
    Summary
    path   class  shape          elements  bytes  role
    ['w']  dict   float32(2, 3)         6   24 B  array
    total         1 array               6   24 B
    """
    rows, operations = _rows_and_operations(model, depth, inputs, keyword_inputs)
    head, align, lines, total = _cells(rows, operations)
    text = f"{visible(title)}\n{table([head, *lines, total], align)}"
    note = "" if operations is None else _OPERATIONS_NOTE
    if operations is not None and operations.is_lower_bound:
        note += f" {_LOWER_BOUND_NOTE}"
    body = _table_markup(title, head, align, lines, total, note)
    return View(title, body, f"{text}\n{note}".rstrip(), height=min(900, 120 + 30 * len(lines)))


def rich_summary(
    model: Any,
    *,
    depth: int | None = None,
    inputs: tuple[Any, ...] | None = None,
    keyword_inputs: Mapping[str, Any] | None = None,
    title: str = "Summary",
) -> Any:
    """The same table as a `rich.table.Table`, for terminals with colour.

    Args:
      model: See `summary`.
      depth: See `summary`.
      inputs: See `summary`.
      keyword_inputs: See `summary`.
      title: See `summary`.

    Raises:
      ImportError: If rich is not installed.
    """
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError as exc:
        raise ImportError(
            "rich_summary draws with rich, which is not installed. Install it with: "
            'pip install "pz-viz[rich]", or print(pz_viz.summary(model)).'
        ) from exc
    head, align, lines, total = _cells(*_rows_and_operations(model, depth, inputs, keyword_inputs))
    drawn = Table(title=Text(visible(title)), show_footer=True)
    for name, side, last in zip(head, align, total, strict=True):
        drawn.add_column(name, Text(last), justify="right" if side == ">" else "left")
    for line in lines:
        drawn.add_row(*map(Text, line))  # Text: brackets in a path are no markup
    return drawn


def _bytes_text(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


_OPERATIONS_NOTE = (
    "Operations are floating-point operations of one call of each block, every turn of its loops "
    "included; the blocks of a stack are called once for each layer."
)
_LOWER_BOUND_NOTE = "≥: a loop whose turns are known only when it runs counts as one turn."


def _flops_text(flops: float | None, is_lower_bound: bool) -> str:
    return "" if flops is None else f"{'≥' if is_lower_bound else ''}{flops:.3g}"


_Column = tuple[str, str, Callable[[SummaryRow], str]]

_COLUMNS: tuple[_Column, ...] = (
    ("path", "<", lambda row: row.path or "(root)"),
    ("class", "<", lambda row: row.holder),
    ("shape", "<", lambda row: _shape_cell(row)),
    ("elements", ">", lambda row: f"{row.count:,}"),
    ("bytes", ">", lambda row: _bytes_text(row.bytes)),
    ("role", "<", lambda row: ", ".join(row.roles)),
    ("sharding", "<", lambda row: row.sharding),
    ("operations", ">", lambda row: _flops_text(row.flops, row.flops_is_lower_bound)),
)


def _shape_cell(row: SummaryRow) -> str:
    if row.shared_with is not None:
        return f"{row.shape} shared with {row.shared_with}".strip()
    if row.shape:
        return row.shape
    if not row.arrays:
        return "unknown" if row.roles == ("slot",) else ""
    plural = "" if row.arrays == 1 else "s"
    return f"{row.arrays} array{plural} {', '.join(row.dtypes)}"


def _cells(
    rows: Sequence[SummaryRow], operations: Operations | None
) -> tuple[list[str], str, list[list[str]], list[str]]:
    """Column heads, alignments, the lines of the table, and its last line."""
    total = _with_operations(_merged("", "", rows), operations)
    shown = list(rows[:MOST_ROWS])
    rest = rows[MOST_ROWS:]
    if rest:
        shown.append(_merged(f"… {len(rest):,} more rows", "", rest))
    columns = [
        column
        for column in _COLUMNS
        if column[0] not in ("sharding", "operations") or any(map(column[2], shown))
    ]
    lines = [[visible(cell(row)) for _, _, cell in columns] for row in shown]
    last = {
        "path": "total",
        "shape": f"{total.arrays:,} array" + ("" if total.arrays == 1 else "s"),
        "elements": f"{total.count:,}",
        "bytes": _bytes_text(total.bytes),
        "operations": _flops_text(total.flops, total.flops_is_lower_bound),
    }
    heads = [name for name, _, _ in columns]
    align = "".join(side for _, side, _ in columns)
    return heads, align, lines, [last.get(name, "") for name in heads]


def _table_markup(
    title: str,
    head: Sequence[str],
    align: str,
    lines: Sequence[Sequence[str]],
    total: Sequence[str],
    note: str,
) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        kinds = [' class="pz-number"' if side == ">" else "" for side in align]
        return "".join(
            f"<{tag}{kind}>{escaped(value)}</{tag}>"
            for kind, value in zip(kinds, values, strict=True)
        )

    rows = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines)
    extra = f'<p class="pz-note">{escaped(note)}</p>' if note else ""
    return (
        f'{extra}<div class="pz-scroll"><table class="pz-summary"><caption>{escaped(title)}'
        f"</caption><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr>{cells(total, 'td')}</tr></tfoot></table></div>"
    )
