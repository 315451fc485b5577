import jax
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, draw, named, raw

from pz_core.selectors import select
from pz_core.variables import Parameter
from pz_nn.gated import GatedMLP


@pytest.mark.smoke
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.gelu])
def test_gated_mlp(key, use_bias, activation):
    layer = GatedMLP.from_config(
        "m", key, {"e": 3}, {"neurons": 5}, activation, use_bias, initializer=draw
    )
    parameters = {p.label: p for p in select(layer).at_instances_of(Parameter).get_sequence()}
    part = "/Linear" if use_bias else ""
    g, u, d = (
        raw(parameters[f"m/{name}_linear{part}.weights"].value)
        for name in ("gating", "value", "out")
    )
    assert len(parameters) == (6 if use_bias else 3)
    x = named(0, {"n": 2, "e": 3})
    y = layer(x)
    assert axis_order(y) == ["n", "e"]
    gate = np.asarray(activation((raw(x) @ g).astype(np.float32)), np.float64)
    assert_close(raw(y), (gate * (raw(x) @ u)) @ d)
