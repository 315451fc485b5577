"""From axis names to the axes of a mesh of devices, checked.

A rule says over which mesh axis an axis name is spread; whatever places arrays by name asks here:

    mesh = automatic_mesh(jax.make_mesh((2, 4), ("data", "model")))
    spec = mesh_axes_for([("batch", 8), ("neurons", 12)], "x", mesh, {"neurons": "model"})
    sharding = NamedSharding(mesh, PartitionSpec(*spec))     # (None, "model")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jax.sharding import AxisType, Mesh

__all__ = ["AxisRules", "automatic_mesh", "mesh_axes_for"]

AxisRules: TypeAlias = Mapping[Any, str | tuple[str, ...] | None]
"""For each axis name, the mesh axis or axes it is spread over; None keeps it whole."""


def automatic_mesh(mesh: Any) -> Any:
    """The mesh with `AxisType.Auto`: layers leave it to the compiler how results are spread.

    Since jax 0.9 `jax.make_mesh` makes explicit axes by default, which ask for that in each operation.
    """
    if not isinstance(mesh, Mesh) or all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def mesh_axes_for(
    axes: Sequence[tuple[Any, int]], where: str, mesh: Any, rules: AxisRules
) -> list[str | tuple[str, ...] | None]:
    """The mesh axes of each axis of one array, checked.

    Args:
      axes: Name and size of each axis of the data, in its order; None names a positional one.
      where: What the array is, for errors.
      mesh: The mesh of devices.
      rules: From axis names to mesh axes; axes without a rule are kept whole.

    Returns:
      One entry per axis, for a `PartitionSpec`.

    Raises:
      ValueError: If a mesh axis is unknown or used twice, or does not divide an axis.
    """
    users: dict[str, Any] = {}
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in axes:
        target = None if name is None else rules.get(name)
        onto = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        for axis in onto:
            if axis not in mesh.shape:
                raise ValueError(
                    f"sharding {where}: the rule {name!r}: {target!r} names the mesh axis "
                    f"{axis!r}, but the mesh has {dict(mesh.shape)}. Name one of those, or make "
                    "a mesh that has it."
                )
            if axis in users:
                raise ValueError(
                    f"sharding {where}: the axes {users[axis]!r} and {name!r} are both spread "
                    f"over the mesh axis {axis!r}, which one array can use only once (rules "
                    f"{dict(rules)}). Drop one of the rules, or set it to None."
                )
            users[axis] = name
        parts = math.prod(mesh.shape[axis] for axis in onto)
        if size % parts:
            raise ValueError(
                f"sharding {where}: the axis {name!r} has size {size}, which the "
                f"{parts} devices along {target!r} do not divide (mesh {dict(mesh.shape)}). Use "
                f"a mesh whose axis divides it, or the rule {name!r}: None."
            )
        spec.append(target if target is None or isinstance(target, str) else onto)
    return spec
