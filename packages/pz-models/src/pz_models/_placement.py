"""Where on a mesh of devices each parameter goes, by the names of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["AxisRules", "Placement", "placement_on", "with_automatic_axes"]

AxisRules: TypeAlias = Mapping[Any, str | tuple[str, ...] | None]
"""For each axis name, the mesh axis or axes it is spread over; None keeps it whole."""

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
    mesh = _automatic(mesh)
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
    if not isinstance(old, NamedSharding) or (mesh := _automatic(old.mesh)) is old.mesh:
        return array
    sharding = NamedSharding(mesh, old.spec)
    placed: jax.Array = jax.device_put(array, sharding)
    return placed


def _automatic(mesh: Any) -> Any:
    """The mesh with `AxisType.Auto`; since jax 0.9 `make_mesh` makes explicit axes by default."""
    if not isinstance(mesh, Mesh) or all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def _sharding(label: str, axes: Mapping[str, int], mesh: Any, rules: AxisRules) -> NamedSharding:
    targets = [rules.get(name) for name in axes]
    used = [axis for t in targets if t for axis in ((t,) if isinstance(t, str) else t)]
    where = f"load: {label!r} with the named shape {dict(axes)}"
    if unknown := sorted(set(used) - set(mesh.axis_names)):
        raise ValueError(
            f"{where}: the rules {dict(rules)} name the mesh axis {unknown[0]!r}, but the mesh has"
            f" {dict(mesh.shape)}. Name one of those, or make a mesh that has it."
        )
    if len(set(used)) < len(used):
        raise ValueError(
            f"{where}: the rules {dict(rules)} spread two of its axes over one mesh axis. Drop one"
            " of the rules, or set it to None."
        )
    while targets and targets[-1] is None:  # the form in which compiled programs return it
        targets.pop()
    sharding = NamedSharding(mesh, PartitionSpec(*targets))  # type: ignore[no-untyped-call]
    try:
        sharding.shard_shape(tuple(axes.values()))
    except ValueError as exc:
        raise ValueError(
            f"{where}: the rules {dict(rules)} do not divide it over the mesh"
            f" {dict(mesh.shape)} ({exc}). Use a mesh whose axes divide it, or the rule None."
        ) from exc
    return sharding
