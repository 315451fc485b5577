"""Operators: alignment equals lifting, dtypes and weak types, foreign operands, the jaxpr."""

import operator

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from named_cases import cases, partner

import pz_named as nx

pytestmark = pytest.mark.smoke

OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": lambda a, b: abs(a) ** abs(b),
    "eq": operator.eq,
    "lt": operator.lt,
}


def assert_same(ours, theirs):
    structures = [jax.tree_util.tree_structure(v) for v in (ours, theirs)]
    assert structures[0] == structures[1]
    assert ours.dtype == theirs.dtype
    assert ours.data_array.weak_type == theirs.data_array.weak_type
    np.testing.assert_array_equal(ours.data_array, theirs.data_array)


@hypothesis.given(cases())
@hypothesis.settings(max_examples=12)
def test_alignment_equals_lifting(case):
    name = case.rng.choice(sorted(OPERATORS))
    other = case.rng.choice([partner(case, extra={"d": 2}).x, 2, 1.5, jnp.ones(1), np.float32(3)])
    pair = (case.x, other) if case.rng.random() < 0.7 else (other, case.x)
    op = OPERATORS[name]
    assert_same(op(*pair), nx.nmap(op)(*pair))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "mod", "floordiv", "eq", "lt"])
def test_left_operands_behave_alike(name):
    op = OPERATORS[name]
    x = nx.wrap(jnp.array([[1.0, 2.0, 3.0]]), "a", "b")
    expected = op(jnp.arange(1.0, 4.0)[:, None], jnp.array([1.0, 2.0, 3.0])).T
    for left in (np.arange(1.0, 4.0, dtype=np.float32), jnp.arange(1.0, 4.0)):
        result = op(left, x)
        assert isinstance(result, nx.NamedArrayView)
        assert result.positional_shape == (3,)
        np.testing.assert_allclose(result.untag_prefix("a", "b").unwrap()[0], expected)
        traced = jax.jit(op)(left, x)
        np.testing.assert_allclose(traced.data_array, result.data_array)


def test_numpy_scalars_promote_the_same_on_both_sides():
    x = nx.ones({"a": 2}, jnp.bfloat16)
    assert (np.float32(2) * x).dtype == (x * np.float32(2)).dtype == jnp.float32
    assert (2.0 * x).dtype == jnp.bfloat16


def test_equality_with_no_array_keeps_all_axes():
    x = nx.ones({"a": 2, "b": 3}).untag("b")
    for other in (None, "text", object()):
        assert (x == other).positional_shape == (3,)
        assert not (x == other).data_array.any()
        assert (x != other).data_array.all()


def test_static_exponents_stay_static():
    jaxpr = jax.make_jaxpr(lambda v: v**3)(nx.ones({"a": 2}))
    assert "integer_pow" in str(jaxpr)


def test_rank_promotion_is_not_triggered():
    with jax.numpy_rank_promotion("raise"):
        result = nx.ones({"a": 2}) + nx.ones({"b": 3}) + jnp.ones(4)
    assert result.named_shape == {"a": 2, "b": 3}


def test_names_of_the_left_operand_come_first():
    left, right = nx.ones({"a": 1, "b": 2}), nx.ones({"c": 3, "b": 2})
    assert list((left + right).named_shape) == ["a", "b", "c"]
    assert list((right + left).named_shape) == ["c", "b", "a"]


def test_a_fully_positional_result_is_a_view():
    assert isinstance(nx.wrap(jnp.ones(2)) + 1, nx.NamedArrayView)


def test_divmod_matmul_and_unary():
    x = nx.wrap(jnp.array([5.0, -7.0]), "a")
    quotient, remainder = divmod(x, 3)
    np.testing.assert_array_equal(quotient.unwrap("a"), [1, -3])
    np.testing.assert_array_equal(remainder.unwrap("a"), [2, 2])
    np.testing.assert_array_equal((-x).unwrap("a"), [-5, 7])
    np.testing.assert_array_equal(abs(x).unwrap("a"), [5, 7])
    np.testing.assert_array_equal((~(x > 0)).unwrap("a"), [False, True])
    left, right = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    product = nx.wrap(left, "r", "i").untag("i") @ nx.wrap(right, "i", "c").untag("i")
    np.testing.assert_allclose(product.unwrap("r", "c"), left @ right)
    reflected = jnp.ones((2, 3)) @ nx.wrap(right, "i", "c").untag("i", "c")
    assert reflected.positional_shape == (2, 4)


def test_numpy_leaves_take_part():
    x = nx.NamedArray(nx.ones({"a": 2}).named_axes, np.array([1.0, 2.0], np.float32))
    total = x + x
    assert isinstance(total.data_array, jax.Array)
    np.testing.assert_array_equal(total.unwrap("a"), [2, 4])


def named_chain(x, y):
    for _ in range(10):
        x = x * y + y
    return x


def raw_chain(x, y):
    for _ in range(10):
        x = x * y + y
    return x


def test_the_jaxpr_is_that_of_plain_arrays():
    x = nx.ones({"a": 2, "b": 3})
    ours = jax.make_jaxpr(named_chain)(x, x)
    theirs = jax.make_jaxpr(raw_chain)(x.data_array, x.data_array)
    assert str(ours) == str(theirs)


def test_the_jaxpr_of_a_transposed_operand_is_the_hand_written_one():
    x, y = nx.ones({"a": 2, "b": 3, "c": 4}), nx.ones({"c": 4, "b": 3})
    ours = jax.make_jaxpr(lambda p, q: p + q)(x, y)
    theirs = jax.make_jaxpr(lambda p, q: p + q.T[None])(x.data_array, y.data_array)
    assert str(ours) == str(theirs)


def test_the_comparison_of_jaxprs_can_fail():
    x = nx.ones({"a": 2, "b": 3})
    lifted = jax.make_jaxpr(lambda p, q: nx.nmap(operator.add)(p, q))(x, x.order_as("b", "a"))
    assert str(lifted) != str(jax.make_jaxpr(operator.add)(x.data_array, x.data_array))
