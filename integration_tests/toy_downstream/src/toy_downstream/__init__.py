"""A library that edits its own configuration trees with Penzai's selectors."""

from __future__ import annotations

import pz_core


@pz_core.pytree_dataclass
class Layer(pz_core.Struct):
    """A layer of an imaginary library: a width and a rate."""

    width: int
    rate: float


def halve_rates(tree: object) -> object:
    """Returns `tree` with every layer's rate halved."""
    return pz_core.select(tree).at_instances_of(Layer).at(lambda layer: layer.rate).apply(_half)


def _half(rate: float) -> float:
    return rate / 2
