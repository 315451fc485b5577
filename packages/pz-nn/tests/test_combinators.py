import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import (
    BranchAndAddTogether,
    BranchAndMultiplyTogether,
    ConcatBranches,
    Residual,
)
from pz_nn.grouping import Identity
from pz_nn.standardization import RMSStandardize


@pytest.mark.smoke
def test_residual_adds_and_lets_the_delta_lead():
    x = named(0, {"a": 2, "b": 3})
    y = Residual(RMSStandardize("a"))(x)
    assert axis_order(y) == ["b", "a"]
    assert_close(raw(y, "a", "b"), raw(x) + raw(RMSStandardize("a")(x), "a", "b"))
    assert Residual(lambda v, /, **s: v * s["value"])(3, value=2) == 9


@pytest.mark.parametrize(
    "combine, fold", [(BranchAndAddTogether, np.add), (BranchAndMultiplyTogether, np.multiply)]
)
def test_branches_fold_from_the_left(combine, fold):
    x = named(0, {"a": 2, "b": 3})
    branches = [Identity(), Elementwise(jnp.sin), Elementwise(jnp.exp)]
    expected = fold(fold(raw(x), np.sin(raw(x))), np.exp(raw(x)))
    assert_close(raw(combine(branches)(x)), expected)
    assert combine([Identity()])(x) is x
    with raises(ValueError, combine.__name__, "at least one branch"):
        combine([])(x)


@pytest.mark.parametrize("combine", [BranchAndAddTogether, BranchAndMultiplyTogether])
def test_branches_leave_the_callers_numpy_array_alone(combine):
    array = np.full(3, 2.0)
    combine([Identity(), Identity()])(array)
    assert (array == 2.0).all()


def test_branches_get_the_side_inputs():
    seen = []

    def branch(x, /, **side_inputs):
        seen.append(side_inputs)
        return x

    BranchAndAddTogether([branch, branch])(1, value=5)
    assert seen == [{"value": 5}] * 2


def test_concat_branches():
    x = named(0, {"f": 2, "b": 3})
    y = ConcatBranches([Identity(), Elementwise(jnp.sin)], "f")(x)
    assert_close(raw(y, "f", "b"), np.concatenate([raw(x), np.sin(raw(x))], 0))
    with raises(ValueError, "ConcatBranches"):
        ConcatBranches([], "f")(x)
    with raises(ValueError, "absent"):
        ConcatBranches([Identity(), Identity()], "absent")(x)
