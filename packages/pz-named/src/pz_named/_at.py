"""The object behind `x.at[indexer]`: reads with options and functional updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from pz_named._indexing import get_by_name, get_by_position, options_for
from pz_named._updating import update_by_name, update_by_position

if TYPE_CHECKING:
    from pz_named.arrays import NamedArrayBase

__all__ = ["At", "IndexUpdateHelper"]


@dataclasses.dataclass(frozen=True, eq=False)
class IndexUpdateHelper:
    """An array and an indexer, waiting for what to do there.

    Attributes:
      array: The named array.
      indexer: A dict from names to indices, or a positional index.
    """

    array: Any
    indexer: Any

    def get(self, **options: Any) -> NamedArrayBase:
        """The values there.

        Args:
          **options: `mode` ("clip", "fill", "promise_in_bounds"), `fill_value`,
            `indices_are_sorted`, `unique_indices`, as in JAX. Without `mode`, integers that are
            known and out of range raise.

        Returns:
          The indexed array.
        """
        given = options_for("get", options, reading=True)
        if isinstance(self.indexer, dict):
            return get_by_name(self.array, self.indexer, given)
        return get_by_position(self.array, self.indexer, given)

    def _update(self, method: str, value: Any, options: dict[str, Any]) -> NamedArrayBase:
        given = options_for(method, options, reading=False)

        def update(array: Any, indexer: Any, new: Any) -> Any:
            return getattr(jnp.asarray(array).at[indexer], method)(new, **given)

        return self._carry_out(method, update, value, given)

    def _carry_out(
        self, method: str, update: Callable[..., Any], value: Any, given: dict[str, Any]
    ) -> NamedArrayBase:
        if isinstance(self.indexer, dict):
            return update_by_name(self.array, self.indexer, value, update, given)
        return update_by_position(self.array, self.indexer, value, update, given)

    def set(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Replaces the values there."""
        return self._update("set", value, options)

    def add(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Adds; repeated positions accumulate."""
        return self._update("add", value, options)

    def subtract(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Subtracts; repeated positions accumulate."""
        return self._update("subtract", value, options)

    def multiply(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Multiplies; repeated positions accumulate."""
        return self._update("multiply", value, options)

    def divide(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Divides; integers become floats."""
        return self._update("divide", value, options)

    def power(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Raises to a power."""
        return self._update("power", value, options)

    def min(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Takes the smaller of each pair."""
        return self._update("min", value, options)

    def max(self, value: Any, /, **options: Any) -> NamedArrayBase:
        """Takes the larger of each pair."""
        return self._update("max", value, options)

    mul = multiply
    sub = subtract
    div = divide

    def apply(self, function: Callable[[Any], Any], /, **options: Any) -> NamedArrayBase:
        """Applies an elementwise function to the values there."""
        given = options_for("apply", options, reading=False)

        def update(array: Any, indexer: Any, _: Any) -> Any:
            return jnp.asarray(array).at[indexer].apply(function, **given)

        return self._carry_out("apply", update, 0, given)


@dataclasses.dataclass(frozen=True, eq=False)
class At:
    """What `x.at` gives: it waits for an indexer in brackets."""

    array: Any

    def __getitem__(self, indexer: Any) -> IndexUpdateHelper:
        return IndexUpdateHelper(self.array, indexer)
