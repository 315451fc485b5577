"""Where on a mesh of devices each parameter goes, by the names of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pz_named.mesh_axes import AxisRules, automatic_mesh, mesh_axes_for

__all__ = ["Placement", "placement_on", "with_automatic_axes"]

Placement: TypeAlias = Callable[[str, tuple[str, ...], np.ndarray], jax.Array]
"""Called as `place(label, axis_names, array)`, puts a finished array on its devices."""


def placement_on(
    mesh: Any, rules: AxisRules | None, parameters: Mapping[str, Mapping[str, int]]
) -> Placement:
    """Puts each parameter straight onto its shards; every rule is checked before the first.

    Args:
      mesh: The mesh of devices, whose axes are used as `AxisType.Auto` whatever they are: layers
        leave it to the compiler how what they compute is spread.
      rules: For each axis name the mesh axis or axes it is spread over; axes without a rule are
        kept whole on every device. None means that axis names are the names of mesh axes.
      parameters: Label -> named shape of what will be placed.

    Raises:
      ValueError: A rule names an unknown mesh axis, two axes of one parameter share a mesh axis, or
        a size is not divisible.
    """
    mesh = automatic_mesh(mesh)
    rules = {name: name for name in mesh.axis_names} if rules is None else rules
    shardings = {label: _sharding(label, axes, mesh, rules) for label, axes in parameters.items()}

    def place(label: str, names: tuple[str, ...], array: np.ndarray) -> jax.Array:
        # Unlike `device_put`, this never compares values between processes.
        placed: jax.Array = jax.make_array_from_callback(
            array.shape, shardings[label], lambda index: array[index]
        )
        return placed

    return place


def with_automatic_axes(array: jax.Array) -> jax.Array:
    """The same array on the same shards, of a mesh whose axes are `AxisType.Auto`."""
    old = array.sharding
    if not isinstance(old, NamedSharding) or (mesh := automatic_mesh(old.mesh)) is old.mesh:
        return array
    sharding = NamedSharding(mesh, old.spec)
    placed: jax.Array = jax.device_put(array, sharding)
    return placed


def _sharding(label: str, axes: Mapping[str, int], mesh: Any, rules: AxisRules) -> NamedSharding:
    where = f"{label!r} with the named shape {dict(axes)}"
    targets = mesh_axes_for(list(axes.items()), where, mesh, rules)
    while targets and targets[-1] is None:  # the form in which compiled programs return it
        targets.pop()
    return NamedSharding(mesh, PartitionSpec(*targets))  # type: ignore[no-untyped-call]
