"""Colours of layers. Only CSS text: nothing here knows how layers are drawn."""

from __future__ import annotations

from typing import Any

from pz_core.colors import color_from_string

GREY = "#cdcdcd"
LINEAR = "#eba875"
BIAS = "#65cfbc"

ColorPair = tuple[str, str]


def tinted(color: str) -> ColorPair:
    """A border colour and the same as a light fill, for layers that only hold others."""
    return color, f"color-mix(in oklab, {color} 25%, white)"


def class_color(layer: Any) -> str:
    """The colour that every instance of a class has."""
    return color_from_string(f"{type(layer).__module__}.{type(layer).__qualname__}")
