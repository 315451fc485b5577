"""pz_viz against upstream's treescope handlers: time and bytes of the same 300-layer model.

Both libraries draw a chain of 300 linear layers with the same labels, axes and values, through the
same treescope. "unfolded" draws every layer; "default" counts repeated siblings in a note.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import harness
import jax.numpy as jnp
import treescope

__all__ = ["PROGRAMS"]

LAYERS = 300
SIZE = 4


@functools.cache
def our_model() -> Any:
    import pz_named as nx
    import pz_nn
    import pz_viz
    from pz_core.variables import Parameter

    assert pz_viz
    layers = [
        pz_nn.Linear(
            weights=Parameter(
                label=f"layer_{i}",
                value=nx.NamedArray(collections.OrderedDict(f=SIZE, h=SIZE), _values(i)),
            ),
            in_axis_names=("f",),
            out_axis_names=("h",),
        )
        for i in range(LAYERS)
    ]
    return pz_nn.Sequential(layers)


@functools.cache
def their_model() -> Any:
    from penzai import pz

    layers = [
        pz.nn.Linear(
            weights=pz.Parameter(
                label=f"layer_{i}",
                value=pz.nx.NamedArray(collections.OrderedDict(f=SIZE, h=SIZE), _values(i)),
            ),
            in_axis_names=("f",),
            out_axis_names=("h",),
        )
        for i in range(LAYERS)
    ]
    return pz.nn.Sequential(layers)


def _values(i: int) -> Any:
    return jnp.arange(SIZE * SIZE, dtype=jnp.float32).reshape(SIZE, SIZE) + i


def our_selection() -> Any:
    import pz_nn
    from pz_core.selectors import select

    return select(our_model()).at_instances_of(pz_nn.Linear).pick_nth_selected(LAYERS // 2)


def their_selection() -> Any:
    from penzai import pz

    chosen = pz.select(their_model()).at_instances_of(pz.nn.Linear)
    return chosen.pick_nth_selected(LAYERS // 2)


def our_selection_html(selection: Any) -> str:
    import pz_viz

    return pz_viz.selection_to_html(selection, compressed=False)


def their_selection_html(selection: Any) -> str:
    return treescope.lowering.render_to_html_as_root(selection.__treescope_root_repr__())


def html(model: Any) -> str:
    return treescope.render_to_html(model, compressed=False)


def _rows(
    name: str,
    ours: Callable[[], str],
    theirs: Callable[[], str],
    folded: bool,
    target: float,
    count_bytes: bool = True,
) -> list[harness.Row]:
    import pz_viz

    def draw() -> str:
        with contextlib.nullcontext() if folded else pz_viz.folding(None):
            return ours()

    how = "default" if folded else "unfolded"
    rows = harness.compare(
        f"{name}, {how}", ours=draw, peers={"upstream": theirs}, targets={"upstream": target}
    )
    if count_bytes:
        rows += harness.counted(
            f"{name}, {how}: size",
            len(draw().encode()),
            {"upstream": len(theirs().encode())},
            unit="bytes",
            targets={"upstream": target},
        )
    return rows


def text() -> list[harness.Row]:
    """Text of the whole model."""
    pairs = (
        lambda: treescope.render_to_text(our_model()),
        lambda: treescope.render_to_text(their_model()),
    )
    return [
        *_rows("text", *pairs, folded=False, target=0.65, count_bytes=False),
        *_rows("text", *pairs, folded=True, target=0.3),
    ]


def html_rows() -> list[harness.Row]:
    """Markup of the whole model."""
    pairs = (lambda: html(our_model()), lambda: html(their_model()))
    return [
        *_rows("html", *pairs, folded=False, target=1.0),
        *_rows("html", *pairs, folded=True, target=0.3),
    ]


def selection() -> list[harness.Row]:
    """Markup of a selection of one layer in the middle."""
    ours, theirs = our_selection(), their_selection()
    pairs = (lambda: our_selection_html(ours), lambda: their_selection_html(theirs))
    return [
        *_rows("selection", *pairs, folded=False, target=1.0),
        *_rows("selection", *pairs, folded=True, target=0.3),
    ]


def repr_length() -> list[harness.Row]:
    """Length of `repr(model)`, which errors and debuggers print."""
    return harness.counted(
        "repr(model)",
        len(repr(our_model())),
        {"upstream": len(repr(their_model()))},
        unit="characters",
        targets={"upstream": 0.1},
    )


PROGRAMS = {
    "text": text,
    "html": html_rows,
    "selection": selection,
    "repr": repr_length,
}
