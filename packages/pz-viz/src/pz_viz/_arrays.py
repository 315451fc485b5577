"""How named arrays are drawn, and the adapter through which treescope pictures their data."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from treescope import (
    dtype_util,
    lowering,
    ndarray_adapters,
    rendering_parts,
    type_registries,
)
from treescope.external import jax_support, numpy_support

from pz_named.named_axes import NamedArray, NamedArrayBase
from pz_viz._lazy_text import LazyText
from pz_viz._markup import visible
from pz_viz._statistics import statistics_text, values_text
from pz_viz.host_copies import unreadable_reason

__all__ = [
    "DataInside",
    "NamedArrayAdapter",
    "handle_data_inside",
    "handle_named_array",
    "name_data_without_values",
    "summary_and_content",
]

MOST_REPR_ELEMENTS = 100
"""A positional array of at most this many elements may stand for itself in the summary."""

_text = rendering_parts.text
_fold = rendering_parts.fold_condition
_COMMA = rendering_parts.siblings(",", _fold(collapsed=_text(" ")))
_LAST_COMMA = _fold(expanded=_text(","))


def content_name(data: Any) -> str:
    """What a named array wraps: `jax.Array`, `numpy.ndarray`, or the class's name."""
    if isinstance(data, np.ndarray):
        return "numpy.ndarray"
    if isinstance(data, jax.Array) and not isinstance(data, jax.core.Tracer):
        return "jax.Array"
    return type(data).__name__


def shape_text(array: NamedArrayBase) -> str:
    """`float32(3 | a:2)`: dtype, positional sizes, sizes by name."""
    positional = ", ".join(map(str, array.positional_shape))
    named = ", ".join(f"{visible(str(name))}:{size}" for name, size in array.named_shape.items())
    middle = " |" if positional else ("|" if named else "")
    tail = f" {named}" if named else ""
    try:
        dtype = dtype_util.get_dtype_name(array.dtype)
    except (TypeError, AttributeError):
        dtype = visible(str(getattr(array, "dtype", "?")))
    return f"{dtype}({positional}{middle}{tail})"


def _own_repr(array: NamedArrayBase) -> str | None:
    """The repr of a small positional array, if it fits one line."""
    data = array.data_array
    if not isinstance(array, NamedArray) or array.named_axes or unreadable_reason(data):
        return None
    if data.size > MOST_REPR_ELEMENTS:  # looked at first: repr copies everything
        return None
    text = repr(data)
    return None if "\n" in text else text


def summary_and_content(
    array: NamedArrayBase,
    inspect_device_data: bool = True,
    statistics: Callable[[], str] | None = None,
) -> tuple[str, str]:
    """The summary of a valid named array and the name of what it wraps.

    Args:
      array: A named array for which `check_valid` passes.
      inspect_device_data: Whether the data may be read.
      statistics: Computes the statistics; None reads the data.

    Returns:
      For example `("float32(| a:2) ≈0.0 ±1.0 …", "jax.Array")`.
    """
    content = content_name(array.data_array)
    if inspect_device_data:
        text = _own_repr(array)
        if text is not None:
            return text, content
        told = statistics_text(array.data_array) if statistics is None else statistics()
        return shape_text(array) + told, content
    return shape_text(array), content


@dataclasses.dataclass(frozen=True, eq=False)
class DataInside:
    """The data of a named array on its way through treescope's renderer.

    Attributes:
      data: The jax array.
      statistics: Computes what the summary says of it, once for both places where that stands.
    """

    data: jax.Array
    statistics: Callable[[], str]


def handle_data_inside(node: DataInside, path: str | None, subtree_renderer: Any) -> Any:
    """Draws as treescope draws a jax array, with values that are printed only where they show."""
    handler = type_registries.lookup_treescope_handler_for_type(type(node.data))
    if handler is not jax_support.render_jax_arrays or node.data.size == 0:
        return subtree_renderer(node.data, path=path)
    brackets = (_fold(collapsed=_text("<"), expanded=_text("# ")), _fold(collapsed=_text(">")))
    name = f"jax.Array {dtype_util.get_dtype_name(node.data.dtype)}{node.data.shape!r}"

    def line(statistics: str) -> Any:
        words = rendering_parts.siblings(brackets[0], name, statistics, brackets[1])
        return rendering_parts.abbreviation_color(
            rendering_parts.comment_color_when_expanded(words)
        )

    return rendering_parts.build_custom_foldable_tree_node(
        label=lowering.maybe_defer_rendering(
            main_thunk=lambda _: line(node.statistics()), placeholder_thunk=lambda: line("")
        ),
        contents=_fold(
            expanded=rendering_parts.indented_children([LazyText(lambda: values_text(node.data))])
        ),
        path=path,
        expand_state=rendering_parts.ExpandState.COLLAPSED,
    )


def _field_children(
    array: NamedArrayBase, statistics: Callable[[], str], path: str | None, render: Any
) -> list[Any]:
    style = "font-style:italic;color:var(--pz-field,#00225f)"
    data_path = None if path is None else f"{path}.data_array"
    data = array.data_array
    if content_name(data) == "jax.Array" and not data.is_deleted():
        data = DataInside(data, statistics)
    name = rendering_parts.custom_style(_text("data_array="), style)
    if isinstance(array, NamedArray):
        sizes = ", ".join(f"{visible(repr(k))}: {v}" for k, v in array.named_axes.items())
        axes = rendering_parts.siblings(
            "named_axes=",
            rendering_parts.maybe_qualified_type_name(collections.OrderedDict),
            f"({{{sizes}}})",
        )
        fields = [axes]
    else:
        names = ("data_shape", "data_axis_for_logical_axis", "data_axis_for_name")
        fields = [_text(f"{name}={visible(repr(getattr(array, name)))}") for name in names]
    drawn = render(data, path=data_path)
    last = rendering_parts.build_full_line_with_annotations(name, drawn, _LAST_COMMA)
    return [*(rendering_parts.siblings(field, _COMMA) for field in fields), last]


def _label(array: NamedArrayBase, summary: str, content: str) -> Any:
    """The first line: a bracketed summary when closed, a constructor with a comment when open."""
    dtype_and_shape = shape_text(array)
    rest = summary.removeprefix(dtype_and_shape)
    shortened = [_text(dtype_and_shape if rest != summary else summary)]
    if rest and rest != summary:
        shortened.append(rendering_parts.abbreviatable(_text(rest), rendering_parts.empty_part()))
    wrapping = rendering_parts.abbreviatable(
        _text(f" (wrapping {content})"), rendering_parts.empty_part()
    )
    closed = rendering_parts.abbreviation_color(
        rendering_parts.siblings(f"<{type(array).__name__} ", *shortened, wrapping, ">")
    )
    opened = rendering_parts.siblings(
        rendering_parts.maybe_qualified_type_name(type(array)),
        "(",
        _fold(expanded=rendering_parts.comment_color(_text(f"  # {summary}"))),
    )
    return rendering_parts.summarizable_condition(summary=closed, detail=opened)


def handle_named_array(node: NamedArrayBase, path: str | None, subtree_renderer: Any) -> Any:
    """Treescope's handler of named arrays; invalid ones are left to its dataclass handler."""
    try:
        node.check_valid()
    except (ValueError, AttributeError):  # after a tree map the leaf may be anything
        return NotImplemented
    statistics = functools.cache(functools.partial(statistics_text, node.data_array))
    children = _field_children(node, statistics, path, subtree_renderer)
    # The summary reads the data, so that a notebook gets the structure first and this later.
    label = lowering.maybe_defer_rendering(
        main_thunk=lambda _: _label(node, *summary_and_content(node, True, statistics)),
        placeholder_thunk=lambda: rendering_parts.deferred_placeholder_style(
            _label(node, *summary_and_content(node, inspect_device_data=False))
        ),
    )
    return rendering_parts.build_custom_foldable_tree_node(
        label=label,
        contents=rendering_parts.summarizable_condition(
            detail=rendering_parts.siblings(rendering_parts.indented_children(children), ")")
        ),
        path=path,
        expand_state=rendering_parts.ExpandState.COLLAPSED,
    )


def name_data_without_values(node: Any, path: str | None, node_renderer: Any) -> Any:
    """Wrapper hook: says of a bare jax array that it is empty or on several hosts.

    Treescope prints such arrays without a word on it; of tracers and deleted ones it says what they
    are.
    """
    del node_renderer
    if not isinstance(node, jax.Array):
        return NotImplemented
    reason = unreadable_reason(node)
    if reason != "multi-host" and (reason is not None or node.size):
        return NotImplemented
    name = f"jax.Array {dtype_util.get_dtype_name(node.dtype)}{node.shape!r}"
    why = statistics_text(node) or " empty"
    words = rendering_parts.abbreviation_color(_text(f"<{name}{why}>"))
    return rendering_parts.build_one_line_tree_node(words, path)


class NamedArrayAdapter(ndarray_adapters.NDArrayAdapter):  # type: ignore[misc]  # untyped base
    """Lets `treescope.render_array` and the array autovisualizer read named arrays."""

    def _data_adapter(self, data: Any) -> Any:
        if isinstance(data, np.ndarray):
            return numpy_support.NumpyArrayAdapter()
        return jax_support.JAXArrayAdapter()

    def get_axis_info_for_array_data(self, array: NamedArrayBase) -> tuple[Any, ...]:
        """One entry per axis of the data, in the data's order."""
        view = array.as_namedarrayview()
        infos: list[Any] = [None] * len(view.data_shape)
        for name, axis in view.data_axis_for_name.items():
            infos[axis] = ndarray_adapters.NamedPositionlessAxisInfo(name, view.data_shape[axis])
        for i, axis in enumerate(view.data_axis_for_logical_axis):
            infos[axis] = ndarray_adapters.PositionalAxisInfo(i, view.data_shape[axis])
        return tuple(infos)

    def get_array_data_with_truncation(
        self,
        array: NamedArrayBase,
        mask: Any | None,
        edge_items_per_axis: tuple[int | None, ...],
    ) -> tuple[Any, Any]:
        """The edges of the data and of the mask, as numpy arrays in the data's order."""
        view = array.as_namedarrayview()
        aligned = None if mask is None else _aligned_mask(view, mask)
        adapter = self._data_adapter(view.data_array)
        return adapter.get_array_data_with_truncation(  # type: ignore[no-any-return]
            view.data_array, aligned, edge_items_per_axis
        )

    def get_array_summary(self, array: NamedArrayBase, fast: bool) -> str:
        """The one-line summary, without the angle brackets that treescope adds."""
        summary, content = summary_and_content(array, inspect_device_data=not fast)
        return f"{type(array).__name__} {summary} (wrapping {content})"

    def get_numpy_dtype(self, array: NamedArrayBase) -> Any | None:
        """The dtype if numpy knows it; random keys have none and are never pictured."""
        return array.dtype if isinstance(array.dtype, np.dtype) else None

    def get_sharding_info_for_array_data(self, array: NamedArrayBase) -> Any | None:
        """How the data is laid out on devices; None for data that is not a readable jax array."""
        data = array.data_array
        if not isinstance(data, jax.Array) or unreadable_reason(data) in ("tracer", "deleted"):
            return None
        return self._data_adapter(data).get_sharding_info_for_array_data(data)

    def should_autovisualize(self, array: NamedArrayBase) -> bool:
        """Whether there is valid data to read."""
        try:
            array.check_valid()
        except (ValueError, AttributeError):
            return False
        return unreadable_reason(array.data_array) is None and array.data_array.size > 0


def _aligned_mask(view: Any, mask: Any) -> Any:
    """The mask with one axis per axis of the view's data, in that order, size 1 where it lacks one.

    Raises:
      ValueError: If the mask has names that the array lacks, or a positional shape that does not
        broadcast into the array's.
    """
    if isinstance(mask, NamedArrayBase):
        mask_view = mask.as_namedarrayview()
        data = np.asarray(mask_view.data_array)
        name_axes = mask_view.data_axis_for_name
        logical_axes = mask_view.data_axis_for_logical_axis
    else:
        data, name_axes = np.asarray(mask), {}
        logical_axes = tuple(range(data.ndim))
    extra = [name for name in name_axes if name not in view.data_axis_for_name]
    if extra:
        raise ValueError(
            f"valid_mask: it has the axes {extra}, which the array lacks (its names: "
            f"{list(view.data_axis_for_name)}). Reduce the mask over them first."
        )
    mask_shape = tuple(data.shape[axis] for axis in logical_axes)
    array_shape = tuple(view.data_shape[axis] for axis in view.data_axis_for_logical_axis)
    try:
        fits = np.broadcast_shapes(mask_shape, array_shape) == array_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"valid_mask: its positional shape {mask_shape} does not broadcast into the array's "
            f"positional shape {array_shape}. Give the mask the array's axes, or size 1."
        )
    source_of = {view.data_axis_for_name[name]: axis for name, axis in name_axes.items()}
    offset = len(view.data_axis_for_logical_axis) - len(logical_axes)
    for i, axis in enumerate(logical_axes):
        source_of[view.data_axis_for_logical_axis[offset + i]] = axis
    targets = sorted(source_of)
    aligned = np.transpose(data, [source_of[axis] for axis in targets])
    absent = [axis for axis in range(len(view.data_shape)) if axis not in source_of]
    return np.expand_dims(aligned, absent)
