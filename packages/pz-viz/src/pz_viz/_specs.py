"""How array specs and wildcards of pz-named's shape checking are drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from treescope import dtype_util, rendering_parts

from pz_named import shapecheck
from pz_viz import _structs
from pz_viz._markup import visible

__all__ = ["handle_array_spec", "handle_wildcard"]

_text = rendering_parts.text
_SPEC_STYLE = "color:var(--pz-spec,#1b3e73)"
_VARIABLE_STYLE = "color:var(--pz-variable,#1bb2c3);font-style:italic"


def _styled(text: str, style: str) -> Any:
    return rendering_parts.custom_style(_text(text), style)


def _variable_name(name: Any) -> str:
    return (
        "/".join(visible(str(part)) for part in name)
        if isinstance(name, tuple)
        else visible(str(name))
    )


def _dimension(entry: Any) -> Any:
    """`4`, `{name}` or `*{name…}`."""
    if isinstance(entry, shapecheck.KnownDim):
        return _text(str(entry.size))
    if isinstance(entry, shapecheck.DimVar):
        return _styled(f"{{{_variable_name(entry.name)}}}", _VARIABLE_STYLE)
    if isinstance(entry, shapecheck.MultiDimVar):
        return _styled(f"*{{{_variable_name(entry.name)}…}}", _VARIABLE_STYLE)
    return _text(visible(str(entry)))


def _named_dimension(name: Any, entry: Any) -> Any:
    if isinstance(name, shapecheck.MultiDimVar):
        return _styled(f"**{{{_variable_name(name.name)}:…}}", _VARIABLE_STYLE)
    return rendering_parts.siblings(f"{visible(str(name))}:", _dimension(entry))


def _joined(parts: list[Any]) -> list[Any]:
    return [piece for i, part in enumerate(parts) for piece in ((", ", part) if i else (part,))]


def _dtype_name(dtype: Any) -> str:
    if dtype is np.generic:
        return "any"
    try:
        return str(dtype_util.get_dtype_name(np.dtype(dtype)))
    except TypeError:  # an abstract dtype, such as np.floating
        return visible(getattr(dtype, "__name__", str(dtype)))


def _spec_summary(spec: Any) -> Any:
    positional = [_dimension(entry) for entry in spec.shape]
    named = [_named_dimension(name, entry) for name, entry in spec.named_shape.items()]
    middle = ([" | "] if positional else ["| "]) if named else []
    return rendering_parts.custom_style(
        rendering_parts.siblings(
            f"<{type(spec).__name__} {_dtype_name(spec.dtype)}(",
            *_joined(positional),
            *middle,
            *_joined(named),
            ")>",
        ),
        _SPEC_STYLE,
    )


def handle_array_spec(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of `ArraySpec`: a summary when closed, its fields when open."""
    lines = [_structs.FieldLine(field.name, is_node=False) for field in dataclasses.fields(node)]
    values = [(line, getattr(node, line.name)) for line in lines]
    children = _structs.child_lines(values, set(), path, subtree_renderer)
    opened = rendering_parts.siblings(rendering_parts.maybe_qualified_type_name(type(node)), "(")
    return rendering_parts.build_custom_foldable_tree_node(
        label=rendering_parts.summarizable_condition(summary=_spec_summary(node), detail=opened),
        contents=rendering_parts.summarizable_condition(
            detail=rendering_parts.siblings(rendering_parts.indented_children(children), ")")
        ),
        path=path,
        expand_state=rendering_parts.ExpandState.COLLAPSED,
    )


def handle_wildcard(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of `Wildcard`: `*`, or its description in brackets."""
    del subtree_renderer
    described = node.description is not None
    short = f"<{visible(str(node.description))}>" if described else "*"
    long = rendering_parts.siblings(
        rendering_parts.maybe_qualified_type_name(type(node)),
        f"({visible(repr(node.description))})",
    )
    return rendering_parts.build_one_line_tree_node(
        rendering_parts.roundtrip_condition(
            roundtrip=long,
            not_roundtrip=_styled(short, f"{_SPEC_STYLE};font-style:italic"),
        ),
        path,
    )
