"""Renders chat templates as transformers does: sandboxed jinja2 with a few helpers."""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

__all__ = ["render"]


def render(source: str, **variables: Any) -> str:
    """Renders the template.

    Raises:
      ValueError: The template does not parse, or calls `raise_exception`.
    """
    try:
        import jinja2
    except ImportError as exc:
        raise ImportError(
            "Chat templates need jinja2: pip install 'pz-models[tokenizers]'"
        ) from exc
    try:
        return str(_compile(source).render(**variables))
    except jinja2.TemplateError as exc:
        raise ValueError(f"render_chat: the chat template failed: {exc}") from exc


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    # Templates come from checkpoints, so they run in the sandbox; blocks are trimmed as in
    # transformers, which decides what whitespace existing templates produce.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
