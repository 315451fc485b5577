"""Transforms of functions with variables, each against the pure function written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_core import (
    ClosedOverVariableError,
    Parameter,
    ParameterSlot,
    StateVariable,
    StateVariableSlot,
    variable_cond,
    variable_grad,
    variable_jit,
    variable_remat,
    variable_scan,
    variable_value_and_grad,
    variable_vmap,
)

pytestmark = pytest.mark.smoke


def model():
    return {
        "w": Parameter(label="w", value=jnp.array([1.0, 2.0])),
        "calls": StateVariable(0, label="calls"),
        "scale": jnp.array(3.0),
        "size": 2,
    }


def loss(model, x):
    model["calls"].value += 1
    return (model["scale"] * (model["w"].value * x) ** 2).sum()


class TestGrad:
    def test_against_jax(self):
        m, x = model(), jnp.array([0.5, -1.0])
        value, gradient = variable_value_and_grad(loss)(m, x)
        pure = lambda w, scale: (scale * (w * x) ** 2).sum()  # noqa: E731
        np.testing.assert_allclose(value, pure(m["w"].value, 3.0))
        w_grad, scale_grad = jax.grad(pure, (0, 1))(m["w"].value, m["scale"])
        np.testing.assert_allclose(gradient["w"].value, w_grad)
        np.testing.assert_allclose(gradient["scale"], scale_grad)
        assert gradient["calls"] == StateVariableSlot("calls")
        assert gradient["size"] is None
        assert int(m["calls"].value) == 1
        np.testing.assert_allclose(variable_grad(loss)(m, x)["w"].value, w_grad)

    def test_argnums_and_aux(self):
        m, x = model(), jnp.ones(2)
        with_aux = lambda m, x: (loss(m, x), m["calls"].value)  # noqa: E731
        (gradient, x_gradient), calls = variable_grad(with_aux, argnums=(0, 1), has_aux=True)(m, x)
        np.testing.assert_allclose(x_gradient, jax.grad(loss, 1)(m, x))
        assert gradient["w"].label == "w"
        assert int(calls) == 1
        (value, aux), _ = variable_value_and_grad(with_aux, has_aux=True)(m, x)
        assert (float(value), int(aux)) == (15.0, 3)

    def test_wrt(self):
        m = {"p": Parameter(label="p", value=2.0), "s": StateVariable(3.0, label="s")}
        product = lambda m: m["p"].value * m["s"].value  # noqa: E731
        gradient = variable_grad(product, wrt=lambda v: isinstance(v, StateVariable))(m)
        assert float(gradient["s"].value) == 2.0
        assert gradient["p"] == ParameterSlot("p")

    def test_a_shared_parameter_counts_all_uses(self):
        p = Parameter(label="p", value=3.0)
        gradient = variable_grad(lambda a, b: a.value * b["x"].value)(p, {"x": p})
        assert float(gradient.value) == 6.0

    def test_missing_argument(self):
        with pytest.raises(ValueError, match=r"argnums=1, but it was called with 1 positional"):
            variable_grad(loss, argnums=1)(model(), x=jnp.ones(2))
        variable_grad(loss, argnums=1)(model(), jnp.ones(2))  # the repair

    def test_errors_leave_variables_alone(self):
        m = model()

        def fails(m):
            loss(m, 1.0)
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            variable_grad(fails)(m)
        assert int(m["calls"].value) == 0


class TestVmap:
    def test_mapped_and_shared(self):
        stacked = StateVariable(jnp.arange(6.0).reshape(3, 2), label="stacked")
        shared = Parameter(label="shared", value=2.0)

        def f(state, p, x):
            state.value = state.value + x
            return p.value * state.value

        out = variable_vmap(f, in_axes=(0, None, 0))(stacked, shared, jnp.ones(3))
        np.testing.assert_allclose(stacked.value, jnp.arange(6.0).reshape(3, 2) + 1)
        np.testing.assert_allclose(out, 2 * stacked.value)
        columns = StateVariable(jnp.ones((2, 3)), label="columns")
        variable_vmap(f, in_axes=[1, None, 0], out_axes=1)(columns, shared, jnp.ones(3))
        assert columns.value.shape == (2, 3)

    def test_keyword_arguments_and_collectives(self):
        total = StateVariable(0.0, label="total")

        def f(total, x):
            total.value = total.value + jax.lax.psum(x, "i")

        variable_vmap(f, in_axes=None, axis_name="i")(total, x=jnp.arange(4.0))
        assert float(total.value) == 6.0

    def test_shared_variables_must_stay_shared(self):
        shared = StateVariable(0.0, label="shared")

        def f(shared, x):
            shared.value = x

        with pytest.raises(ValueError, match=r"shared variable .*'shared'.*axis in in_axes"):
            variable_vmap(f, in_axes=(None, 0))(shared, jnp.ones(3))
        assert float(shared.value) == 0.0
        mapped = StateVariable(jnp.zeros(3), label="mapped")
        variable_vmap(f, in_axes=(0, 0))(mapped, jnp.ones(3))  # the repair
        assert mapped.value.tolist() == [1.0, 1.0, 1.0]

    def test_other_errors_are_not_disguised(self):
        with pytest.raises(ValueError, match="inconsistent sizes"):
            variable_vmap(lambda a, b: a)(jnp.ones(2), jnp.ones(3))

    def test_conflicting_axes(self):
        v = StateVariable(jnp.ones((2, 2)), label="v")
        with pytest.raises(ValueError, match=r"'v'.*axes 0 and 1"):
            variable_vmap(lambda a, b: None, in_axes=(0, 1))(v, v)
        variable_vmap(lambda a, b: None, in_axes=(0, 0))(v, v)  # the repair

    def test_number_of_axes(self):
        with pytest.raises(ValueError, match="2 entries for 1 positional"):
            variable_vmap(lambda a: a, in_axes=(0, 1))(jnp.ones(2))


class TestScan:
    def test_against_a_loop(self):
        xs = jnp.arange(5.0)

        def step(carry, x):
            m, h = carry
            m["calls"].value += 1
            h = h * m["w"].value + x
            return (m, h), h.sum()

        m = model()
        (last_model, last), sums = variable_scan(step, (m, jnp.ones(2)), xs)
        other, expected = model(), []
        carry = (other, jnp.ones(2))
        for x in xs:
            carry, y = step(carry, x)
            expected.append(y)
        np.testing.assert_allclose(sums, jnp.array(expected), rtol=1e-6)
        np.testing.assert_allclose(last, carry[1], rtol=1e-6)
        assert last_model["w"] is m["w"]
        assert last_model["calls"] is m["calls"]
        assert int(m["calls"].value) == 5

    def test_scanned_variables(self):
        layers = {
            "w": Parameter(label="w", value=jnp.arange(3.0)),
            "s": StateVariable(jnp.zeros(3), label="s"),
        }

        def step(carry, layer):
            layer["s"].value = carry
            return carry + layer["w"].value, None

        last, _ = variable_scan(step, jnp.array(10.0), layers)
        assert float(last) == 13.0
        assert layers["s"].value.tolist() == [10.0, 10.0, 11.0]
        variable_scan(step, jnp.array(10.0), layers, reverse=True, unroll=3)
        assert layers["s"].value.tolist() == [13.0, 12.0, 10.0]

    def test_length(self):
        counter = StateVariable(0, label="c")

        def step(c, _):
            c.value += 2
            return c, c.value

        _, ys = variable_scan(step, counter, length=3)
        assert ys.tolist() == [2, 4, 6]

    def test_errors(self):
        v = StateVariable(jnp.ones(2), label="v")
        with pytest.raises(ValueError, match=r"'v'.* occurs in init and in xs"):
            variable_scan(lambda c, x: (c, None), v, v)
        with pytest.raises(ValueError, match=r"new carry holds .*'new'"):
            variable_scan(lambda c, x: (StateVariable(x, label="new"), None), v, jnp.ones(2))
        with pytest.raises(ValueError, match=r"variable_scan .*StateVariable at result"):
            variable_scan(lambda c, x: (c, c), v, jnp.ones(2))
        variable_scan(lambda c, x: (c, c.value), v, jnp.ones(2))  # the repair


class TestRematAndCond:
    def test_remat(self):
        m, x = model(), jnp.ones(2)

        def through(m):
            return variable_remat(loss, policy=jax.checkpoint_policies.nothing_saveable)(m, x)

        gradient = variable_grad(through)(m)
        np.testing.assert_allclose(gradient["w"].value, variable_grad(loss)(model(), x)["w"].value)
        assert int(m["calls"].value) == 1
        jaxpr = str(
            jax.make_jaxpr(
                lambda w: variable_remat(loss)({**model(), "w": Parameter(label="w", value=w)}, x)
            )(jnp.ones(2))
        )
        assert "checkpoint" in jaxpr or "remat" in jaxpr

    @pytest.mark.parametrize("jitted", [False, True])
    def test_cond(self, jitted):
        s = StateVariable(1.0, label="s")

        def double(s, x):
            s.value = s.value * 2
            return x

        def keep(s, x):
            return -x

        def run(pred, s, x):
            return variable_cond(pred, double, keep, s, x)

        call = variable_jit(run) if jitted else run
        assert float(call(jnp.array(True), s, 5.0)) == 5.0
        assert float(call(jnp.array(False), s, 5.0)) == -5.0
        assert float(s.value) == 2.0


CLOSING = {
    "variable_jit": lambda f: variable_jit(f)(1.0),
    "variable_grad": lambda f: variable_grad(f)(1.0),
    "variable_vmap": lambda f: variable_vmap(f)(jnp.ones(2)),
    "variable_remat": lambda f: variable_remat(f)(1.0),
    "variable_scan": lambda f: variable_scan(lambda c, x: (f(c), None), 1.0, length=2),
    "variable_cond": lambda f: variable_cond(jnp.array(True), f, f, 1.0),
}


@pytest.mark.parametrize("transform", CLOSING)
def test_closed_over_variables_are_refused(transform):
    outside = Parameter(label="outside", value=2.0)
    with pytest.raises(ClosedOverVariableError, match=rf"{transform} of .*'outside'.*argument"):
        CLOSING[transform](lambda x: x * outside.value)


def test_variables_of_an_outer_function_are_closed_over_too():
    @variable_jit
    def outer(p):
        return variable_remat(lambda x: p.value * x)(1.0)

    with pytest.raises(ClosedOverVariableError, match="'p'"):
        outer(Parameter(label="p", value=1.0))

    @variable_jit
    def repaired(p):
        return variable_remat(lambda p, x: p.value * x)(p, 1.0)

    assert float(repaired(Parameter(label="p", value=1.0))) == 1.0


def test_compositions_agree():
    m = [Parameter(label="p", value=2.0), StateVariable(jnp.zeros(()), label="n")]

    def f(m, x):
        m[1].value = m[1].value + 1
        return jnp.sin(m[0].value * x)

    eager = variable_grad(f)(m, 1.0)
    jitted = variable_jit(variable_grad(f))(m, 1.0)
    rematted = variable_jit(variable_grad(variable_remat(f)))(m, 1.0)
    for gradient in (eager, jitted, rematted):
        np.testing.assert_allclose(gradient[0].value, np.cos(2.0), rtol=1e-6)
    assert float(m[1].value) == 3.0
    batch = jnp.arange(3.0)
    mapped = variable_vmap(variable_grad(f), in_axes=(None, 0))
    np.testing.assert_allclose(mapped(m, batch)[0].value, batch * np.cos(2 * batch), rtol=1e-6)
    assert float(m[1].value) == 4.0
