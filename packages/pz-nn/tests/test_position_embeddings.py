import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, assert_jit_equals_eager, axis_order, draw, named, raises, raw

from pz_named import named_axes as nx
from pz_nn.position_embeddings import AddLearnedPositions, AddSinusoidalPositions


@pytest.mark.smoke
def test_learned_positions(key):
    layer = AddLearnedPositions.from_config("p", key, 10, {"e": 4}, initializer=draw)
    assert layer.table.embeddings.label == "p.embeddings"
    x = named(0, {"n": 2, "s": 3, "e": 4})
    positions = nx.wrap(jnp.array([[0, 1, 2], [5, 9, 0]]), "n", "s")
    y = layer(x, token_positions=positions)
    assert axis_order(y) == ["n", "s", "e"]
    table = raw(layer.table.embeddings.value)
    assert_close(raw(y), raw(x) + table[raw(positions).astype(int)])
    with raises(IndexError, "10"):
        layer(x, token_positions=positions + 1)
    with raises(KeyError, "token_positions"):
        layer(x)


@pytest.mark.smoke
@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_sinusoidal_positions(pairing):
    x = named(0, {"e": 6, "n": 2, "s": 3})
    positions = nx.wrap(jnp.array([0, 7, 100]), "s")
    layer = AddSinusoidalPositions("e", pairing=pairing)
    y = assert_jit_equals_eager(layer, x, token_positions=positions)
    assert axis_order(y) == ["e", "n", "s"]
    angles = raw(positions)[:, None] / 10_000 ** (2 * np.arange(3) / 6)
    expected = np.zeros((3, 6))
    if pairing == "interleaved":
        expected[:, 0::2], expected[:, 1::2] = np.sin(angles), np.cos(angles)
    else:
        expected[:, :3], expected[:, 3:] = np.sin(angles), np.cos(angles)
    assert_close(raw(y, "n", "s", "e"), raw(x, "n", "s", "e") + expected, 2e-5)


def test_sinusoidal_dtype_and_errors():
    positions = nx.arange("s", 3)
    layer = AddSinusoidalPositions("e")
    x = named(0, {"s": 3, "e": 4}, jnp.bfloat16)
    assert layer(x, token_positions=positions).dtype == jnp.bfloat16
    with raises(KeyError, "token_positions", "AddSinusoidalPositions"):
        layer(x)
    with raises(ValueError, "even", "3"):
        layer(named(0, {"s": 3, "e": 3}), token_positions=positions)
    with raises(ValueError, "['s']"):
        layer(named(0, {"e": 4}), token_positions=positions)
    with raises(ValueError, "pairing", "'thirds'"):
        AddSinusoidalPositions("e", pairing="thirds")
