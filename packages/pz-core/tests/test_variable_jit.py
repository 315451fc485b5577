"""`variable_jit` against `jax.jit`, and what may not cross."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_core import (
    ClosedOverVariableError,
    Parameter,
    ParameterSlot,
    StateVariable,
    VariableConflictError,
    bind_variables,
    unbind_variables,
    variable_jit,
)


@pytest.fixture
def counter():
    return StateVariable(jnp.zeros(()), label="counter")


def count(counter, x=1):
    """Counts."""
    counter.value = counter.value + x
    return counter.value * 10


@pytest.mark.smoke
class TestCalls:
    def test_updates_and_compiles_once(self, counter):
        traces = []

        @variable_jit
        def f(tree):
            traces.append(1)
            return count(tree["c"])

        assert [float(f({"c": counter})) for _ in range(3)] == [10.0, 20.0, 30.0]
        assert float(counter.value) == 3.0
        assert len(traces) == 1

    def test_agrees_with_eager(self):
        def run(call):
            model = [
                Parameter(label="w", value=jnp.arange(3.0)),
                StateVariable({"a": 1.0}, label="s"),
            ]

            def f(model, x):
                model[1].value = {"a": (model[0].value * x).sum(), "new": x}
                model[0].value = model[0].value[:2]
                return model[0].value + 1

            result = call(f)(model, 2.0)
            return result, model[0].value, model[1].value

        jax.tree.map(np.testing.assert_allclose, run(lambda f: f), run(variable_jit))

    def test_one_variable_in_two_arguments(self, counter):
        @variable_jit
        def f(a, b):
            assert a is b["x"]
            a.value = a.value + 1

        f(counter, b={"x": counter})
        assert float(counter.value) == 1.0

    def test_unassigned_variables_keep_their_arrays(self, counter):
        parameter = Parameter(label="w", value=jnp.ones(2))
        before = parameter.value
        variable_jit(lambda p, c: count(c))(parameter, counter)
        assert parameter.value is before

    def test_structure_dtype_and_none(self, counter):
        @variable_jit
        def f(c, what):
            c.value = {"tuple": (1, 2), "none": None, "half": jnp.ones(2, jnp.bfloat16)}[what]

        g = functools.partial(variable_jit, static_argnames="what")(f.__wrapped__)
        for what in ("tuple", "none", "half"):
            g(counter, what=what)
        assert counter.value.dtype == jnp.bfloat16
        g(counter, what="none")
        assert counter.value is None

    def test_exceptions_leave_variables_alone(self, counter):
        @variable_jit
        def f(c):
            c.value = c.value + 1
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            f(counter)
        assert float(counter.value) == 0.0

    def test_local_variables(self):
        @variable_jit
        def f(x):
            local = StateVariable(x)
            local.value += 1
            return local.value

        assert float(f(1.0)) == 2.0

    def test_nesting(self, counter):
        inner = variable_jit(count)

        @variable_jit
        def outer(c):
            inner(c)
            return inner(c)

        assert float(outer(counter)) == 20.0
        assert float(counter.value) == 2.0

    def test_slots_and_values_may_be_returned(self, counter):
        @variable_jit
        def f(tree, slot):
            assert slot == ParameterSlot("free")
            return unbind_variables(tree, freeze=True)

        slots, values = f([counter], ParameterSlot("free"))
        assert float(bind_variables(slots, values, unfreeze_as_copy=True)[0].value) == 0.0

    def test_metadata_and_labels_are_part_of_the_key(self):
        traces = []

        @variable_jit
        def f(v):
            traces.append(dict(v.metadata))
            return v.value

        variable = StateVariable(1.0, label="a", metadata={"m": 1})
        f(variable)
        f(variable)
        variable.metadata["m"] = 2
        f(variable)
        variable.label = "b"
        f(variable)
        assert traces == [{"m": 1}, {"m": 2}, {"m": 2}]

    def test_what_is_no_array(self, counter):
        with pytest.raises(TypeError, match=r"args\[1\]\['a'\] is a str.*static"):
            variable_jit(lambda c, x: count(c))(counter, {"a": "text"})
        f = variable_jit(lambda c, x: count(c), static_argnums=1)  # the repair
        assert float(f(counter, "text")) == 10.0


@pytest.mark.smoke
class TestFunctions:
    def test_signature_name_and_docstring(self):
        jitted = variable_jit(count)
        assert jitted.__name__ == "count"
        assert jitted.__wrapped__ is count
        assert inspect.signature(jitted) == inspect.signature(count)
        assert jitted.__doc__.startswith("Jitted version of `count`.")
        assert "Counts." in jitted.__doc__

    def test_partials_callables_and_builtins(self, counter):
        assert float(variable_jit(functools.partial(count, x=2))(counter)) == 20.0

        class Callable:
            def __call__(self, c):
                return count(c)

        assert float(variable_jit(Callable())(counter)) == 30.0
        made = variable_jit(dict, static_argnames="unused")(a=1.0)  # has no signature
        assert float(made["a"]) == 1.0
        assert variable_jit(functools.partial(count, x=2)).__name__ == "count"

    def test_as_a_decorator_with_options(self, counter):
        @variable_jit(static_argnames="times")
        def f(c, times):
            for _ in range(times):
                count(c)

        f(counter, times=3)
        f(counter, 2)
        assert float(counter.value) == 5.0

    def test_as_a_method(self, counter):
        class Trainer:
            @variable_jit(static_argnums=0)
            def step(self, c):
                return count(c)

        assert float(Trainer().step(counter)) == 10.0

    def test_static_arguments(self, counter):
        traces = []

        @functools.partial(variable_jit, static_argnums=(1,))
        def f(c, n, x=0.0):
            traces.append(n)
            return count(c) + n

        f(counter, 1, x=2.0)
        f(counter, 1, x=3.0)
        f(counter, 2)
        f(counter, n=1)
        f(counter, 1.0)
        assert traces[:2] == [1, 2]
        assert type(traces[-1]) is float
        with pytest.raises(ValueError, match="static argument 1 is a list, which is not hashable"):
            f(counter, [1])
        f(counter, (1,)[0])  # the repair: something hashable

    def test_lower_trace_and_compile(self, counter):
        f = variable_jit(count)
        assert "count" in f.lower(counter).as_text()
        assert "add" in str(f.trace(counter).jaxpr)
        compiled = f.trace(counter).lower().compile()
        assert float(compiled(counter)) == 10.0
        assert float(counter.value) == 1.0
        assert compiled.cost_analysis() is not None
        other = StateVariable(jnp.zeros(()), label="other")
        with pytest.raises(TypeError, match=r"other labels or metadata.*Lower it again"):
            compiled(other)
        f.lower(other).compile()(other)  # the repair
        f.clear_cache()

    def test_traced_name(self):
        @variable_jit
        def a_telling_name(x):
            return x + 1

        assert "a_telling_name" in a_telling_name.lower(1.0).as_text()

    def test_in_shardings(self, counter):
        mesh = jax.sharding.Mesh(jax.devices()[:1], "d")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
        weights = Parameter(label="w", value=jnp.ones(4))

        def f(w, n, c, x):
            count(c)
            return jax.tree.map(lambda y: y + n, (w["w"].value, x))

        jitted = variable_jit(f, static_argnums=1, in_shardings=({"w": sharding}, None, sharding))
        results = jitted({"w": weights}, 2, counter, jnp.ones(4))
        assert weights.value.sharding == sharding
        assert all(result.sharding.is_equivalent_to(sharding, 1) for result in results)
        assert float(counter.value) == 1.0
        with pytest.raises(ValueError, match=r"keyword arguments \['x'\].*by position"):
            jitted({"w": weights}, 2, counter, x=jnp.ones(4))
        with pytest.raises(ValueError, match="3 entries for 2 arguments"):
            variable_jit(count, in_shardings=(None, None, None))(counter, 1)
        assert variable_jit(count, in_shardings=(None, None))(counter, 1) is not None  # the repair

    def test_out_shardings(self, counter):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        f = variable_jit(count, out_shardings=device)
        assert f(counter).sharding == device
        assert float(counter.value) == 1.0


@pytest.mark.smoke
class TestDonation:
    def test_variables(self, counter):
        before = counter.value
        kept = Parameter(label="w", value=jnp.ones(3))
        f = variable_jit(lambda c, p: count(c), donate_variables=True)
        f(counter, kept)
        assert float(counter.value) == 1.0
        assert before.is_deleted()
        assert kept.value.tolist() == [1.0, 1.0, 1.0]
        f(counter, kept)

    def test_two_variables_with_one_buffer(self):
        array = jnp.ones(3)
        pair = [Parameter(label=i, value=array) for i in "ab"]
        variable_jit(lambda p: None, donate_variables=True)(pair)
        assert [p.value.tolist() for p in pair] == [[1.0] * 3] * 2

    @pytest.mark.parametrize("options", [{"donate_argnums": 1}, {"donate_argnames": "x"}])
    def test_other_arguments(self, counter, options):
        x = jnp.ones(4)
        f = variable_jit(lambda c, x: (count(c), x + 1)[1], **options)
        f(counter, x)
        assert x.is_deleted()

    def test_both(self, counter):
        x = jnp.ones(())
        f = variable_jit(
            lambda c, x: (count(c), x + 1)[1], donate_argnames="x", donate_variables=True
        )
        f(counter, x=x)
        assert x.is_deleted()


@pytest.mark.smoke
class TestErrors:
    def test_variables_in_the_result(self, counter):
        f = variable_jit(lambda c: {"a": [c]})
        with pytest.raises(
            ValueError, match=r"StateVariable at result\['a'\]\[0\].*unbind_variables"
        ):
            f(counter)

    def test_conflicts(self, counter):
        other = StateVariable(1.0, label="counter")
        with pytest.raises(VariableConflictError, match="counter"):
            variable_jit(lambda a, b: None)(counter, other)

    def test_relabelling_inside(self, counter):
        def relabel(c):
            c.value = c.value + 1
            c.label = "new"

        with pytest.raises(ValueError, match=r"changed the label of .*'counter'.*outside"):
            variable_jit(relabel)(counter)
        assert float(counter.value) == 0.0
        counter.label = "new"  # the repair
        assert variable_jit(count)(counter) is not None

    def test_metadata_inside(self, counter):
        def edit(c):
            c.metadata["m"] = 1

        with pytest.raises(ValueError, match=r"changed the metadata .* from \{\} to \{'m': 1\}"):
            variable_jit(edit)(counter)
        assert counter.metadata == {}

    @pytest.mark.parametrize("use", ["read", "write", "freeze", "pass on"])
    def test_closed_over_variables(self, counter, use):
        def f(x):
            if use == "read":
                return counter.value + x
            if use == "write":
                counter.value = x
            elif use == "freeze":
                return counter.freeze().value
            else:
                return variable_jit(count)(counter)
            return x

        with pytest.raises(
            ClosedOverVariableError, match=r"variable_jit of 'f'.*labelled 'counter'"
        ):
            variable_jit(f)(1.0)
        assert float(counter.value) == 0.0
        assert float(variable_jit(count)(counter)) == 10.0  # the repair

    def test_plain_jit_bakes_a_closed_over_variable_in(self, counter):
        f = jax.jit(lambda x: counter.value + x)
        assert float(f(1.0)) == 1.0
        counter.value = jnp.ones(())
        assert float(f(1.0)) == 1.0

    def test_scopes_end(self, counter):
        with pytest.raises(ClosedOverVariableError):
            variable_jit(lambda: counter.value)()
        assert float(counter.value) == 0.0
