"""What an edit changed, drawn in the tree.

    show_diff(model, edited)      # boxes around what was removed, replaced, added or changed

The tree is the one before the edit; what came instead stands in the same box. pz-core's `diff`
finds the changes.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import treescope
from treescope import layout_algorithms, lowering, rendering_parts

from pz_core import tree_diff
from pz_viz import repeated_siblings
from pz_viz._lowering import lowered, represented
from pz_viz._markup import escaped, visible
from pz_viz.selections import ancestor_paths
from pz_viz.views import View

__all__ = ["show_diff"]

MOST_CHANGES = 200
"""The most changes that are drawn; the others are counted."""

_text = rendering_parts.text


@dataclasses.dataclass(frozen=True)
class _ChangedHere:
    """The layout mark of a changed node; treescope opens whatever leads to one."""


_changes_by_path: contextvars.ContextVar[dict[str, list[tree_diff.Change]] | None] = (
    contextvars.ContextVar("pz_viz_changes", default=None)
)


def show_diff(before: Any, after: Any, *, title: str = "What changed") -> View:
    """Draws the differences between two trees.

    Args:
      before: The tree before an edit: a model, or any pytree.
      after: The tree after it.
      title: Heading of the view.

    Returns:
      A view of the first tree, opened where something changed. Each box says in words what
      happened; for arrays of one shape also the largest absolute difference.

    >>> print(show_diff({"a": 1, "b": [2]}, {"a": 1, "b": []}))
    What changed
    1 change:
      ['b'][0]: removed 2
    """
    changes = tree_diff.diff(before, after)
    tree = lowered(_drawn(before, changes))
    account = str(changes)
    hidden = len(changes) - MOST_CHANGES
    cut = f"{hidden} more changes are not drawn." if hidden > 0 else ""
    body = (
        f'<p class="pz-note">{escaped(account.splitlines()[0].rstrip(":"))}. {cut}</p>'
        f'<div class="pz-tree">{tree.body}</div>'
    )
    lines = [visible(line) for line in account.splitlines()[: MOST_CHANGES + 1]]
    text = "\n".join([visible(title), *lines, *([cut] if cut else [])])
    return View(title, body, text, height=500, style=tree.style)


def diff_to_text(before: Any, after: Any) -> str:
    """The drawing of `show_diff` as text, boxes and all."""
    text: str = lowering.render_to_text_as_root(_drawn(before, tree_diff.diff(before, after)))
    return text


@dataclasses.dataclass(frozen=True)
class _SameVariable:
    """Stands for a variable of the first tree in something that was added."""

    text: str

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        del path, subtree_renderer
        return rendering_parts.comment_color(_text(f"<{visible(self.text)} of this tree>"))


def _with_variables(node: Any, variables: Sequence[Any]) -> Any:
    """A node of a diff with frozen values in place of the diff's own stand-ins."""

    def value_of(leaf: Any) -> Any:
        if not isinstance(leaf, tree_diff.VariableToken):
            return leaf
        value = variables[leaf.number]
        return _SameVariable(leaf.text) if isinstance(value, tuple) else value

    return jax.tree.map(value_of, node)


def _drawn(tree: Any, account: tree_diff.TreeDiff) -> Any:
    changes = []
    for change in account.changes[:MOST_CHANGES]:
        if isinstance(change, tree_diff.Added):
            node = _with_variables(change.node, account.variables)
            change = dataclasses.replace(change, node=node)
        elif isinstance(change, tree_diff.Replaced):
            after = _with_variables(change.after, account.variables)
            change = dataclasses.replace(change, after=after)
        changes.append(change)
    by_path: dict[str, list[tree_diff.Change]] = {}
    for change in changes:
        by_path.setdefault(jax.tree_util.keystr(change.path), []).append(change)
    shown = repeated_siblings.ShownPaths(ancestor_paths([c.path for c in changes]), set())
    renderer = treescope.active_renderer.get().extended_with(wrapper_hooks=[_mark_changed])
    tokens = (_changes_by_path.set(by_path), repeated_siblings.shown_paths.set(shown))
    try:
        drawn = represented(renderer, tree, ignore_exceptions=True)
    finally:
        _changes_by_path.reset(tokens[0])
        repeated_siblings.shown_paths.reset(tokens[1])
    part = rendering_parts.build_full_line_with_annotations(drawn)
    if changes:
        layout_algorithms.expand_to_layout_marks(
            part, marks=[_ChangedHere()], collapse_weak_others=True
        )
    layout_algorithms.expand_for_balanced_layout(part)
    return part


def _mark_changed(node: Any, path: str | None, node_renderer: Any) -> Any:
    """Wrapper hook: draws what happened to the node at this path."""
    by_path = _changes_by_path.get()
    changes = None if by_path is None or path is None else by_path.get(path)
    if not changes:
        return NotImplemented
    rendering = node_renderer(node, path)
    part = rendering_parts.with_layout_mark(rendering.renderable, _ChangedHere())
    for change in changes:
        part = _boxed(part, change, node_renderer)
    return rendering_parts.RenderableAndLineAnnotations(part, rendering.annotations)


def _boxed(part: Any, change: tree_diff.Change, node_renderer: Any) -> Any:
    """The node with a headline, and with what came instead of it or into it."""

    def drawn(other: Any) -> Any:
        return node_renderer(other, path=None).renderable

    if isinstance(change, tree_diff.Removed):
        return _box("removed", ["Removed:", part])
    if isinstance(change, tree_diff.Replaced):
        return _box("changed", ["Replaced:", part, "by:", drawn(change.after)])
    if isinstance(change, tree_diff.Added):
        lines = [part, f"Added as [{visible(repr(change.key))}]:", drawn(change.node)]
        return _box("added", lines)
    if isinstance(change, tree_diff.StaticChanged):
        words = (
            f"{change.field} changed from {visible(repr(change.before))} "
            f"to {visible(repr(change.after))}:"
        )
        return _box("changed", [words, part])
    # Arrays and variables describe themselves after their path, which the tree shows already.
    words = visible(change.describe()).split(": ", 1)[-1]
    return _box("changed", [f"Changed: {words}", part])


def _box(kind: str, lines: Sequence[Any]) -> Any:
    color = f"var(--pz-{kind},{_FALLBACKS[kind]})"
    style = f"color:{color};font-weight:bold"
    rows = [
        rendering_parts.fold_condition(
            expanded=rendering_parts.custom_style(_text(f"# {line}"), style)
        )
        if isinstance(line, str)
        else line
        for line in lines
    ]
    box = f"border:2px solid {color};border-left-width:0.75ch;border-radius:4px;padding-left:1.75ch"
    return rendering_parts.build_custom_foldable_tree_node(
        contents=rendering_parts.in_outlined_box(
            rendering_parts.on_separate_lines(rows), css_style=box
        ),
        expand_state=rendering_parts.ExpandState.EXPANDED,
    ).renderable


_FALLBACKS = {"added": "#0b6b2f", "removed": "#a8140c", "changed": "#7a4b00"}
