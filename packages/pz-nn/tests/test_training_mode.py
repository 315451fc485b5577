import jax
import pytest
from nn_helpers import named

from pz_core.random_stream import RandomStream
from pz_core.selectors import select
from pz_nn.batch_norm import BatchNorm, InferenceBatchNorm
from pz_nn.combinators import Residual
from pz_nn.dropout import DisabledDropout, StochasticDropout
from pz_nn.grouping import Sequential
from pz_nn.training_mode import set_training


@pytest.mark.smoke
def test_set_training_flips_every_dropout_and_batch_norm():
    model = Sequential(
        [
            BatchNorm.from_config("b", jax.random.key(0), {"c": 3}),
            Residual(StochasticDropout(0.5, ("c",), "noise")),
            {"nested": [StochasticDropout(0.1)]},
        ]
    )
    inference = set_training(model, False)
    assert isinstance(inference.sublayers[0].sublayers[0], InferenceBatchNorm)
    assert inference.sublayers[1].delta == DisabledDropout(0.5, ("c",), "noise")
    assert inference.sublayers[2] == {"nested": [DisabledDropout(0.1, ())]}
    assert set_training(inference, False) == inference
    assert set_training(inference, True) == model
    assert set_training({"no": "such layer"}, True) == {"no": "such layer"}


def test_a_selection_flips_a_part():
    model = {"encoder": Sequential([StochasticDropout(0.1)]), "head": StochasticDropout(0.2)}
    half = set_training(select(model).at_instances_of(Sequential), False)
    assert half["encoder"].sublayers == [DisabledDropout(0.1, ())]
    assert half["head"] is model["head"]
    assert set_training(select(half).at_instances_of(Sequential), True) == model


def test_the_model_runs_in_both_modes():
    model = Sequential([StochasticDropout(0.5)])
    x = named(0, {"a": 4})
    model(x, random_stream=RandomStream.from_base_key(jax.random.key(0)))
    assert set_training(model, False)(x) is x
