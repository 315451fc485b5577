"""Pages: any object, or several views under headings, as one file that needs nothing else.

    to_html(model, "model.html", title="SmolLM2")
    report({"The model": model, "Attention": attention_view(w, tokens)}, "run.html", title="Run 7")

A page loads nothing from the network, and its own content policy says so: nothing but the page's
one script may run, and with `static=True` not even that. (Where treescope draws arrays as pictures,
its own scripts must run too; the policy then allows inline scripts, and still no network.) Light or
dark follows the reader's system.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import treescope
from treescope import figures

from pz_viz import repeated_siblings
from pz_viz._lowering import LoweredTree, drawn, lowered
from pz_viz._markup import escaped
from pz_viz.views import Theme, View, document

__all__ = ["Section", "report", "to_html"]

MOST_BYTES = 20_000_000
"""The default size limit of a page, in bytes."""

_KEYS = (
    '<p class="pz-keys">Click or press Tab and Space to fold; arrow keys move between nodes; '
    "<kbd>r</kbd> shows full names.</p>"
)
_STATIC_KEYS = '<p class="pz-keys">Click or press Tab and Space to fold.</p>'
_STATIC_STYLE = ".copybutton { display: none; }\n"


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
      heading: Plain text.
      content: A view, a figure, a string (set as a paragraph), or any object (drawn as a tree); a
        tuple of these stands one below the other.
      note: A sentence or two below the heading, as plain text.
    """

    heading: str
    content: Any
    note: str = ""


@dataclasses.dataclass
class _Page:
    """What has been written so far."""

    static: bool
    parts: list[str] = dataclasses.field(default_factory=list)
    styles: set[str] = dataclasses.field(default_factory=set)
    permissive: bool = False


def to_html(
    obj: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    theme: Theme = "auto",
    static: bool = False,
    max_bytes: int = MOST_BYTES,
) -> str:
    """Draws an object on a page of its own.

    Args:
      obj: A view, a figure, a selection, or any object.
      path: Where to write the page; None only returns it.
      title: The page's title; None takes the view's, or the object's class.
      theme: "light" or "dark" overrides the reader's system setting.
      static: Whether the page must work without any script. Trees still fold; heat-maps become
        pictures.
      max_bytes: The page's size limit. A larger tree is drawn with more of it folded, and the
        page says so.

    Returns:
      The page.

    Raises:
      ValueError: If the page exceeds `max_bytes` however much is folded.
    """
    if title is None:
        title = obj.title if isinstance(obj, View) else type(obj).__name__
    return _written([Section("", obj)], path, title, theme, static, max_bytes)


def report(
    sections: Mapping[str, Any] | Sequence[Section],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str,
    note: str = "",
    theme: Theme = "auto",
    static: bool = False,
    max_bytes: int = MOST_BYTES,
) -> str:
    """Puts several things on one page, each under its heading.

    Args:
      sections: Headings with their contents, or sections, in order.
      path: Where to write the page; None only returns it.
      title: The page's title and first heading.
      note: A sentence or two below it, as plain text.
      theme: See `to_html`.
      static: See `to_html`.
      max_bytes: See `to_html`.

    Returns:
      The page.

    Raises:
      ValueError: If the page exceeds `max_bytes` however much is folded.
      TypeError: If an item is no section.
    """
    if isinstance(sections, Mapping):
        sections = [Section(heading, content) for heading, content in sections.items()]
    stray = [section for section in sections if not isinstance(section, Section)]
    if stray:
        raise TypeError(
            f"report: expected sections, got {type(stray[0]).__name__}. Give headings, "
            '{"Heading": content}, or [Section("Heading", content)].'
        )
    return _written(sections, path, title, theme, static, max_bytes, note)


def _written(
    sections: Sequence[Section],
    path: str | os.PathLike[str] | None,
    title: str,
    theme: Theme,
    static: bool,
    max_bytes: int,
    note: str = "",
) -> str:
    page = _within_size(sections, title, theme, static, max_bytes, note)
    if path is not None:
        pathlib.Path(path).write_text(page, encoding="utf-8", newline="\n")
    return page


def _within_size(
    sections: Sequence[Section], title: str, theme: Theme, static: bool, max_bytes: int, note: str
) -> str:
    """Folds more and more of the trees until the page fits."""
    size = 0
    for limits in (
        None,
        repeated_siblings.TreeLimits(4, 12, 8, 500),
        repeated_siblings.TreeLimits(4, 4, 3, 50),
    ):
        with repeated_siblings.limited_to(limits):
            page = _assembled(sections, title, theme, static, note, limits is not None)
        size = len(page.encode())
        if size <= max_bytes:
            return page
    raise ValueError(
        f"to_html: the page takes {size:_} bytes however much is folded, and max_bytes is "
        f"{max_bytes:_}. Show a part of it (pz_core.select), or pass a larger max_bytes."
    )


def _assembled(
    sections: Sequence[Section], title: str, theme: Theme, static: bool, note: str, was_cut: bool
) -> str:
    page = _Page(static)
    page.parts.append(f"<main>\n<h1>{escaped(title)}</h1>")
    if note:
        page.parts.append(_paragraph(note))
    if was_cut:
        page.parts.append(
            '<p class="pz-cut">The page was too large, so the trees on it are cut: long lists and '
            "deep parts are counted, not drawn.</p>"
        )
    if len(sections) > 2:
        links = "".join(
            f'<li><a href="#section-{i}">{escaped(section.heading)}</a></li>'
            for i, section in enumerate(sections)
        )
        page.parts.append(f'<nav aria-label="Sections"><ol>{links}</ol></nav>')
    for i, section in enumerate(sections):
        element = "section" if section.heading else "div"  # a section has a heading
        page.parts.append(f'<{element} id="section-{i}">')
        if section.heading:
            page.parts.append(f"<h2>{escaped(section.heading)}</h2>")
        if section.note:
            page.parts.append(_paragraph(section.note))
        contents = section.content if isinstance(section.content, tuple) else (section.content,)
        for content in contents:
            _add(page, content)
        page.parts.append(f"</{element}>")
    page.parts.append("</main>")
    style = "\n".join(sorted(page.styles)) + (_STATIC_STYLE if static else "")
    return document(
        "\n".join(page.parts),
        title=title,
        theme=theme,
        static=static,
        style=style,
        permissive=page.permissive,
    )


def _paragraph(text: str) -> str:
    """Plain text as a paragraph; its line breaks stay line breaks."""
    return "<p>" + "<br>".join(escaped(line) for line in text.split("\n")) + "</p>"


def _add(page: _Page, content: Any) -> None:
    if isinstance(content, View):
        use_static = page.static and content.static_body is not None
        page.styles.add(content.style)
        page.parts.append(str(content.static_body) if use_static else content.body)
    elif isinstance(content, str):
        page.parts.append(_paragraph(content))
    else:
        tree = _tree_of(content, page.static)
        page.styles.add(tree.style)
        page.permissive |= tree.runs_scripts
        page.parts.append(f'<div class="pz-tree">{tree.body}</div>')
        if "foldable_node_toggle" in tree.body:
            page.parts.append(_STATIC_KEYS if page.static else _KEYS)


def _tree_of(content: Any, static: bool) -> LoweredTree:
    if hasattr(content, "treescope_part"):  # a figure
        tree = lowered(figures.treescope_part_from_display_object(content))
    elif static:
        with treescope.active_autovisualizer.set_scoped(None):  # it draws with scripts
            tree = lowered(drawn(content))
    else:
        tree = lowered(drawn(content))
    if static and tree.runs_scripts:
        raise ValueError(
            "to_html(static=True): treescope draws pictures of arrays with scripts. Show the array "
            "with effect_view, which has a static form."
        )
    return tree
