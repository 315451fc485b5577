"""Rules from axis names to mesh axes: what follows from them, and which cannot be followed."""

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from pz_named.mesh_axes import automatic_mesh, mesh_axes_for

MESH = AbstractMesh((4, 2), ("data", "model"))


def test_axes_without_a_rule_and_positional_axes_stay_whole():
    axes = [("batch", 8), (None, 3), ("neurons", 6), ("seq", 5), ("heads", 16)]
    rules = {"batch": "data", "neurons": ("model",), "seq": None, "elsewhere": "nowhere"}
    assert mesh_axes_for(axes, "x", MESH, rules) == ["data", None, ("model",), None, None]
    assert mesh_axes_for([("heads", 16)], "x", MESH, {"heads": ("data", "model")}) == [
        ("data", "model")
    ]


@pytest.mark.parametrize(
    ("axes", "rules", "message", "repaired"),
    [
        ([("a", 4)], {"a": "rows"}, r"rule 'a': 'rows' names the mesh axis 'rows'", {"a": "data"}),
        ([("a", 8), ("b", 8)], {"a": "data", "b": "data"}, "'a' and 'b' are both", {"a": "data"}),
        ([("a", 6)], {"a": "data"}, "'a' has size 6, which the 4 devices", {"a": None}),
    ],
)
def test_rules_that_cannot_be_followed(axes, rules, message, repaired):
    with pytest.raises(ValueError, match=f"sharding x: .*{message}"):
        mesh_axes_for(axes, "x", MESH, rules)
    mesh_axes_for(axes, "x", MESH, repaired)


def test_explicit_axes_become_automatic():
    explicit = jax.make_mesh((1,), ("one",), axis_types=(AxisType.Explicit,))
    automatic = automatic_mesh(explicit)
    assert set(automatic.axis_types) == {AxisType.Auto}
    assert automatic.shape == explicit.shape
    assert automatic_mesh(automatic) is automatic
