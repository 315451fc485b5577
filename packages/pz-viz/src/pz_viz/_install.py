"""Registers pz_viz with treescope and with the bottom wheels; `import pz_viz` calls it."""

from __future__ import annotations

import treescope
from treescope import type_registries

from pz_core import display_hook, selectors
from pz_core.struct import Struct
from pz_core.variables import AbstractVariable
from pz_named import shapecheck
from pz_named.named_axes import NamedArray, NamedArrayBase, NamedArrayView
from pz_viz import _arrays, _specs, _structs, _tree_style, repeated_siblings, selections

__all__ = ["install"]

HANDLERS = {
    Struct: _structs.handle_struct,
    AbstractVariable: _structs.handle_variable,
    NamedArrayBase: _arrays.handle_named_array,
    NamedArray: _arrays.handle_named_array,
    NamedArrayView: _arrays.handle_named_array,
    _arrays.DataInside: _arrays.handle_data_inside,
    shapecheck.ArraySpec: _specs.handle_array_spec,
    shapecheck.Wildcard: _specs.handle_wildcard,
    selectors.Selection: selections.handle_selection,
    list: repeated_siblings.handle_sequence,
    tuple: repeated_siblings.handle_sequence,
    dict: repeated_siblings.handle_dict,
}
WRAPPER_HOOKS = (_tree_style.style_the_root, _arrays.name_data_without_values)


def install() -> None:
    """Fills treescope's registries and renderer, and pz-core's hooks; again, it changes nothing.

    A handler that somebody registered for one of our classes before stays.
    """
    for kind, handler in HANDLERS.items():
        type_registries.TREESCOPE_HANDLER_REGISTRY.setdefault(kind, handler)
    adapter = _arrays.NamedArrayAdapter()
    for kind in (NamedArrayBase, NamedArray, NamedArrayView):
        type_registries.NDARRAY_ADAPTER_REGISTRY.setdefault(kind, adapter)
        type_registries.IMMUTABLE_TYPES_REGISTRY.setdefault(kind, True)
    type_registries.IMMUTABLE_TYPES_REGISTRY.setdefault(_arrays.DataInside, True)
    renderer = treescope.active_renderer.get()
    missing = [hook for hook in WRAPPER_HOOKS if hook not in renderer.wrapper_hooks]
    if missing:
        treescope.active_renderer.set_globally(renderer.extended_with(wrapper_hooks=missing))
    try:
        display_hook.selection_display()
    except ImportError:
        display_hook.register_selection_display(selections.SelectionViews())
