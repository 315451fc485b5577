"""What every view function returns: markup for a page, and the same facts as plain text."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Mapping
from typing import Any, Literal

from pz_viz._markup import attributes, escaped, visible

__all__ = ["Theme", "View", "document", "side_by_side"]

Theme = Literal["auto", "light", "dark"]


@functools.cache
def asset(name: str) -> str:
    """The text of a file in `pz_viz/assets`."""
    return (importlib.resources.files("pz_viz") / "assets" / name).read_text("utf-8")


@dataclasses.dataclass(frozen=True, repr=False)
class View:
    """A picture: displays itself in a notebook, prints as text, and goes on a page.

    Attributes:
      title: What is shown, in a few words.
      body: Escaped markup; parts of it may need the page's script.
      text: The same facts for a terminal.
      static_body: Markup that needs no script; None where `body` already needs none.
      height: The height to ask for in a notebook, in pixels.
      style: Style rules that the markup needs besides those of every page.
    """

    title: str
    body: str
    text: str
    static_body: str | None = None
    height: int = 420
    style: str = ""

    def __repr__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        del cycle
        for i, line in enumerate(self.text.split("\n")):
            if i:
                printer.break_()
            printer.text(line)

    def _repr_html_(self) -> str:
        """A frame of its own: the notebook's styles and scripts stay out, ours stay in."""
        page = document(self.body, title=self.title, embedded=True, style=self.style)
        frame = {
            "srcdoc": None,
            "sandbox": "allow-scripts",
            "title": self.title,
            "style": f"width:100%;height:{self.height}px;border:0;resize:vertical;overflow:auto",
        }
        # The page is escaped here by hand: `escaped` would make its line breaks visible.
        srcdoc = page.replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe{attributes(frame)} srcdoc="{srcdoc}"></iframe>'


def content_policy(script: str | None, *, permissive: bool = False) -> str:
    """The page's own content policy: no network at all, and no script but ours.

    Args:
      script: Our script's text, allowed by its hash; None allows no script.
      permissive: Whether inline scripts and `eval` must run (treescope's array pictures do that).
    """
    if permissive:
        scripts = "script-src 'unsafe-inline' 'unsafe-eval'"
    elif script is None:
        scripts = "script-src 'none'"
    else:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        scripts = f"script-src 'sha256-{digest}'"
    return (
        f"default-src 'none'; {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )


def document(
    body: str,
    *,
    title: str,
    theme: Theme = "auto",
    static: bool = False,
    embedded: bool = False,
    style: str = "",
    permissive: bool = False,
) -> str:
    """A complete page around escaped markup.

    Args:
      body: Escaped markup.
      title: The page's title, as plain text.
      theme: Which colours; "auto" follows the reader's system setting.
      static: Whether to leave every script out.
      embedded: Whether the page stands in a frame of a notebook.
      style: Style rules that come before ours.
      permissive: See `content_policy`.

    Returns:
      An HTML document that loads nothing.
    """
    script = None if static else asset("page.js")
    root = attributes({"lang": "en", "data-theme": None if theme == "auto" else theme})
    policy = content_policy(script, permissive=permissive)
    end = "" if script is None else f"<script>{script}</script>\n"
    return (
        f"<!DOCTYPE html>\n<html{root}>\n<head>\n"
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="pz_viz">\n'
        f"<title>{escaped(title)}</title>\n"
        f"<style>\n{style}{asset('tree.css')}{asset('page.css')}</style>\n</head>\n"
        f"<body{attributes({'class': 'pz-embedded' if embedded else None})}>\n{body}\n{end}"
        "</body>\n</html>\n"
    )


def side_by_side(views: Mapping[str, View], *, title: str = "Side by side") -> View:
    """Puts views next to each other, as two runs of one experiment.

    Args:
      views: Headings with their views.
      title: Heading of the whole.

    Returns:
      A view; where the window is narrow the parts stand one below the other.
    """

    def joined(bodies: Mapping[str, str]) -> str:
        parts = [
            f"<div><h3>{escaped(heading)}</h3>{body}</div>" for heading, body in bodies.items()
        ]
        return f'<div class="pz-side">{"".join(parts)}</div>'

    needs_script = any(view.static_body is not None for view in views.values())
    static = {
        heading: view.body if view.static_body is None else view.static_body
        for heading, view in views.items()
    }
    return View(
        title,
        joined({heading: view.body for heading, view in views.items()}),
        "\n\n".join(f"[{visible(heading)}]\n{view.text}" for heading, view in views.items()),
        joined(static) if needs_script else None,
        max((view.height for view in views.values()), default=100) + 40,
        "\n".join(dict.fromkeys(view.style for view in views.values() if view.style)),
    )
