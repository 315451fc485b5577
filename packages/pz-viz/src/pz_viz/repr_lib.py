"""Treescope's stable helpers for `__treescope_repr__` methods (an alias module of Penzai)."""

from treescope.repr_lib import render_dictionary_wrapper as render_dictionary_wrapper
from treescope.repr_lib import render_enumlike_item as render_enumlike_item
from treescope.repr_lib import render_object_constructor as render_object_constructor

__all__ = ["render_dictionary_wrapper", "render_enumlike_item", "render_object_constructor"]
