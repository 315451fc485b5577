"""Perceptrons: values against a hand-written one, labels, dropout, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_core.random_stream import RandomStream
from pz_core.selectors import select
from pz_core.variables import unbind_params
from pz_models.simple_mlp import MLP, DropoutMLP
from pz_named import named_axes as nx
from pz_nn.dropout import StochasticDropout


@pytest.mark.smoke
def test_it_computes_affine_relu_affine(key):
    mlp = MLP.from_config(key, [2, 4, 3])
    parameters = {p.label: p.value for p in unbind_params(mlp)[1]}
    assert list(parameters) == [
        f"mlp/Affine_{i}/{part}" for i in range(2) for part in ("Linear.weights", "AddBias.bias")
    ]
    x = jnp.array([[0.5, -1.0], [2.0, 0.25]])
    w = [parameters[f"mlp/Affine_{i}/Linear.weights"].untag("features", "features_out").unwrap()
         for i in range(2)]  # fmt: skip
    expected = np.maximum(x @ w[0], 0) @ w[1]
    result = mlp(nx.wrap(x, "batch", "features"))
    np.testing.assert_allclose(result.unwrap("batch", "features"), expected, atol=1e-5)


def test_dropout_stands_before_the_activation_and_can_be_disabled(key):
    mlp = DropoutMLP.from_config(key, [2, 8, 1], drop_rate=0.5, name="d")
    assert isinstance(mlp.sublayers[1], StochasticDropout | type(mlp.sublayers[1]))
    assert select(mlp).at_instances_of(StochasticDropout).count() == 1
    x = nx.wrap(jnp.ones((3, 2)), "batch", "features")
    stream = RandomStream.from_base_key(jax.random.key(1))
    assert mlp(x, random_stream=stream).named_shape == {"batch": 3, "features": 1}
    plain = select(mlp).at_instances_of(StochasticDropout).apply(lambda d: d.disable())
    np.testing.assert_allclose(
        plain(x).unwrap("batch", "features"),
        MLP(plain.sublayers)(x).unwrap("batch", "features"),
    )


def test_sizes_of_one_layer_are_refused(key):
    with pytest.raises(ValueError, match=r"input and an output size.*received \[3\]"):
        MLP.from_config(key, [3])
