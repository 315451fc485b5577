"""How structs and bound variables are drawn: as constructor calls, one field per line.

The handlers sit in treescope's registry (`_install.py`); treescope calls them with the node, its
path and a function that renders a child.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from treescope import dataclass_util, layout_algorithms, rendering_parts

from pz_core.struct import Struct, is_pytree_dataclass_type, is_pytree_node_field
from pz_viz import aliases, repeated_siblings
from pz_viz._markup import css_color_or_none

__all__ = ["FieldLine", "child_lines", "handle_struct", "handle_variable", "role_note"]

_NODE_FIELD_STYLE = "font-style:italic;color:var(--pz-field,#00225f)"

_LEVELS_THAT_ALWAYS_FIT = 5
# Laying out and writing a tree takes up to four times the stack that building it takes.
_STACK_SHARE = 0.18

LONGEST_LITERAL = 60
MOST_LITERAL_ITEMS = 8

_LITERAL_COLORS: dict[Any, str | None] = {
    str: "color:var(--pz-string,#a31515)",
    int: "color:var(--pz-number,#098156)",
    float: "color:var(--pz-number,#098156)",
    bool: "color:var(--pz-keyword,#0000ff)",
    type(None): "color:var(--pz-keyword,#0000ff)",
    tuple: None,
}

_text = rendering_parts.text
_fold = rendering_parts.fold_condition
_COMMA = rendering_parts.siblings(",", _fold(collapsed=_text(" ")))
_LAST_COMMA = _fold(expanded=_text(","))
_COMMA_BEFORE = _fold(collapsed=_text(", "))


@dataclasses.dataclass(frozen=True)
class FieldLine:
    """One field as it is about to be drawn.

    Attributes:
      name: The field's name.
      is_node: Whether it is a pytree child.
      hidden: Whether it shows in round-trip mode only.
      always_collapse: Whether it starts closed whatever the layout.
    """

    name: str
    is_node: bool = True
    hidden: bool = False
    always_collapse: bool = False


def _field_lines(cls: type) -> list[FieldLine]:
    return [
        FieldLine(
            field.name,
            bool(is_pytree_node_field(field)),
            not field.repr,
            bool(field.metadata.get("treescope_always_collapse", False)),
        )
        for field in dataclasses.fields(cls)
    ]


def _stack_depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


@dataclasses.dataclass
class _Progress:
    """How far the drawing of one outermost node has come.

    Attributes:
      level: How many nodes are around the present one, itself included.
      drawn: How many nodes have been drawn.
      stack: Python frames around the outermost node.
    """

    level: int = 0
    drawn: int = 0
    stack: int = dataclasses.field(default_factory=lambda: _stack_depth())

    def limit_reached(self) -> str | None:
        """Why the present node is not drawn; None if it is."""
        limits = repeated_siblings.tree_limits()
        if self.level > limits.levels:
            return f"more than {limits.levels} levels deep"
        if self.level >= _LEVELS_THAT_ALWAYS_FIT:
            free = sys.getrecursionlimit() - self.stack
            if _stack_depth() - self.stack > free * _STACK_SHARE:
                return "deeper than Python's stack allows"
        if limits.run is not None and self.drawn > limits.nodes:
            return f"more than {limits.nodes:_} nodes in one display"
        return None


_progress: contextvars.ContextVar[_Progress | None] = contextvars.ContextVar(
    "pz_viz_progress", default=None
)


@contextlib.contextmanager
def _one_more_node() -> Iterator[_Progress]:
    outer = _progress.get()
    progress = _Progress() if outer is None else outer
    token = _progress.set(progress)
    progress.level += 1
    progress.drawn += 1
    try:
        yield progress
    finally:
        progress.level -= 1
        _progress.reset(token)


def color_and_pattern(node: Any) -> tuple[str | None, str | None]:
    """The fill and pattern that `node.treescope_color()` asks for; None for transparent."""
    asked = node.treescope_color()
    parts = asked if isinstance(asked, tuple) and len(asked) == 2 else (asked,)
    colors = [css_color_or_none(part) for part in parts]
    if None in colors:
        warnings.warn(
            f"{type(node).__name__}.treescope_color() returned {asked!r}, which is neither a CSS "
            "colour nor a (border, fill) pair of them; the node is drawn without a colour.",
            stacklevel=2,
        )
        return None, None
    if colors == ["transparent"]:
        return None, None
    if len(colors) == 1:
        return colors[0], None
    return colors[0], f"linear-gradient({colors[1]},{colors[1]})"


@functools.lru_cache(maxsize=4096)
def _class_with_a_role(cls: type) -> str | None:
    """The name of the concrete class to which `cls` only gives a role; None for any other class.

    `class TransformerBlock(Sequential)` adds a name and no field, so a reader wants to know that it
    is a `Sequential`.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    kind = None
    for base in cls.__mro__[1:]:
        if not is_pytree_dataclass_type(base) or inspect.isabstract(base):
            continue
        if [field.name for field in dataclasses.fields(base)] == names:
            kind = base.__name__
    return kind


def role_note(node: Any) -> Any | None:
    """The grey note after the opening parenthesis: of what class the node is a named role."""
    kind = _class_with_a_role(type(node)) if isinstance(node, Struct) else None
    return None if kind is None else rendering_parts.comment_color(_text(f" # {kind}"))


@functools.lru_cache(maxsize=4096)
def _literal_of(kind: Any, text: str) -> Any:
    """The part of a literal; immutable, so every place where it stands may share it."""
    color = _LITERAL_COLORS[kind]
    return _text(text) if color is None else rendering_parts.custom_style(_text(text), color)


def _literal(value: Any) -> Any | None:
    """A small literal as one part; None for anything else.

    It has no button that copies its path: nothing can be selected in a static field.
    """
    kind: Any = type(value)
    if kind in _LITERAL_COLORS and kind is not tuple:
        text = repr(value)
        return _literal_of(kind, text) if len(text) <= LONGEST_LITERAL else None
    if kind is dict and not value:
        return _literal_of(tuple, "{}")
    if kind is not tuple or len(value) > MOST_LITERAL_ITEMS:
        return None
    parts = [_literal(item) for item in value]
    if None in parts:
        return None
    comma = _literal_of(tuple, ", ")
    inner = [piece for i, part in enumerate(parts) for piece in ((comma, part) if i else (part,))]
    return rendering_parts.siblings("(", *inner, ",)" if len(parts) == 1 else ")")


def child_lines(
    values: Sequence[tuple[FieldLine, Any]], missing: set[str], path: str | None, render: Any
) -> list[Any]:
    """The lines between the parentheses, with commas right in every mode."""
    plain = not missing and not any(line.hidden for line, _ in values)
    lines, anything_shown, anything_at_all = [], False, False
    for i, (field, value) in enumerate(values):
        name = _text(f"{field.name}=")
        if field.is_node:
            name = rendering_parts.custom_style(name, _NODE_FIELD_STYLE)
        if field.name in missing:
            note = f"# {field.name} is missing,"
            lines.append(_fold(expanded=rendering_parts.comment_color(_text(note))))
            continue
        child_path = None if path is None else f"{path}.{field.name}"
        literal = None if field.is_node else _literal(value)
        pieces = [name, render(value, path=child_path) if literal is None else literal]
        if plain:
            pieces.append(_COMMA if i < len(values) - 1 else _LAST_COMMA)
        else:
            if anything_shown:
                pieces.insert(0, _COMMA_BEFORE)
            elif anything_at_all:  # all fields before are hidden ones
                pieces.insert(0, rendering_parts.roundtrip_condition(roundtrip=_COMMA_BEFORE))
            pieces.append(_LAST_COMMA)
        line = rendering_parts.build_full_line_with_annotations(*pieces)
        if field.always_collapse:
            layout_algorithms.expand_to_depth(line, 0)
        if field.hidden:
            line = rendering_parts.roundtrip_condition(roundtrip=line)
        lines.append(line)
        anything_at_all = True
        anything_shown = anything_shown or not field.hidden
    return lines


def _constructor_node(
    node: Any,
    values: Sequence[tuple[FieldLine, Any]],
    path: str | None,
    render: Any,
    *,
    prefix: Any,
    suffix: Any,
) -> Any:
    """A foldable `Name(field=value, ...)`, coloured and noted as the node asks."""
    missing = {field.name for field, _ in values if not hasattr(node, field.name)}
    fill, pattern = color_and_pattern(node)
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=prefix,
        children=child_lines(values, missing, path, render),
        suffix=suffix,
        path=path,
        background_color=fill,
        background_pattern=pattern,
        first_line_annotation=role_note(node),
        child_type_single_and_plural=("field", "fields"),
    )


def _not_drawn(node: Any, reason: str) -> Any:
    return rendering_parts.build_one_line_tree_node(
        rendering_parts.abbreviation_color(_text(f"<{type(node).__name__}: {reason}, not drawn>"))
    )


def handle_struct(node: Struct, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of every struct that has no nearer one."""
    if not dataclasses.is_dataclass(node):
        return NotImplemented
    aliases.add_umbrella_names()
    with _one_more_node() as progress:
        reason = progress.limit_reached()
        if reason is not None:
            return _not_drawn(node, reason)
        cls = type(node)
        prefix = [rendering_parts.maybe_qualified_type_name(cls)]
        if not dataclass_util.init_takes_fields(cls):
            made = rendering_parts.roundtrip_condition(roundtrip=_text(".from_attributes"))
            prefix.append(made)
        return _constructor_node(
            node,
            [(line, getattr(node, line.name, None)) for line in _field_lines(cls)],
            path,
            subtree_renderer,
            prefix=rendering_parts.siblings(*prefix, "("),
            suffix=")",
        )


def handle_variable(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of bound variables, which no constructor call can restore."""
    only_roundtrip = rendering_parts.roundtrip_condition
    with _one_more_node() as progress:
        reason = progress.limit_reached()
        if reason is not None:
            return _not_drawn(node, reason)
        metadata = node.metadata
        values = {
            "label": node.label,
            "value": node.value,
            # A copy: where a variable is shared, treescope marks the variable, and that is enough.
            "metadata": dict(metadata) if type(metadata) is dict else metadata,
        }
        return _constructor_node(
            node,
            [(FieldLine(name, is_node=False), value) for name, value in values.items()],
            path,
            subtree_renderer,
            prefix=rendering_parts.siblings(
                only_roundtrip(roundtrip=_text("<")),
                rendering_parts.maybe_qualified_type_name(type(node)),
                "(",
            ),
            suffix=rendering_parts.siblings(")", only_roundtrip(roundtrip=_text(">"))),
        )
