"""Padding: rows of unequal length give what each gives alone, whatever tells the model positions."""

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_families import RandomCheckpoint, config_of

from pz_models.loading import model_from_checkpoint
from pz_models.transformer.padding import pad_rows, positions_of
from pz_named import named_axes as nx

ROWS = [[5, 9, 3, 0, 7], [8, 0]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def model(request):
    return model_from_checkpoint(RandomCheckpoint(config_of(request.param)))


@pytest.mark.parametrize("pad_id", [-1, 0])
def test_padded_rows_equal_each_alone(model, pad_id):
    alone = [tiny.logits(model, nx.wrap(jnp.array(row), "seq")) for row in ROWS]
    for side in ("left", "right"):
        tokens, positions = pad_rows(ROWS, pad_id=pad_id, side=side, length=6)
        padded = tiny.logits(model, tokens, token_positions=positions)
        assert np.isfinite(padded).all()
        for row, expected in zip(padded, alone, strict=True):
            real = row[-len(expected) :] if side == "left" else row[: len(expected)]
            np.testing.assert_allclose(real, expected, atol=1e-5)


@pytest.mark.smoke
def test_padding_has_no_position_and_by_default_no_token():
    tokens, positions = pad_rows(ROWS, side="left")
    np.testing.assert_array_equal(
        tokens.unwrap("batch", "seq"), [[5, 9, 3, 0, 7], [-1, -1, -1, 8, 0]]
    )
    np.testing.assert_array_equal(
        positions.unwrap("batch", "seq"), [[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1]]
    )
    np.testing.assert_array_equal(
        positions_of(tokens != -1).unwrap("batch", "seq"), positions.unwrap("batch", "seq")
    )
    scattered = nx.wrap(jnp.array([True, False, True, True, False]), "seq")
    np.testing.assert_array_equal(positions_of(scattered).unwrap("seq"), [0, -1, 1, 2, -1])


@pytest.mark.parametrize(
    "arguments", [{"rows": []}, {"rows": ROWS, "length": 4}, {"rows": ROWS, "side": "middle"}]
)
def test_bad_calls(arguments):
    with pytest.raises(ValueError, match="one row at least, none longer than length, and side"):
        pad_rows(**arguments)
