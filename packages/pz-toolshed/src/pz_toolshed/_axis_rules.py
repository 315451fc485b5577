"""Rules from axis names to mesh axes, and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jax.sharding import AxisType, Mesh

__all__ = ["AxisRules", "automatic_mesh", "mesh_axes_for", "transformer_rules"]

AxisRules: TypeAlias = Mapping[Any, str | tuple[str, ...] | None]
"""For each axis name, the mesh axis or axes it is spread over; None keeps it whole."""


def transformer_rules(
    *,
    data: str | tuple[str, ...] | None = None,
    tensor: str | tuple[str, ...] | None = None,
    fully_sharded: bool = False,
    grouped_heads: bool = True,
) -> dict[str, str | tuple[str, ...]]:
    """Rules for the axis names that the transformer families share.

    Args:
      data: Mesh axis for data parallelism: spreads `batch`.
      tensor: Mesh axis for tensor parallelism: spreads the hidden units of feed-forward layers,
        the heads of attention layers and the vocabulary, each within one layer.
      fully_sharded: Spread the parameters over the data axis too (along `embedding`); each layer
        collects its parameters when it runs.
      grouped_heads: For grouped-query attention, spread the groups (`head_groups`), so that the
        heads of a group stay with their keys; False spreads the heads within each group
        (`query_heads`), for models with fewer groups than devices.

    Returns:
      Rules for `name_to_name_sharding`, `shard_model` and `sharded_init`. With both `data` and
      `fully_sharded`, give them to parameters only: activations have `batch` and `embedding`,
      which cannot share a mesh axis.

    Raises:
      ValueError: If `fully_sharded` is asked for without a data axis.
    """
    if fully_sharded and data is None:
        raise ValueError(
            "transformer_rules(fully_sharded=True): parameters are spread over the data axis, so "
            'it must be named, e.g. data="data".'
        )
    rules: dict[str, str | tuple[str, ...]] = {}
    if data is not None:
        rules["batch"] = data
    if fully_sharded and data is not None:
        rules["embedding"] = data
    if tensor is not None:
        heads = ("heads", "head_groups") if grouped_heads else ("heads", "query_heads")
        rules |= {name: tensor for name in ("neurons", "vocabulary", *heads)}
    return rules


def automatic_mesh(mesh: Any) -> Any:
    """The mesh with `AxisType.Auto`: layers leave it to the compiler how results are spread.

    Since jax 0.9 `jax.make_mesh` makes explicit axes by default, which ask for that in each operation.
    """
    if not isinstance(mesh, Mesh) or all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def mesh_axes_for(
    sizes: Mapping[Any, int], names: Sequence[Any], where: str, mesh: Any, rules: AxisRules
) -> list[str | tuple[str, ...] | None]:
    """The mesh axes of each axis of one array, checked.

    Args:
      sizes: Size of each named axis.
      names: Name of each axis of the data; None for positional ones.
      where: What the array is, for errors.
      mesh: The mesh of devices.
      rules: From axis names to mesh axes.

    Returns:
      One entry per axis, for a `PartitionSpec`.

    Raises:
      ValueError: If a mesh axis is unknown or used twice, or does not divide an axis.
    """
    users: dict[str, Any] = {}
    spec: list[str | tuple[str, ...] | None] = []
    for name in names:
        target = None if name is None else rules.get(name)
        axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        for axis in axes:
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
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if parts > 1 and sizes[name] % parts:
            raise ValueError(
                f"sharding {where}: the axis {name!r} has size {sizes[name]}, which the "
                f"{parts} devices along {target!r} do not divide (mesh {dict(mesh.shape)}). Use "
                f"a mesh whose axis divides it, or the rule {name!r}: None."
            )
        spec.append(target if target is None or isinstance(target, str) else axes)
    return spec
