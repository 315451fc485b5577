"""Small models and texts that the tests draw."""

import dataclasses
from typing import Any

import jax.numpy as jnp

import pz_named as nx
from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import Parameter

# What strangers may put into a token, a label or an axis name.
HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "'; window.hacked=1; //",
    "</script><script>window.hacked=1</script>",
    "</style><script>window.hacked=1</script>",
    "{{window.hacked=1}}",
    "a\u202eb\u2066c",
    "nul\x00bell\x07esc\x1b[31m",
    "line\nbreak\ttab\u2028sep",
    "&lt;b&gt; &amp;",
    "lone\ud800surrogate",
    "javascript:window.hacked=1",
]


def static(**kwargs: Any) -> Any:
    """A dataclass field that is no pytree child."""
    return dataclasses.field(metadata={"pytree_node": False}, **kwargs)


@pytree_dataclass
class Span(Struct):
    """A callable-less struct with a static field."""

    lo: Any
    hi: Any
    unit: str = static(default="m")


@pytree_dataclass
class Empty(Struct):
    """No fields at all."""


@pytree_dataclass
class Hidden(Struct):
    """Fields that show in round-trip mode only, at both ends."""

    before: Any = dataclasses.field(default=0, repr=False)
    x: Any = 1
    after: Any = dataclasses.field(default=2, repr=False)


@pytree_dataclass
class Custom(Struct):
    """A constructor that takes something else than the fields."""

    doubled: Any

    def __init__(self, half: Any):
        self.doubled = 2 * half


@pytree_dataclass
class Colored(Struct):
    """Asks for whatever colour it holds."""

    color: Any = static(default="transparent")

    def treescope_color(self) -> Any:
        return self.color


@pytree_dataclass
class Collapsing(Struct):
    """A field that starts closed whatever the layout."""

    shape: Any = dataclasses.field(metadata={"treescope_always_collapse": True})


@pytree_dataclass
class Linear(Struct):
    """A layer: callable, one parameter."""

    weights: Any
    axes: tuple[str, ...] = static(default=("features",))

    def __call__(self, x: Any) -> Any:
        return x


@pytree_dataclass
class Chain(Struct):
    """A list of layers."""

    sublayers: list[Any]

    def treescope_color(self) -> tuple[str, str]:
        return ("#cdcdcd", "color-mix(in oklab, #cdcdcd 25%, white)")


@pytree_dataclass(has_implicitly_inherited_fields=True)
class Noted(Chain):
    """A chain that only has a name of its own."""


def linear(label: str, size: int = 2, value: float = 1.0) -> Linear:
    """A layer whose weights are all equal."""
    weights = nx.wrap(jnp.full((size, size), value)).tag("features", "features_out")
    return Linear(Parameter(label=label, value=weights))


def chain(count: int) -> Chain:
    """A chain of equal layers."""
    return Chain([linear(f"layer_{i}") for i in range(count)])
