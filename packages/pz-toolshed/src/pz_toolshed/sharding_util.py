"""Places arrays and models on many devices by axis name.

The idea: a rule says which mesh axis an axis name is spread over (`{"batch": "data", "neurons":
"model"}`); everything else follows from the names. JAX's own SPMD runtime does the rest.

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    rules = sharding_util.transformer_rules(data="data", tensor="model")
    model = sharding_util.shard_model(model, mesh, rules)
    batch = sharding_util.name_to_name_device_put({"tokens": tokens}, mesh, {"batch": "data"})
    print(sharding_util.sharding_report(model))
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.sharding import NamedSharding, PartitionSpec

from pz_core.struct import pytree_dataclass
from pz_core.tree_util import pretty_keystr
from pz_core.variables import (
    AbstractVariableValue,
    bind_variables,
    unbind_variables,
)
from pz_named.mesh_axes import AxisRules, automatic_mesh, mesh_axes_for
from pz_named.named_axes import NamedArrayBase, is_namedarray
from pz_nn.layer import Layer
from pz_toolshed._array_leaves import (
    TreeWithoutArrays,
    data_axes,
    is_array,
    merge_arrays,
    split_arrays,
    with_data,
)
from pz_toolshed._axis_rules import transformer_rules

__all__ = [
    "AxisRules",
    "ConstrainSharding",
    "ConstrainShardingByName",
    "PyTreeOfArrays",
    "PyTreeOfNamedArrays",
    "PyTreeOfShardings",
    "ShardingRow",
    "name_to_name_device_put",
    "name_to_name_sharding",
    "shard_model",
    "sharded_init",
    "sharding_report",
    "sharding_rows",
    "transformer_rules",
]

PyTreeOfArrays: TypeAlias = Any
PyTreeOfNamedArrays: TypeAlias = Any
PyTreeOfShardings: TypeAlias = Any


def _named_sharding(
    array: NamedArrayBase, where: str, mesh: Any, rules: AxisRules
) -> NamedSharding:
    names = [None if isinstance(axis, int) else axis for axis in data_axes(array)]
    axes = list(zip(names, array.data_array.shape, strict=True))
    spec = mesh_axes_for(axes, where, mesh, rules)
    return NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]


def name_to_name_sharding(
    tree: PyTreeOfNamedArrays,
    mesh: Any,
    axis_name_to_mesh_name: AxisRules | None = None,
    ignore_unnamed_arrays: bool = False,
    as_shape_dtype_struct: bool = False,
) -> PyTreeOfShardings:
    """Builds the shardings of a tree of named arrays.

    Args:
      tree: Named arrays, concrete or abstract (`jax.eval_shape`). Their data is not touched.
      mesh: The mesh of devices. Its axes are used as `AxisType.Auto`, whatever they are.
      axis_name_to_mesh_name: For each axis name, the mesh axis (or tuple of mesh axes) it is spread
        over. Axes without an entry, and positional axes, are kept whole on every device. Default:
        axis names are the mesh axis names.
      ignore_unnamed_arrays: Allow leaves that are not named arrays; JAX then chooses.
      as_shape_dtype_struct: Give `jax.ShapeDtypeStruct`s that carry the shardings.

    Returns:
      The tree with the data of each named array replaced by its `NamedSharding` (or struct), and
      other leaves by None (or a struct without sharding).

    Raises:
      ValueError: If a leaf is no named array (unless ignored), a mesh axis is unknown or used
        twice by one array, or an axis size is not divisible by its mesh axes.
    """
    mesh = automatic_mesh(mesh)
    rules = _default_rules(mesh) if axis_name_to_mesh_name is None else axis_name_to_mesh_name

    def for_leaf(path: Any, leaf: Any) -> Any:
        if is_namedarray(leaf):
            sharding: Any = _named_sharding(leaf, pretty_keystr(path, tree), mesh, rules)
            if as_shape_dtype_struct:
                data = leaf.data_array
                sharding = _abstract(data, sharding)
            return with_data(leaf, sharding)
        if not ignore_unnamed_arrays:
            raise ValueError(
                "name_to_name_sharding: every leaf must be a named array, but "
                f"{pretty_keystr(path, tree) or 'the root'} is {_short(leaf)}. Name its axes, or "
                "set ignore_unnamed_arrays=True to leave its placement to JAX. For a model with "
                "variables use shard_model."
            )
        return _abstract(leaf, None) if as_shape_dtype_struct else None

    return jax.tree_util.tree_map_with_path(for_leaf, tree, is_leaf=is_namedarray)


def _abstract(data: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    struct: Any = jax.ShapeDtypeStruct
    abstract: jax.ShapeDtypeStruct = struct(data.shape, data.dtype, sharding=sharding)
    return abstract


def _default_rules(mesh: Any) -> AxisRules:
    return {name: name for name in mesh.axis_names}


def _short(leaf: Any) -> str:
    text = repr(leaf)
    return text if len(text) <= 120 else f"a {type(leaf).__name__}"


def name_to_name_device_put(
    tree: PyTreeOfNamedArrays, mesh: Any, axis_name_to_mesh_name: AxisRules | None = None
) -> PyTreeOfNamedArrays:
    """Puts a tree of named arrays on the devices of a mesh: `device_put` with the names' sharding.

    Args:
      tree: Named arrays.
      mesh: As in `name_to_name_sharding`.
      axis_name_to_mesh_name: As in `name_to_name_sharding`.

    Returns:
      The same arrays, placed.

    Raises:
      ValueError: As `name_to_name_sharding`; every leaf must be a named array.
    """
    return jax.device_put(tree, name_to_name_sharding(tree, mesh, axis_name_to_mesh_name))


def shard_model(tree: Any, mesh: Any, axis_name_to_mesh_name: AxisRules | None = None) -> Any:
    """Puts a whole model, optimizer state or cache on the devices of a mesh.

    Unlike `name_to_name_device_put` it takes variables, and leaves that have no names: plain
    arrays are replicated, Python scalars stay as they are.

    Args:
      tree: Any pytree, variables included. It does not change.
      mesh: As in `name_to_name_sharding`.
      axis_name_to_mesh_name: As in `name_to_name_sharding`.

    Returns:
      A copy with new variables, under the old labels, that hold the placed arrays.

    Raises:
      ValueError: As `name_to_name_sharding`, but for unnamed leaves.
    """
    frozen = unbind_variables(tree, freeze=True)
    arrays, rest = split_arrays(frozen, named=True)
    shardings = _model_shardings(frozen, mesh, axis_name_to_mesh_name)
    placed = [_placed(*pair) for pair in zip(arrays, shardings, strict=True)]
    slots, values = merge_arrays(placed, rest)
    return bind_variables(slots, values, unfreeze_as_copy=True)


def _placed(array: Any, sharding: NamedSharding) -> Any:
    if is_namedarray(array):
        return with_data(array, jax.device_put(array.data_array, sharding))
    return jax.device_put(array, sharding)


def _model_shardings(frozen: Any, mesh: Any, rules: AxisRules | None) -> list[NamedSharding]:
    """One sharding per array of an unbound, frozen model; unnamed arrays are replicated."""
    mesh = automatic_mesh(mesh)
    rules = _default_rules(mesh) if rules is None else rules
    replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    leaves, _ = jax.tree_util.tree_flatten_with_path(frozen, is_leaf=is_namedarray)
    return [
        _trimmed(_named_sharding(leaf, repr(_where(path, frozen)), mesh, rules))
        if is_namedarray(leaf)
        else replicated
        for path, leaf in leaves
        if is_namedarray(leaf) or is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    ]


def _trimmed(sharding: NamedSharding) -> NamedSharding:
    """The same sharding in the form in which compiled programs return it.

    Programs are kept by the shardings of their inputs, and `P("a", None)` differs from `P("a")`: a
    training step whose first inputs had the long form would compile twice.
    """
    spec = list(sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]


def _where(path: Any, tree: Any) -> str:
    """A readable place: the label of the variable that the path leads into, or the path."""
    node = tree
    for key in path:
        if isinstance(node, AbstractVariableValue):
            return str(getattr(node, "label", node.get_slot()))
        node = (
            node[key.idx] if hasattr(key, "idx") else getattr(node, getattr(key, "name", ""), None)
        )
        if node is None:
            break
    return pretty_keystr(path, tree)


def sharded_init(
    initializer: Callable[..., Any],
    *init_args: Any,
    mesh: Any,
    axis_name_to_mesh_name: AxisRules | None = None,
    **init_kwargs: Any,
) -> Any:
    """Initialises a model straight into its shards; no device ever holds the whole.

    Args:
      initializer: Builds the model, e.g. a `from_config`; must create all of its variables.
      *init_args: Its arguments. Arrays among them (a key) are arguments of the compiled program,
        which is kept for calls with equal other arguments.
      mesh: As in `name_to_name_sharding`.
      axis_name_to_mesh_name: As in `name_to_name_sharding`.
      **init_kwargs: Its keyword arguments.

    Returns:
      What `initializer(*init_args, **init_kwargs)` would return, placed; its variables are new.

    Raises:
      ValueError: As `name_to_name_sharding`, but for unnamed leaves, which are replicated.
    """
    arrays, rest = split_arrays((init_args, init_kwargs))
    call = _Initialization(initializer, rest)
    outside: list[TreeWithoutArrays] = []

    def abstract(arrays: Any) -> Any:
        built, without_arrays = call.frozen(arrays)
        outside[:] = [without_arrays]
        return built

    model = merge_arrays(jax.eval_shape(abstract, arrays), outside[0])
    shardings = _model_shardings(model, mesh, axis_name_to_mesh_name)
    built = _compiled_initialization(call, tuple(shardings))(arrays)
    slots, values = merge_arrays(built, outside[0])
    return bind_variables(slots, values, unfreeze_as_copy=True)


class _Initialization:
    """A call of an initializer without its arrays; equal to another if they would do the same."""

    def __init__(self, initializer: Callable[..., Any], arguments: TreeWithoutArrays):
        self._initializer = initializer
        # A method of something that may change equals no other call.
        owner = getattr(initializer, "__self__", initializer)
        self._identity = initializer if _is_hashable(owner) else object()
        # What cannot be hashed (a configuration, say) may change later.
        kept = copy.deepcopy([a for a in arguments.other_leaves if not _is_hashable(a)])
        fixed = tuple(a if _is_hashable(a) else kept.pop(0) for a in arguments.other_leaves)
        self._arguments = TreeWithoutArrays(arguments.treedef, fixed)

    def frozen(self, arrays: Any) -> tuple[list[Any], TreeWithoutArrays]:
        """The model without variables, and its Python scalars apart: jit would make them arrays."""
        args, kwargs = merge_arrays(arrays, self._arguments)
        frozen = unbind_variables(self._initializer(*args, **kwargs), freeze=True)
        return split_arrays(frozen, named=True)

    def __hash__(self) -> int:
        return hash((self._identity, self._arguments.treedef))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Initialization) or self._identity != other._identity:
            return False
        return bool(self._arguments == other._arguments)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=16)
def _compiled_initialization(
    call: _Initialization, shardings: tuple[NamedSharding, ...]
) -> Callable[[Any], Any]:
    return jax.jit(lambda arrays: call.frozen(arrays)[0], out_shardings=list(shardings))


def _constrained(tree: Any, shardings: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, shardings)  # type: ignore[no-untyped-call]


@pytree_dataclass
class ConstrainSharding(Layer):
    """Tells the compiler how its input is to be spread, and returns it.

    Attributes:
      sharding: One sharding, or a pytree of them that matches the input.
    """

    sharding: Any = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, tree: Any, /, **_side_inputs: Any) -> Any:
        """Constrains the input."""
        return _constrained(tree, self.sharding)


@pytree_dataclass
class ConstrainShardingByName(Layer):
    """Tells the compiler how its input is to be spread, by axis name, and returns it.

    Attributes:
      mesh: As in `name_to_name_sharding`.
      axis_name_to_mesh_name: As in `name_to_name_sharding`.
    """

    mesh: Any = dataclasses.field(metadata={"pytree_node": False})
    axis_name_to_mesh_name: AxisRules | None = dataclasses.field(
        default=None, metadata={"pytree_node": False}
    )

    def __call__(self, tree: Any, /, **_side_inputs: Any) -> Any:
        """Constrains the input, whose leaves must be named arrays."""
        shardings = name_to_name_sharding(tree, self.mesh, self.axis_name_to_mesh_name)
        return _constrained(tree, shardings)


@dataclasses.dataclass(frozen=True)
class ShardingRow:
    """How one array of a model is laid out.

    Attributes:
      name: Label of the variable, or path of a constant.
      axes: Name of each axis of the data; None for positional axes.
      global_shape: Its size along each.
      local_shape: The size on one device.
      mesh_axes: The mesh axes each is spread over, as in `PartitionSpec`.
      bytes_per_device: Bytes on one device.
    """

    name: str
    axes: tuple[Any, ...]
    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    mesh_axes: tuple[Any, ...]
    bytes_per_device: int


def sharding_rows(tree: Any) -> list[ShardingRow]:
    """Reads how the arrays of a model are laid out.

    Args:
      tree: Any pytree, variables included.

    Returns:
      One row per array, in tree order.
    """
    slots, values = unbind_variables(tree, freeze=True)
    rows = []
    leaves, _ = jax.tree_util.tree_flatten_with_path((slots, values), is_leaf=is_namedarray)
    for path, leaf in leaves:
        data = leaf.with_positional_prefix().data_array if is_namedarray(leaf) else leaf
        if not isinstance(data, jax.Array):
            continue
        names = tuple(leaf.named_shape) if is_namedarray(leaf) else ()
        axes = (None,) * (data.ndim - len(names)) + names
        spec = tuple(getattr(data.sharding, "spec", ()))
        local = data.sharding.shard_shape(data.shape)
        rows.append(
            ShardingRow(
                name=_where(path, (slots, values)),
                axes=axes,
                global_shape=data.shape,
                local_shape=tuple(local),
                mesh_axes=spec + (None,) * (data.ndim - len(spec)),
                bytes_per_device=math.prod(local) * data.dtype.itemsize,
            )
        )
    return rows


def sharding_report(tree: Any) -> str:
    """Tells in a table how a model is laid out.

    Args:
      tree: Any pytree, variables included.

    Returns:
      A table with a line per array (name, axes with their sizes and mesh axes, shape on one device,
      bytes on one device) and a line with the sum of the bytes.
    """
    rows = sharding_rows(tree)
    cells = [("array", "axes", "on each device", "bytes per device")]
    cells += [
        (
            row.name,
            ", ".join(map(_axis_text, row.axes, row.global_shape, row.mesh_axes)),
            " x ".join(map(str, row.local_shape)) or "scalar",
            f"{row.bytes_per_device:,}",
        )
        for row in rows
    ]
    cells.append(("sum", "", "", f"{sum(row.bytes_per_device for row in rows):,}"))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in cells
    ]
    return "\n".join(lines)


def _axis_text(name: Any, size: int, mesh_axes: Any) -> str:
    text = f"{'-' if name is None else name}:{size}"
    return text if mesh_axes is None else f"{text} over {mesh_axes}"
