"""Dropout, switched on and off by exchanging layers.

    model = select(model).at_instances_of(StochasticDropout).apply(lambda layer: layer.disable())

`pz_nn.training_mode.set_training(model, False)` does that for a whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_named.named_axes import NamedArrayBase, is_namedarray
from pz_nn._axes import as_names, broadcast_against, reordered, with_names
from pz_nn._side_inputs import required
from pz_nn.grouping import Identity
from pz_nn.layer import Layer

__all__ = ["DisabledDropout", "StochasticDropout", "maybe_dropout"]


@pytree_dataclass(post_init_may_rerun=True)
class StochasticDropout(Layer):
    """Sets each entry to 0 with probability p and divides the others by 1 - p.

    Attributes:
        drop_rate: p, from 0 to 1.
        share_across_axes: Axes along which one decision holds for all entries. Names that the input
            lacks are ignored.
        random_stream_input_name: Name of the side input with the random stream; each call takes exactly
            one key from it.

    The mask depends on names and sizes of axes, not on the order in which they are stored.

    Raises:
        ValueError: If the rate is a number that is no probability; arrays are not looked into.

    Reference: Srivastava et al., Dropout (2014).
    """

    drop_rate: float | jax.Array = dataclasses.field(metadata={"pytree_node": "unless_number"})
    share_across_axes: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"pytree_node": False}
    )
    random_stream_input_name: str = dataclasses.field(
        default="random_stream", metadata={"pytree_node": False}
    )

    def __post_init__(self) -> None:
        _check_rate(self.drop_rate, "StochasticDropout")
        object.__setattr__(self, "share_across_axes", as_names(self.share_across_axes))

    def __call__(self, value: NamedArrayBase, /, **side_inputs: Any) -> NamedArrayBase:
        """Drops entries.

        Args:
            value: Named array.
            **side_inputs: The random stream.

        Returns:
            Array of the same shape; axes without a mask of their own come last.

        Raises:
            KeyError: If the random stream is missing.
            TypeError: If the input is no named array.
        """
        stream = required(side_inputs, self.random_stream_input_name, "StochasticDropout")
        if not is_namedarray(value):
            raise TypeError(
                f"StochasticDropout: the input must be a named array, but is a {type(value).__name__}. "
                'Name its axes first: `wrap(array, "batch", "features")`.'
            )
        mask_key = stream.next_key()
        prefix = value.with_positional_prefix()
        masked = [name for name in prefix.named_axes if name not in self.share_across_axes]
        shared = [name for name in prefix.named_axes if name in self.share_across_axes]
        positional = [object() for _ in prefix.positional_shape]  # private names
        names = (*positional, *prefix.named_axes)
        order = (*positional, *masked, *shared)
        sizes = dict(zip(names, prefix.data_array.shape, strict=True))
        canonical = (
            *positional,
            *sorted(masked, key=lambda name: (type(name).__name__, str(name))),
        )
        dropped = jax.random.bernoulli(
            mask_key, self.drop_rate, tuple(sizes[name] for name in canonical)
        )
        data = reordered(names, prefix.data_array, order)
        kept = data / _nonzero(1.0 - self.drop_rate)
        result = jnp.where(broadcast_against(canonical, dropped, order), 0, kept)
        return with_names((*masked, *shared), result)

    def disable(self) -> DisabledDropout:
        """The disabled form of this layer."""
        return DisabledDropout(
            self.drop_rate, self.share_across_axes, self.random_stream_input_name
        )


def _check_rate(rate: Any, layer: str) -> None:
    # NaN fails the comparison too.
    if isinstance(rate, float | int | np.number) and not 0 <= rate <= 1:
        raise ValueError(
            f"{layer}: drop_rate is the probability to drop an entry and must be from 0 to 1, got "
            f"{rate!r}. Give 0.1, say, to drop one entry in ten, or `maybe_dropout(None)` for none."
        )


def _nonzero(keep_rate: Any) -> Any:
    """1 in place of 0: with a rate of 1 every entry is dropped, and x / 0 would make gradients NaN."""
    if isinstance(keep_rate, float | int):
        return keep_rate or 1.0
    return jnp.where(keep_rate == 0, 1, keep_rate)


@pytree_dataclass(post_init_may_rerun=True)
class DisabledDropout(Identity):
    """Dropout that does nothing and remembers its settings.

    Attributes:
        drop_rate: Rate once enabled.
        share_across_axes: Axes that share decisions once enabled.
        random_stream_input_name: Side input once enabled; not read here.
    """

    drop_rate: float | jax.Array = dataclasses.field(metadata={"pytree_node": "unless_number"})
    share_across_axes: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    random_stream_input_name: str = dataclasses.field(
        default="random_stream", metadata={"pytree_node": False}
    )

    def __post_init__(self) -> None:
        _check_rate(self.drop_rate, "DisabledDropout")
        object.__setattr__(self, "share_across_axes", as_names(self.share_across_axes))

    def enable(self) -> StochasticDropout:
        """The stochastic form of this layer."""
        return StochasticDropout(
            self.drop_rate, self.share_across_axes, self.random_stream_input_name
        )


def maybe_dropout(
    drop_rate: float | None,
    share_across_axes: str | Sequence[str] = (),
    random_stream_input_name: str = "random_stream",
) -> StochasticDropout | DisabledDropout:
    """Makes a dropout layer, disabled if there is no rate.

    Args:
        drop_rate: Rate (0.0 included), or None for none.
        share_across_axes: Axes along which one decision holds.
        random_stream_input_name: Name of the side input with the random stream.

    Returns:
        A `StochasticDropout`, or a `DisabledDropout` of rate 0 if `drop_rate` is None.
    """
    axes = as_names(share_across_axes)
    if drop_rate is None:
        return DisabledDropout(0.0, axes, random_stream_input_name)
    return StochasticDropout(drop_rate, axes, random_stream_input_name)
