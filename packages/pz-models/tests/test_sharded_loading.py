"""Parameters go straight onto their shards: on eight devices, in a process of its own."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from pz_models_families import RandomCheckpoint, config_of

from pz_core.variables import unbind_params
from pz_models import load, save_huggingface
from pz_models.loading import model_from_checkpoint

HELPERS = pathlib.Path(__file__).parent / "_helpers"
PROGRAM = """
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pz_core.variables import freeze_params, unbind_params
from pz_models import load, save_huggingface
from pz_named import named_axes as nx
from pz_models.transformer.variants.gemma import gemma_from_pretrained_checkpoint

folder, flax_folder = sys.argv[1:]
# Explicit axes are what newer versions of JAX make by default; older ones warn of that.
explicit = (jax.sharding.AxisType.Explicit,)
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=explicit * 2)
rules = {"neurons": "model", "vocabulary": ("data", "model"), "head_groups": "model"}
logits = jax.jit(lambda model, ids: model(nx.wrap(ids, "seq")).unwrap("seq", "vocabulary"))
ids = np.array([1, 5, 2])
jax.config.update("jax_disable_most_optimizations", True)
expected_logits = logits(freeze_params(load(folder, use_layer_stack=True)), ids)
plain = {p.label: p.value for p in unbind_params(load(folder))[1]}
for stacked in (False, True):
    model = load(folder, mesh=mesh, axis_name_to_mesh_name=rules, use_layer_stack=stacked)
    for parameter in unbind_params(model)[1]:
        value = parameter.value
        names = tuple(value.named_shape)
        array = value.unwrap(*names)
        assert len(array.sharding.device_set) == 8, parameter.label
        expected = NamedSharding(mesh, PartitionSpec(*(rules.get(name) for name in names)))
        assert array.sharding.is_equivalent_to(expected, array.ndim), parameter.label
        if parameter.label in plain:
            np.testing.assert_array_equal(array, plain[parameter.label].unwrap(*names))
    if stacked:  # which compiles faster
        np.testing.assert_allclose(logits(freeze_params(model), ids), expected_logits, atol=1e-5)
    save_huggingface(model, f"{folder}-{stacked}")
    for parameter in unbind_params(load(f"{folder}-{stacked}"))[1]:
        assert (parameter.value.data_array == plain[parameter.label].data_array).all()
print("loaded")

# Without rules, axis names are the names of mesh axes.
one = jax.make_mesh((2,), ("neurons",), axis_types=explicit, devices=jax.devices()[:2])
values = {p.label: p.value for p in unbind_params(load(folder, mesh=one))[1]}
gate = values["transformer/block_0/mlp/gating_linear.weights"].unwrap("neurons", "embedding")
assert gate.sharding.spec == PartitionSpec("neurons"), gate.sharding

if flax_folder != "-":
    import orbax.checkpoint

    # The guide's sharded restore, over the last axis of every parameter.
    checkpointer = orbax.checkpoint.PyTreeCheckpointer()
    metadata = checkpointer.metadata(flax_folder)
    line = jax.make_mesh((jax.local_device_count(),), ("all",), axis_types=explicit)
    restore_args = jax.tree_util.tree_map(
        lambda m: orbax.checkpoint.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=NamedSharding(line, PartitionSpec(*[None] * (len(m.shape) - 1), "all")),
        ),
        metadata.item_metadata.tree,
    )
    params = checkpointer.restore(flax_folder, restore_args=restore_args)
    for stacked in (False, True):
        model = gemma_from_pretrained_checkpoint(
            params, use_layer_stack=stacked, preset_name="gemma2_9b"
        )
        for parameter in unbind_params(model)[1]:
            array = parameter.value.data_array
            assert array.sharding.shard_shape(array.shape) != array.shape, parameter.label
    assert np.isfinite(logits(freeze_params(model), ids)).all()
    print("restored")
"""


def _checkpoint():
    return RandomCheckpoint(config_of("llama"))


def _flax_tree():
    rng = np.random.default_rng(0)
    shapes = {
        "embedder": {"input_embedding": (16, 8)},
        "final_norm": {"scale": (8,)},
        **{
            f"layer_{i}": {
                "attn": {"q_einsum": {"w": (4, 8, 8)}, "kv_einsum": {"w": (2, 2, 8, 8)},
                         "attn_vec_einsum": {"w": (4, 8, 8)}},
                "mlp": {"gating_einsum": {"w": (2, 16, 8)}, "linear": {"w": (16, 8)}},
                **{f"{when}_{part}_norm": {"scale": (8,)}
                   for when in ("pre", "post") for part in ("attention", "ffw")},
            }
            for i in range(2)
        },
    }  # fmt: skip
    return jax.tree_util.tree_map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        {"transformer": shapes},
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_every_parameter_is_on_its_shards(tmp_path):
    save_huggingface(model_from_checkpoint(_checkpoint()), tmp_path / "llama")
    flax_folder = "-"
    try:
        import orbax.checkpoint
    except ImportError:
        pass
    else:
        flax_folder = str(tmp_path / "gemma")
        orbax.checkpoint.PyTreeCheckpointer().save(flax_folder, _flax_tree())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "llama"), flax_folder],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["loaded"] + ["restored"] * (flax_folder != "-")


BAD_RULES = {
    "unknown mesh axis": ({"neurons": "tensor"}, r"names the mesh axis 'tensor', but the mesh has"),
    "one mesh axis twice": (
        {"neurons": "one", "embedding": "one"},
        "both spread over the mesh axis 'one', which one array can use only once.* Drop one",
    ),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_rules_that_do_not_fit_are_named_before_anything_is_read(name, monkeypatch):
    rules, message = BAD_RULES[name]
    checkpoint = _checkpoint()
    monkeypatch.setattr(RandomCheckpoint, "read_into", None)
    mesh = jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match=message):
        model_from_checkpoint(checkpoint, mesh=mesh, axis_name_to_mesh_name=rules)


def test_a_size_that_the_mesh_does_not_divide_is_named():
    from jax.sharding import AbstractMesh

    from pz_models._placement import placement_on

    mesh = AbstractMesh((3,), ("model",))
    with pytest.raises(
        ValueError, match=r"'w' with the named shape .*'neurons' has size 4, which the 3 devices"
    ):
        placement_on(mesh, {"neurons": "model"}, {"w": {"neurons": 4}})


def test_one_device_of_a_mesh_gives_the_same_model(tmp_path):
    save_huggingface(model_from_checkpoint(_checkpoint()), tmp_path)
    mesh = jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = load(tmp_path, mesh=mesh, axis_name_to_mesh_name={"neurons": "one"})
    for mine, theirs in zip(
        unbind_params(placed)[1], unbind_params(load(tmp_path))[1], strict=True
    ):
        np.testing.assert_array_equal(mine.value.data_array, theirs.value.data_array)
