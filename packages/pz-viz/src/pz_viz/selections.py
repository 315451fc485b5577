"""A selection drawn in the tree that it selects from: ancestors open, selected nodes boxed.

    print(selection_to_text(pz_core.select(model).at_instances_of(Linear)))

`show_selection` and `show_value` of pz-core's `Selection` call `display_selection`.
"""

from __future__ import annotations

import contextvars
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import treescope
from treescope import layout_algorithms, lowering, rendering_parts

from pz_core.selectors import Selection
from pz_named.named_axes import NamedArrayBase
from pz_viz import _structs, repeated_siblings
from pz_viz._lowering import represented
from pz_viz._markup import visible

__all__ = [
    "display_selection",
    "render_selection",
    "selection_to_html",
    "selection_to_text",
]

MOST_KEY_PATHS = 200
"""The most key paths that are listed after a selection."""

_text = rendering_parts.text
_BOX_STYLE = (
    "border:2px solid var(--pz-selected,darkcyan);border-left-width:0.75ch;"
    "border-radius:4px;padding-left:1.75ch"
)
_MARK_STYLE = "color:var(--pz-selected,darkcyan);font-weight:bold"


@dataclasses.dataclass(frozen=True)
class _SelectedHere:
    """The layout mark of a selected node; treescope opens whatever leads to one."""


@dataclasses.dataclass
class _Tracker:
    """What became of each selected path while the tree was drawn."""

    selected: frozenset[str]
    boxed: bool
    rendered: set[str] = dataclasses.field(default_factory=set)
    repeated: set[str] = dataclasses.field(default_factory=set)


_tracker: contextvars.ContextVar[_Tracker | None] = contextvars.ContextVar(
    "pz_viz_selection", default=None
)


def is_rendering_a_selection() -> bool:
    """Whether a selection is being drawn; inside it, selections are ordinary structs."""
    return _tracker.get() is not None


def _mark_selected(node: Any, path: str | None, node_renderer: Any) -> Any:
    """Wrapper hook: boxes a node whose path is selected."""
    tracker = _tracker.get()
    if tracker is None or path is None or path not in tracker.selected:
        shown = repeated_siblings.shown_paths.get()
        if isinstance(node, NamedArrayBase) and shown is not None and path in shown.ancestors:
            # A picture of the array would hide the data that is selected inside of it.
            with treescope.active_autovisualizer.set_scoped(None):
                return node_renderer(node, path)
        return NotImplemented
    if path in tracker.rendered:
        tracker.repeated.add(path)
    tracker.rendered.add(path)
    rendering = node_renderer(node, path)
    part = rendering_parts.with_layout_mark(rendering.renderable, _SelectedHere())
    if tracker.boxed:
        mark = rendering_parts.custom_style(_text("# Selected:"), _MARK_STYLE)
        part = rendering_parts.build_custom_foldable_tree_node(
            contents=rendering_parts.in_outlined_box(
                rendering_parts.on_separate_lines(
                    [rendering_parts.fold_condition(expanded=mark), part]
                ),
                css_style=_BOX_STYLE,
            ),
            expand_state=rendering_parts.ExpandState.EXPANDED,
        ).renderable
    return rendering_parts.RenderableAndLineAnnotations(part, rendering.annotations)


def _paths_on_the_way(keypath: tuple[Any, ...]) -> list[str]:
    """The path of every node from the root to the end of a key path."""
    paths = [""]
    for key in keypath:
        paths.append(paths[-1] + jax.tree_util.keystr((key,)))
    return paths


def ancestor_paths(keypaths: Sequence[tuple[Any, ...]]) -> frozenset[str]:
    """Every path on the way to a selected node, itself included."""
    return frozenset(path for keypath in keypaths for path in _paths_on_the_way(keypath))


def render_selection(
    selection: Selection, visible_selection: bool = True, ignore_exceptions: bool = False
) -> Any:
    """Draws a selection as treescope parts.

    Args:
      selection: What to draw.
      visible_selection: Whether to box the selected nodes and to write the selecting code around
        the value; otherwise the value alone is drawn, opened down to them.
      ignore_exceptions: Whether a part that fails to draw is replaced by its repr, with a warning.

    Returns:
      A treescope part, laid out.
    """
    keypaths = list(selection.selected_by_path)
    tracker = _Tracker(frozenset(map(jax.tree_util.keystr, keypaths)), boxed=visible_selection)
    shown = repeated_siblings.ShownPaths(ancestor_paths(keypaths), set())
    renderer = treescope.active_renderer.get()
    tokens = (_tracker.set(tracker), repeated_siblings.shown_paths.set(shown))
    try:
        drawn = represented(
            renderer.extended_with(wrapper_hooks=[_mark_selected]),
            selection.deselect(),
            ignore_exceptions=ignore_exceptions,
        )
    finally:
        _tracker.reset(tokens[0])
        repeated_siblings.shown_paths.reset(tokens[1])
    value = rendering_parts.build_full_line_with_annotations(drawn)
    layout_algorithms.expand_to_layout_marks(
        value, marks=[_SelectedHere()], collapse_weak_others=True
    )
    layout_algorithms.expand_for_balanced_layout(value)
    lines = _mismatch_lines(tracker, shown, keypaths)
    if visible_selection:
        lines += _selecting_code(value, keypaths)
    else:
        lines.append(value)
    return rendering_parts.on_separate_lines(lines)


def _selecting_code(value: Any, keypaths: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`pz.select(`, the value, `).at_keypaths(<n subtrees, highlighted above>)`."""
    grey = rendering_parts.comment_color
    plural = "" if len(keypaths) == 1 else "s"
    count = f"{len(keypaths)} subtree{plural}, highlighted above"
    label = grey(
        rendering_parts.siblings(
            rendering_parts.fold_condition(expanded=_text("# "), collapsed=_text("<")),
            count,
            rendering_parts.fold_condition(collapsed=_text(">")),
        )
    )
    rows = [_keypath_line(keypath) for keypath in keypaths[:MOST_KEY_PATHS]]
    if len(keypaths) > MOST_KEY_PATHS:
        rows.append(grey(_text(f"# … {len(keypaths) - MOST_KEY_PATHS:_} more key paths")))
    listing = rendering_parts.build_custom_foldable_tree_node(
        label=label,
        contents=rendering_parts.fold_condition(
            expanded=rendering_parts.indented_children(
                [rendering_parts.siblings("(", rendering_parts.indented_children(rows), ")")]
            )
        ),
        expand_state=rendering_parts.ExpandState.COLLAPSED,
    ).renderable
    return [
        grey(_text(f"{_namespace()}.select(")),
        rendering_parts.indented_children([value]),
        rendering_parts.siblings(grey(_text(").at_keypaths(")), listing, grey(_text(")"))),
    ]


def _namespace() -> str:
    """Where a reader finds `select`: in the umbrella if it is loaded, in pz-core otherwise."""
    return "pz" if "penzai.pz" in sys.modules else "pz_core"


def _keypath_line(keypath: tuple[Any, ...]) -> Any:
    qualified = rendering_parts.roundtrip_condition(roundtrip=_text("jax.tree_util."))
    pieces: list[Any] = ["("]
    for i, key in enumerate(keypath):
        pieces += [", "] if i else []
        if type(key).__module__.startswith("jax"):
            pieces.append(qualified)
        pieces.append(_text(visible(repr(key))))
    pieces.append(",)," if len(keypath) == 1 else "),")
    return rendering_parts.siblings(*pieces)


def _mismatch_lines(
    tracker: _Tracker, shown: repeated_siblings.ShownPaths, keypaths: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """A comment block when some selected paths were drawn never or more than once."""
    never = []
    for keypath in keypaths:
        paths = _paths_on_the_way(keypath)
        if paths[-1] not in tracker.rendered and shown.folded.isdisjoint(paths):
            never.append(paths[-1])
    if not never and not tracker.repeated:
        return []
    words = ["# Warning: some selected subtrees are not drawn as one box each."]
    if never:
        words.append(f"#   never drawn: {_listed(never)}")
    if tracker.repeated:
        words.append(f"#   drawn more than once: {_listed(sorted(tracker.repeated))}")
    words += [
        "# The treescope handler of some PyTree type on these paths names its children",
        "# otherwise than JAX does, or draws nothing below a certain depth.",
    ]
    return [rendering_parts.error_color(_text(line)) for line in words]


def _listed(paths: Sequence[str]) -> str:
    some = ", ".join(visible(repr(path)) for path in paths[:5])
    return some + (f", and {len(paths) - 5} more" if len(paths) > 5 else "")


def selection_to_text(
    selection: Selection, *, visible_selection: bool = True, roundtrip_mode: bool = False
) -> str:
    """The drawing of a selection as text; see `render_selection`."""
    part = render_selection(selection, visible_selection)
    text: str = lowering.render_to_text_as_root(part, roundtrip_mode)
    return text


def selection_to_html(
    selection: Selection,
    *,
    visible_selection: bool = True,
    roundtrip_mode: bool = False,
    compressed: bool = True,
) -> str:
    """The drawing of a selection as a fragment of HTML; `to_html` makes a page of it."""
    part = render_selection(selection, visible_selection)
    html: str = lowering.render_to_html_as_root(part, roundtrip_mode, compressed=compressed)
    return html


def display_selection(
    selection: Selection, visible_selection: bool = True, ignore_exceptions: bool = False
) -> None:
    """Shows a selection: streamed into a notebook, printed anywhere else."""
    from pz_viz.compatibility import in_notebook

    if not in_notebook():
        print(
            lowering.render_to_text_as_root(
                render_selection(selection, visible_selection, ignore_exceptions)
            )
        )
        return
    with lowering.collecting_deferred_renderings() as deferreds:
        part = render_selection(selection, visible_selection, ignore_exceptions)
        lowering.display_streaming_as_root(
            part, deferreds, roundtrip=False, ignore_exceptions=ignore_exceptions
        )


class SelectionViews:
    """What pz-core's `show_selection` and `show_value` call."""

    def show_selection(self, selection: Selection, *, ignore_exceptions: bool) -> None:
        """Shows a selection with boxes around the selected nodes."""
        display_selection(selection, ignore_exceptions=ignore_exceptions)

    def show_value(self, selection: Selection, *, ignore_exceptions: bool) -> None:
        """Shows the whole tree, opened down to the selected nodes."""
        display_selection(selection, visible_selection=False, ignore_exceptions=ignore_exceptions)


def handle_selection(node: Selection, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler: the boxed form at the root, an ordinary struct elsewhere."""
    if path == "" and not is_rendering_a_selection():
        return render_selection(node)
    return _structs.handle_struct(node, path, subtree_renderer)
