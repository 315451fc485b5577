"""The presets of sharding rules fit the model families: what each spreads, and equal results."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh

from pz_core.variables import unbind_variables
from pz_toolshed.sharding_util import name_to_name_sharding, transformer_rules

sys.path.insert(0, str(pathlib.Path(__file__).parent / "sharding"))
import small_families

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
MESH = AbstractMesh((2, 4), ("data", "model"))


def layout(family, rules):
    """For each parameter, the mesh axes of its named axes."""
    build, _ = small_families.FAMILIES[family]
    abstract = jax.eval_shape(lambda: unbind_variables(build(jax.random.key(0)), freeze=True)[1])
    placed = name_to_name_sharding(abstract, MESH, rules)
    return {
        value.label: dict(zip(value.value.named_shape, there.value.data_array.spec, strict=True))
        for value, there in zip(abstract, placed, strict=True)
    }


@pytest.mark.parametrize("family", small_families.FAMILIES)
def test_tensor_parallelism_spreads_each_matrix_within_its_layer(family):
    grouped = small_families.FAMILIES[family][1]
    found = layout(family, transformer_rules(tensor="model", grouped_heads=grouped))
    for label, axes in found.items():
        spread = {axis for axis, mesh_axis in axes.items() if mesh_axis == "model"}
        # What all heads share, and what follows the residual stream, is whole on every device.
        is_shared = not {"neurons", "vocabulary", "heads", "head_groups", "query_heads"} & set(axes)
        assert is_shared == (not spread), label
        assert len(spread) <= 1, label
        assert "embedding" not in spread, label
    matrices = [label for label, axes in found.items() if set(axes) > {"embedding"}]
    assert len(matrices) >= 7


@pytest.mark.parametrize("family", small_families.FAMILIES)
def test_full_sharding_spreads_all_that_is_as_wide_as_the_stream(family):
    grouped = small_families.FAMILIES[family][1]
    rules = transformer_rules(
        data="data", tensor="model", fully_sharded=True, grouped_heads=grouped
    )
    for label, axes in layout(family, rules).items():
        assert axes.get("embedding", "data") == "data", label


@pytest.mark.slow
def test_families_on_eight_devices_equal_one():
    script = pathlib.Path(small_families.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES}",
        },
    )
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == small_families.COMPARED
