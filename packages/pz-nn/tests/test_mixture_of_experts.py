import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, check_gradients, draw, named, raises, raw

from pz_core.selectors import select
from pz_core.variables import Parameter, unbind_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.mixture_of_experts import ExpertLinear, MixtureOfExperts


def layer_of(key, top_k=2, experts=4, dtype=jnp.float32, **options):
    return MixtureOfExperts.from_config(
        "m", key, {"e": 3}, {"h": 5}, experts, top_k, initializer=draw, dtype=dtype, **options
    )


# Eager calls compile one program for each of some twenty small operations; one test has them anyway.
run = variable_jit(lambda layer, x: layer(x))


def silu(x):
    return x / (1 + np.exp(-x))


def oracle(layer, x, normalise=True):
    """Every token through every expert; x (tokens, features). Returns the output and the loss."""
    w = {p.label: raw(p.value) for p in select(layer).at_instances_of(Parameter).get_sequence()}
    logits = x @ w["m/router.weights"]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    gate = silu(np.einsum("te,xeh->txh", x, w["m/gating_linear.weights"]))
    value = np.einsum("te,xeh->txh", x, w["m/value_linear.weights"])
    every = np.einsum("txh,xhe->txe", gate * value, w["m/out_linear.weights"])
    y, share = np.zeros_like(x), np.zeros(p.shape[1])
    for t in range(len(x)):
        chosen = np.argsort(-p[t], kind="stable")[: layer.top_k]
        share[chosen] += 1 / len(x)
        total = p[t][chosen].sum() if normalise else 1.0
        y[t] = (p[t][chosen, None] / total * every[t, chosen]).sum(0)
    return y, p.shape[1] * (share * p.mean(0)).sum()


@pytest.mark.smoke
@pytest.mark.parametrize("top_k, normalise", [(1, True), (2, True), (2, False), (4, False)])
def test_against_running_every_expert(key, top_k, normalise):
    layer = layer_of(key, top_k, normalise_weights=normalise)
    x = named(0, {"n": 2, "e": 3, "s": 5})
    y = run(layer, x)
    assert axis_order(y) == ["n", "s", "e"]
    expected, loss = oracle(layer, raw(x, "n", "s", "e").reshape(10, 3), normalise)
    assert_close(raw(y).reshape(10, 3), expected)
    assert layer.load_balancing_loss.label == "m.load_balancing_loss"
    assert_close(raw(layer.load_balancing_loss.value), loss)


def test_batch_axes_of_any_number_and_order(key):
    layer = layer_of(key)
    one = named(0, {"e": 3})
    assert_close(raw(run(layer, one)), oracle(layer, raw(one)[None])[0][0])
    many = named(1, {"a": 2, "b": 1, "c": 2, "e": 3})
    y = run(layer, many)
    assert_close(raw(run(layer, many.order_as("c", "e", "b", "a")), "a", "b", "c", "e"), raw(y))
    assert run(layer, nx.zeros({"n": 0, "e": 3})).named_shape == {"n": 0, "e": 3}


def test_compiled_and_stateless(key):
    layer = layer_of(key)
    x = named(0, {"n": 6, "e": 3})
    expected, loss = oracle(layer, raw(x))
    assert_close(raw(layer(x)), expected)
    assert_close(raw(layer.load_balancing_loss.value), loss)
    slots, values = unbind_variables(layer, freeze=True)
    output, after = jax.jit(lambda s, v, x: s.stateless_call(v, x))(slots, values, x)
    assert_close(raw(output), expected)
    by_label = {value.label: value for value in after}
    assert_close(raw(by_label["m.load_balancing_loss"].value), loss)


def test_weights_may_lie_in_any_order(key):
    linear = ExpertLinear.from_config("x", key, {"e": 3, "f": 2}, {"h": 5}, 4, initializer=draw)
    x, sizes = named(0, {"f": 2, "tokens": 6, "e": 3}), jnp.array([2, 0, 3, 1])
    experts = np.repeat(np.arange(4), sizes)
    weights = raw(linear.weights.value, "experts", "e", "f", "h")
    expected = np.einsum("tef,tefh->th", raw(x, "tokens", "e", "f"), weights[experts])
    for order in (
        ("experts", "e", "f", "h"),
        ("experts", "h", "f", "e"),
        ("e", "h", "experts", "f"),
    ):
        linear.weights.value = linear.weights.value.order_as(*order)
        assert_close(raw(linear(x, expert_group_sizes=sizes), "tokens", "h"), expected)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 5e-2), (jnp.float16, 1e-2)])
def test_low_precision(key, dtype, tolerance):
    layer = layer_of(key, experts=3, top_k=3, dtype=dtype)
    x = named(0, {"n": 6, "e": 3}, dtype)
    y = run(layer, x)
    assert y.dtype == dtype
    expected, _ = oracle(layer, raw(x))
    assert_close(raw(y), expected, tolerance * max(1, np.abs(expected).max()))


def test_gradients(float64, key):
    slots, values = unbind_variables(layer_of(key, dtype=jnp.float64), freeze=True)
    data = [value.value.data_array for value in values]

    def run(x, *arrays):
        given = [
            type(v)(v.label, nx.wrap(a, *v.value.named_shape), v.metadata)
            for v, a in zip(values, arrays, strict=True)
        ]
        output, after = slots.stateless_call(given, nx.wrap(x, "n", "e"))
        loss = next(v for v in after if v.label == "m.load_balancing_loss")
        return output.unwrap("n", "e"), loss.value.unwrap()

    check_gradients(run, np.random.default_rng(0).normal(size=(4, 3)), *data)


def test_without_a_place_for_the_loss_it_has_no_state(key):
    layer = layer_of(key)
    x = named(0, {"n": 6, "e": 3})
    bare = dataclasses.replace(layer, load_balancing_loss=None)
    assert_close(raw(bare(x)), raw(layer(x)), 0)
    assert len(unbind_variables(bare)[1]) == len(unbind_variables(layer)[1]) - 1


def test_uniform_routing_has_the_least_loss(key):
    layer = layer_of(key, top_k=2)
    layer.router.weights.value = layer.router.weights.value * 0
    run(layer, named(0, {"n": 6, "e": 3}))
    assert_close(raw(layer.load_balancing_loss.value), 2.0)


def test_errors(key):
    with raises(ValueError, "top_k", "5", "4"):
        layer_of(key, top_k=5)(named(0, {"n": 2, "e": 3}))
    with raises(ValueError, "MixtureOfExperts", "'e'"):
        layer_of(key)(named(0, {"n": 2, "f": 3}))
    linear = ExpertLinear.from_config("x", key, {"e": 3}, {"h": 2}, 4, initializer=draw)
    with raises(KeyError, "expert_group_sizes", "ExpertLinear"):
        linear(named(0, {"tokens": 2, "e": 3}))
    with raises(ValueError, "ExpertLinear", "{'e': 3}", "{'n': 2, 'e': 3}"):
        linear(named(0, {"n": 2, "e": 3}), expert_group_sizes=jnp.array([2, 0, 0, 0]))
    for axes in ({"e": 3}, {"experts": 2}, {"tokens": 2}):
        with raises(ValueError, "ExpertLinear.from_config('x')", str(axes)):
            ExpertLinear.from_config("x", None, {"e": 3}, axes, 4)
