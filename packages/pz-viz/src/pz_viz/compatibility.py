"""`pz.show` and the functions that set up a notebook.

They work as treescope's own, with three differences: classes that still define the old hook
`__penzai_repr__(path, subtree_renderer)` are drawn by it; everything also works outside of a
notebook, where values print as text; and setting up twice changes nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import treescope
from treescope import figures, handlers, lowering, renderers

from pz_viz.views import View

__all__ = [
    "basic_interactive_setup",
    "disable_interactive_context",
    "display",
    "enable_interactive_context",
    "in_notebook",
    "load_ipython_extension",
    "register_as_default",
    "show",
]


def _handle_penzai_repr(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    return handlers.handle_via_treescope_repr_method(
        node, path, subtree_renderer, method_name="__penzai_repr__"
    )


def _extended_renderer() -> renderers.TreescopeRenderer:
    """The active renderer, with the old hook once."""
    renderer = treescope.active_renderer.get()
    if _handle_penzai_repr in renderer.handlers:
        return renderer
    return renderer.extended_with(handlers=[_handle_penzai_repr])


def in_notebook() -> bool:
    """Whether an IPython shell is running that displays what it is given."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def display(
    value: Any, ignore_exceptions: bool = False, roundtrip_mode: bool = False, **options: Any
) -> None:
    """Displays a value in a notebook as a tree that folds; prints it anywhere else.

    Args:
      value: Anything.
      ignore_exceptions: Whether a part that fails to draw is replaced by its repr.
      roundtrip_mode: Whether names start fully qualified.
      **options: Passed on to `treescope.display` (`autovisualize`, `streaming`, `compress_html`).
    """
    with treescope.active_renderer.set_scoped(_extended_renderer()):
        if in_notebook():
            treescope.display(
                value, ignore_exceptions=ignore_exceptions, roundtrip_mode=roundtrip_mode, **options
            )
        else:
            print(treescope.render_to_text(value, roundtrip_mode, ignore_exceptions))


def show(*args: Any, wrap: bool = False, space_separated: bool = True, **options: Any) -> None:
    """Shows values in a line: strings as they are, figures as pictures, the rest as trees.

    Outside of a notebook the same is printed as text; `to_html` writes it to a page.

    Args:
      *args: What to show.
      wrap: Whether lines may wrap between words.
      space_separated: Whether single spaces stand between the values.
      **options: Passed on to `treescope.show` (`autovisualize`).

    >>> show("a pair:", (1, 2))
    a pair: (1, 2)
    """
    with treescope.active_renderer.set_scoped(_extended_renderer()):
        if in_notebook():
            treescope.show(*args, wrap=wrap, space_separated=space_separated, **options)
        else:
            print((" " if space_separated else "").join(map(_as_text, args)))


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, View):
        return value.text
    part = figures.treescope_part_from_display_object(value)
    text: str = lowering.render_to_text_as_root(part)
    return text


def register_as_default(streaming: bool = True, compress_html: bool = True) -> None:
    """Makes treescope the way in which IPython displays objects.

    Args:
      streaming: Whether the structure appears first and array summaries later.
      compress_html: Whether the markup is compressed.

    Raises:
      RuntimeError: Outside of an IPython shell, where there is nothing to set up.
    """
    _require_notebook("register_as_default")
    treescope.register_as_default(streaming=streaming, compress_html=compress_html)
    _short_text_for_arrays()
    treescope.active_renderer.set_globally(_extended_renderer())


def basic_interactive_setup(autovisualize_arrays: bool = True, **options: Any) -> None:
    """Sets a notebook up: default display, the two magics, and pictures of arrays.

    Args:
      autovisualize_arrays: Whether arrays are drawn as pictures inside of trees.
      **options: Passed on to `treescope.basic_interactive_setup` (`abbreviation_threshold`).

    Raises:
      RuntimeError: Outside of an IPython shell, where there is nothing to set up.
    """
    _require_notebook("basic_interactive_setup")
    treescope.basic_interactive_setup(autovisualize_arrays=autovisualize_arrays, **options)
    _short_text_for_arrays()
    treescope.active_renderer.set_globally(_extended_renderer())


def load_ipython_extension(ipython: Any) -> None:
    """Sets a notebook up by `%load_ext pz_viz`; see `basic_interactive_setup`."""
    del ipython
    basic_interactive_setup(autovisualize_arrays=False)


def enable_interactive_context() -> None:
    """Does nothing; old notebooks call it."""


def disable_interactive_context() -> None:
    """Is not possible any more.

    Raises:
      RuntimeError: Always. Use `treescope.active_renderer.set_scoped` to change one display.
    """
    raise RuntimeError(
        "disable_interactive_context: a notebook's set-up cannot be undone; restart the kernel, "
        "or change one display with treescope.active_renderer.set_scoped(...)."
    )


def _require_notebook(function: str) -> None:
    if not in_notebook():
        raise RuntimeError(
            f"{function}: no IPython shell is running, so there is no display to set up. In a "
            "script, print with pz_viz.show(...) or write a page with pz_viz.to_html(...)."
        )


def _short_text_for_arrays() -> None:
    """Gives jax arrays treescope's one-line text in place of a repr of every element."""
    import IPython
    import jax.numpy as jnp

    shell = IPython.get_ipython()
    formatter = shell.display_formatter.formatters["text/plain"]

    def one_line(value: Any, printer: Any, cycle: bool) -> None:
        del cycle
        for i, line in enumerate(
            treescope.render_to_text(value, ignore_exceptions=True).split("\n")
        ):
            if i:
                printer.break_()
            printer.text(line)

    formatter.for_type(type(jnp.zeros(())), one_line)
