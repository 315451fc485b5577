"""Sharding on one device; `test_many_devices.py` has the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from pz_core.variables import Parameter, unbind_params
from pz_named.named_axes import wrap
from pz_toolshed.sharding_util import (
    ConstrainSharding,
    ConstrainShardingByName,
    name_to_name_device_put,
    name_to_name_sharding,
    shard_model,
    sharded_init,
    sharding_report,
    sharding_rows,
    transformer_rules,
)

pytestmark = pytest.mark.smoke

MESH = AbstractMesh((4, 2), ("foo", "bar"))
ONE = jax.make_mesh((1, 1), ("foo", "bar"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def spec(array, rules, **options):
    return name_to_name_sharding(array, MESH, rules, **options).data_array.spec


def test_named_axes_in_storage_order():
    x = wrap(jnp.zeros((3, 8, 4))).tag("a", "b", "c")
    assert spec(x, {"b": "foo", "c": "bar"}) == PartitionSpec(None, "foo", "bar")
    assert spec(x, {"b": ("foo", "bar")}) == PartitionSpec(None, ("foo", "bar"), None)
    assert spec(x, {"b": None}) == PartitionSpec(None, None, None)


def test_positional_axes_are_kept_whole_where_they_lie():
    x = wrap(jnp.zeros((8, 4, 2))).tag("a", "b", "c")
    view = x.untag("b")
    assert spec(view, {"a": "foo", "c": "bar"}) == PartitionSpec("foo", None, "bar")
    prefix = view.with_positional_prefix()  # data: (4, 8, 2)
    assert spec(prefix, {"a": "foo", "c": "bar"}) == PartitionSpec(None, "foo", "bar")


def test_default_rules_and_trees_and_abstract_arrays():
    tree = jax.eval_shape(lambda: {"x": wrap(jnp.zeros((8, 2))).tag("foo", "other"), "n": 1})
    got = name_to_name_sharding(tree, MESH, ignore_unnamed_arrays=True)
    assert got["x"].data_array == NamedSharding(MESH, PartitionSpec("foo", None))
    assert got["n"] is None
    structs = name_to_name_sharding(
        tree, MESH, ignore_unnamed_arrays=True, as_shape_dtype_struct=True
    )
    assert structs["x"].data_array.sharding.spec == PartitionSpec("foo", None)
    assert structs["x"].data_array.shape == (8, 2)
    assert structs["n"].sharding is None


def test_errors_tell_axis_and_sizes():
    x = wrap(jnp.zeros((6, 4))).tag("a", "b")
    with pytest.raises(ValueError, match=r"axis 'a' has size 6, which the 4 devices along 'foo'"):
        name_to_name_sharding({"x": x}, MESH, {"a": "foo"})
    with pytest.raises(
        ValueError, match=r"names the mesh axis 'nope', but the mesh has \{'foo': 4"
    ):
        spec(x, {"a": "nope"})
    with pytest.raises(ValueError, match=r"'a' and 'b' are both spread over the mesh axis 'bar'"):
        spec(x, {"a": "bar", "b": "bar"})
    with pytest.raises(ValueError, match=r"\['n'\] is 3.*ignore_unnamed_arrays"):
        name_to_name_sharding({"n": 3}, MESH, {})
    with pytest.raises(ValueError, match=r"shard_model"):
        name_to_name_sharding([Parameter(label="w", value=1.0)], MESH, {})
    with pytest.raises(ValueError, match=r"sharding 'block/up.weights'.*'neurons' has size 6"):
        shard_model(tm.block(tm.key()), MESH, {"neurons": "foo"})
    # The repairs.
    shard_model(tm.block(tm.key(), hidden=8), ONE, {"neurons": "foo"})
    name_to_name_sharding({"n": 3}, MESH, {}, ignore_unnamed_arrays=True)
    assert spec(x, {"a": "bar", "b": None}) == PartitionSpec("bar", None)
    assert spec(x, {"a": None, "b": "foo"}) == PartitionSpec(None, "foo")


def test_device_put_keeps_values():
    x = tm.random_input(a=4, b=2)
    placed = name_to_name_device_put({"x": x}, ONE, {"a": "foo"})["x"]
    tm.assert_trees_close(placed, x)
    assert placed.data_array.sharding == NamedSharding(ONE, PartitionSpec("foo", None))


def test_shard_model_copies_variables_and_keeps_scalars():
    model = tm.stack(2)
    placed = shard_model(model, ONE, {"neurons": "bar"})
    old, new = unbind_params(model)[1], unbind_params(placed)[1]
    assert [p.label for p in old] == [p.label for p in new]
    assert all(a is not b for a, b in zip(old, new, strict=True))
    x = tm.random_input(embedding=4)
    tm.assert_trees_close(placed(x), model(x))


def test_sharded_init_equals_the_ordinary_one():
    rules = {"neurons": "bar", "embedding": "foo"}
    made = sharded_init(tm.block, tm.key(3), hidden=8, mesh=ONE, axis_name_to_mesh_name=rules)
    want = tm.block(tm.key(3), hidden=8)
    tm.assert_trees_close(unbind_params(made, freeze=True), unbind_params(want, freeze=True))
    assert isinstance(unbind_params(made)[1][0], Parameter)
    counting = sharded_init(tm.counter, mesh=ONE, axis_name_to_mesh_name={})
    assert int(counting.count.value) == 0


def test_sharded_init_compiles_once_for_equal_arguments():
    traced = []

    def build(key, sizes):
        traced.append(sizes[-1])
        return tm.block(key, hidden=sizes[-1])

    def made(seed, sizes):
        traced.clear()
        model = sharded_init(build, tm.key(seed), sizes, mesh=ONE, axis_name_to_mesh_name={})
        want = tm.block(tm.key(seed), hidden=sizes[-1])
        tm.assert_trees_close(unbind_params(model, freeze=True), unbind_params(want, freeze=True))
        return len(traced)

    class Sizes:
        """Like a configuration: equal by content, mutable and so without a hash."""

        def __init__(self, hidden):
            self.hidden = hidden

        def __getitem__(self, _):
            return self.hidden

        def __eq__(self, other):
            return isinstance(other, Sizes) and self.hidden == other.hidden

        def build(self, key):
            return build(key, self)

    sizes = Sizes(8)
    assert made(0, sizes) == 2  # abstractly, and to compile
    assert made(1, Sizes(8)) == 1
    sizes.hidden = 4
    assert made(1, sizes) == 2
    assert made(2, (4, 8)) == 2
    assert made(3, (4, 8)) == 1
    # A method of what may change is compiled each time.
    for _ in range(2):
        traced.clear()
        sharded_init(sizes.build, tm.key(), mesh=ONE, axis_name_to_mesh_name={})
        assert len(traced) == 2


def test_explicit_meshes_are_used_as_automatic_ones():
    explicit = jax.make_mesh(
        (1, 1), ("foo", "bar"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
    )
    rules = {"neurons": "bar", "embedding": "foo"}
    placed = shard_model(tm.block(tm.key()), explicit, rules)
    made = sharded_init(tm.block, tm.key(), mesh=explicit, axis_name_to_mesh_name=rules)
    plain = tm.random_input(batch=2, embedding=4)
    x = name_to_name_device_put(plain, explicit, {"batch": "foo"})
    for model in (placed, made):
        tm.assert_trees_close(model(x), tm.block(tm.key())(plain))
    tm.assert_trees_close(ConstrainShardingByName(explicit, rules)(x), plain)


def test_constraints_pass_values_through():
    x = tm.random_input(a=4)
    for layer in (
        ConstrainSharding(NamedSharding(ONE, PartitionSpec("foo"))),
        ConstrainShardingByName(ONE, {"a": "foo"}),
    ):
        tm.assert_trees_close(layer(x, unknown=1), x)
        tm.assert_trees_close(jax.jit(lambda x, layer=layer: layer(x))(x), x)
    with pytest.raises(ValueError, match=r"must be a named array"):
        ConstrainShardingByName(ONE)(jnp.ones(2))


def test_presets():
    assert transformer_rules(data="d") == {"batch": "d"}
    assert transformer_rules(tensor="t") == {
        "neurons": "t",
        "vocabulary": "t",
        "heads": "t",
        "head_groups": "t",
    }
    assert "query_heads" in transformer_rules(tensor="t", grouped_heads=False)
    assert transformer_rules(data="d", fully_sharded=True) == {"batch": "d", "embedding": "d"}
    with pytest.raises(ValueError, match=r"must be named"):
        transformer_rules(fully_sharded=True)


def test_report():
    model = shard_model(tm.block(tm.key()), ONE, {"neurons": "bar"})
    rows = {row.name: row for row in sharding_rows(model)}
    row = rows["block/up.weights"]
    assert (row.axes, row.global_shape, row.mesh_axes) == (
        ("embedding", "neurons"),
        (4, 6),
        (None, "bar"),
    )
    assert (row.local_shape, row.bytes_per_device) == ((4, 6), 96)
    text = sharding_report(model)
    assert "block/up.weights" in text
    assert "neurons:6 over bar" in text
    total = sum(r.bytes_per_device for r in rows.values())
    assert text.splitlines()[-1].split()[-1] == f"{total:,}"
    assert np.ndim(text) == 0
