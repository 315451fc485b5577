"""JAX's transformations: compiled, mapped and differentiated equal eager; carries keep structure."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx


def make(*names):
    sizes = {"a": 2, "b": 3, "c": 4}
    shape = tuple(sizes[name] for name in names)
    data = jnp.sin(jnp.arange(float(np.prod(shape)))).reshape(shape)
    return nx.wrap(data, *names)


PROGRAMS = {
    "softmax": lambda x: nx.softmax(x, "b"),
    "logsumexp": lambda x: nx.logsumexp(x, ("b", "c")),
    "standardize": lambda x: nx.standardize(x, ("c", "b")),
    "dot": lambda x: nx.dot(x, nx.expand(x, {"d": 2}) * 2, axis="c"),
    "index": lambda x: x[{"b": 1, "c": slice(1, 3)}],
    "lookup": lambda x: x[{"c": nx.wrap(jnp.array([3, 0]), "d")}],
    "update": lambda x: x.at[{"b": slice(0, 2)}].multiply(2.0),
    "sort": lambda x: nx.sort(x, "c"),
    "rearrange": lambda x: nx.rearrange(x, "b c ... -> (d: c b) ..."),
    "scan": lambda x: nx.scan(lambda s, v: (s + v, s * v), "b", x[{"b": 0}] * 0, x)[1],
    "cumulative": lambda x: nx.cumsum(x, "c") * nx.mean(x, "b"),
    "method": lambda x: x.untag("b", "c").std(axis=1),
    "lifted": lambda x: nx.nmap(lambda v: jnp.outer(v, v).sum(0))(x.untag("c")).tag("c"),
}


def values(x):
    names = sorted(x.named_shape)
    return x.untag_prefix(*names).unwrap()


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
class TestProgram:
    def test_compiled_equals_eager_in_values_and_structure(self, program):
        x = make("a", "b", "c")
        eager, compiled = program(x), jax.jit(program)(x)
        assert jax.tree_util.tree_structure(eager) == jax.tree_util.tree_structure(compiled)
        np.testing.assert_allclose(eager.data_array, compiled.data_array, rtol=1e-5, atol=1e-6)

    def test_order_of_axes_does_not_matter(self, program):
        x = make("a", "b", "c")
        reordered = jax.jit(lambda v: program(v.order_as("c", "a", "b")))(x)
        np.testing.assert_allclose(values(reordered), values(program(x)), rtol=1e-5, atol=1e-6)

    def test_mapped_over_a_name_equals_whole(self, program):
        x = make("a", "b", "c")
        mapped = jax.jit(nx.vmap_over("a")(program))(x)
        np.testing.assert_allclose(values(mapped), values(program(x)), rtol=1e-5, atol=1e-6)

    def test_gradient_does_not_depend_on_the_order_of_axes(self, program):
        x = make("a", "b", "c")

        @jax.jit
        def gradients(v):
            def loss(u):
                return (values(program(u)) ** 2).sum()

            return jax.grad(loss)(v), jax.grad(lambda u: loss(u.order_as("b", "c", "a")))(v)

        first, second = gradients(x)
        assert jax.tree_util.tree_structure(first) == jax.tree_util.tree_structure(x)
        np.testing.assert_allclose(first.data_array, second.data_array, rtol=1e-4, atol=1e-5)


def test_carries_keep_their_structure_with_order_like():
    x = make("a", "b")
    y = make("b", "a")

    def body(_, carry):
        return (y + carry).order_like(carry)

    result = jax.lax.fori_loop(0, 3, body, x)
    np.testing.assert_allclose(result.data_array, x.data_array + 3 * y.data_array.T, rtol=1e-6)
    chosen = jax.lax.cond(True, lambda v: (y + v).order_like(v), lambda v: v, x)
    assert list(chosen.named_shape) == ["a", "b"]


def test_checkpoint_and_jvp():
    x = make("a", "b")

    def loss(v):
        return jnp.sum(values(jnp_free(v)))

    jnp_free = jax.checkpoint(lambda v: nx.softmax(v * v, "b"))
    plain = jax.grad(lambda v: jnp.sum(values(nx.softmax(v * v, "b"))))(x)
    np.testing.assert_allclose(jax.grad(loss)(x).data_array, plain.data_array, atol=1e-6)
    primal, tangent = jax.jvp(lambda v: v * 2, (x,), (x,))
    np.testing.assert_allclose(tangent.data_array, primal.data_array)


def test_vmap_takes_the_leading_positional_axis():
    x = make("a", "b").untag("a").with_positional_prefix()
    result = jax.vmap(lambda v: v.sum("b"))(x)
    assert result.positional_shape == (2,)


def test_abstract_arrays_can_be_ordered():
    shape = jax.eval_shape(lambda: make("a", "b"))
    assert shape.order_as("b", "a").data_array.shape == (3, 2)
    assert shape.untag("b").positional_shape == (3,)
    assert nx.zeros_like(shape).named_shape == {"a": 2, "b": 3}


def test_symbolic_sizes_are_sizes():
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(lambda v: v + nx.sum(v, "b")))(
        nx.wrap(jnp.ones((2, 3)), "a", "b").__class__(
            nx.ones({}).named_axes.__class__([("a", n), ("b", 3)]),
            jax.ShapeDtypeStruct((n, 3), jnp.float32),
        )
    )
    assert exported.in_avals[0].shape[1] == 3


def test_an_eager_scan_compiles_once():
    traces = []

    def step(carry, v):
        traces.append(None)
        return carry + v, v

    x = make("a", "b")
    for _ in range(3):
        nx.scan(step, "b", x[{"b": 0}], x)
    assert len(traces) <= 2  # jax traces a body once, or twice to settle weak types


def test_an_eager_map_traces_once():
    traces = []

    def double(v):
        traces.append(None)
        return v * 2

    x = make("a", "b")
    counts = []
    for _ in range(3):
        nx.map(double, "b", x)
        counts.append(len(traces))
    assert counts[0] == counts[2]


def test_a_dynamic_update_is_no_scatter():
    cache, new = nx.zeros({"batch": 2, "token": 8, "head": 3}), nx.ones({"head": 3, "batch": 2})

    def write(c, v, i):
        return nx.dynamic_update_slice(c, v, {"token": i})

    text = str(jax.make_jaxpr(write)(cache, new, 3))
    assert "dynamic_update_slice" in text
    assert "scatter" not in text
    result = jax.jit(write, donate_argnums=0)(cache, new, 3)
    assert jax.tree_util.tree_structure(result) == jax.tree_util.tree_structure(
        nx.zeros_like(result)
    )
    assert float(result[{"token": 3}].sum(("batch", "head"))) == 6
    by_name = nx.zeros({"batch": 2, "token": 8, "head": 3})
    starts = nx.wrap([1, 5], "batch")
    ragged = write(by_name, new, starts)
    assert list(ragged.named_shape) == ["batch", "token", "head"]
    assert ragged.sum("head").unwrap("batch", "token")[1, 5] == 3
    assert "scatter" in str(jax.make_jaxpr(write)(by_name, new, starts))


def test_dynamic_slice_with_a_start_per_element():
    x = nx.wrap(jnp.arange(8).reshape(2, 4), "batch", "token")
    cut = jax.jit(functools.partial(nx.dynamic_slice, sizes={"token": 2}))(
        x, {"token": nx.wrap([0, 2], "batch")}
    )
    np.testing.assert_array_equal(cut.unwrap("batch", "token"), [[0, 1], [6, 7]])


def instructions(function, *args):
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", text, re.MULTILINE))


def test_a_compiled_program_is_the_hand_written_one():
    jax.config.update("jax_disable_most_optimizations", False)  # conftest puts it back

    def by_name(query, key):
        seen = nx.causal_mask({"query": 4, "key": 4})
        scores = nx.where(seen, nx.dot(query, key, axis="feature"), -1e9)
        return nx.softmax(scores, "key")

    def by_hand(query, key):
        seen = jnp.arange(4)[:, None] >= jnp.arange(4)[None]
        return jax.nn.softmax(jnp.where(seen, jnp.einsum("bqd,bkd->bqk", query, key), -1e9))

    def with_a_detour(query, key):
        return jnp.sort(by_hand(query, key), axis=0)

    data = jnp.ones((2, 4, 3))
    named = [nx.wrap(data, "batch", name, "feature") for name in ("query", "key")]
    assert instructions(by_name, *named) == instructions(by_hand, data, data)
    assert instructions(with_a_detour, data, data) != instructions(by_hand, data, data)


def test_chunked_maps_of_nothing():
    for shape in ({"a": 2, "b": 0}, {"a": 0, "b": 3}):
        result = nx.map(lambda v: v + 1, "a", nx.zeros(shape), batch_size=2)
        assert result.named_shape == shape
