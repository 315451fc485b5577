"""Effect views: axes chosen by name, values read back."""

import base64
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
import pz_viz
from pz_viz import effects

EFFECTS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def data_of(view):
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", view.body, re.S)[1])
    shape = [len(axis["labels"]) for axis in data["axes"]]
    values = np.frombuffer(base64.b64decode(data["values"]), "<f4").reshape(shape)
    return [axis["name"] for axis in data["axes"]], values, data


@pytest.mark.smoke
def test_axes_are_chosen_by_name():
    named = nx.wrap(jnp.asarray(EFFECTS)).tag("block", "head", "position")
    names, values, data = data_of(
        pz_viz.effect_view(named, rows="position", columns="block", labels={"head": list("abcd")})
    )
    assert names == ["head", "position", "block"]
    np.testing.assert_array_equal(values, EFFECTS.transpose(1, 2, 0))
    assert data["diverging"]
    assert data["axes"][0]["labels"] == list("abcd")


def test_defaults_take_the_last_two_axes():
    names, values, _ = data_of(pz_viz.effect_view(EFFECTS))
    assert names == ["axis0", "axis1", "axis2"]
    np.testing.assert_array_equal(values, EFFECTS)


def test_vectors_scalars_and_empty_arrays_are_drawn():
    assert data_of(pz_viz.effect_view(EFFECTS[0, 0]))[1].shape == (1, 5)
    assert data_of(pz_viz.effect_view(np.float32(3)))[1].shape == (1, 1)
    assert "no values" in pz_viz.effect_view(np.zeros((0, 3))).text
    assert pz_viz.effect_view(np.full((2, 2), np.nan)).text


def test_the_range_may_be_set():
    _, _, data = data_of(pz_viz.effect_view(EFFECTS, vmin=-9, vmax=9, around_zero=False))
    assert (data["low"], data["high"], data["diverging"]) == (-9, 9, False)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"rows": "head"}, r"rows='head': the array has no such axis .* 0, 1, 2"),
        ({"labels": {0: ["a"]}}, r"labels\[0\] has 1 entries and the axis has size 3"),
        ({"labels": {"x": ["a"]}}, r"labels names the axes \['x'\], which the array lacks"),
        ({"rows": 0, "columns": 0}, r"columns=0: the array has no such axis"),
    ],
)
def test_what_does_not_fit_is_an_error(kwargs, match):
    with pytest.raises(ValueError, match=match):
        pz_viz.effect_view(EFFECTS, **kwargs)


def test_complex_and_too_many_values_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="complex; show their real part"):
        pz_viz.effect_view(EFFECTS + 0j)
    monkeypatch.setattr(effects, "EFFECT_BUDGET", 10)
    with pytest.raises(pz_viz.HostCopyError, match="60 elements"):
        pz_viz.effect_view(EFFECTS)
