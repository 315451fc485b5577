from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import Parameter, StateVariable, unbind_params, unbind_state_vars
from pz_nn.basic_ops import Elementwise
from pz_nn.grouping import Sequential
from pz_toolshed.jit_wrapper import Jitted

nn = pytest.importorskip("flax.linen")
from pz_toolshed.unflaxify import (  # noqa: E402
    ArgsAndKwargs,
    FlaxVarLabel,
    InterceptedFlaxModuleMethod,
    InterceptedFlaxScopeData,
    unflaxify_apply,
)

X = jnp.linspace(-1, 1, 8).reshape(2, 4)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, ())
        return nn.Dense(2)(nn.relu(nn.Dense(3)(x))) * scale


class Encoder(nn.Module):
    def setup(self):
        self.first = nn.Dense(3)
        self.second = nn.Dense(3)
        self.offset = self.param("offset", nn.initializers.ones, (3,))

    def encode(self, x):
        return self.second(nn.relu(self.first(x))) + self.offset

    def __call__(self, x):
        return self.encode(x)


class Nested(nn.Module):
    def setup(self):
        self.encoder = Encoder()
        self.head = nn.Dense(2)

    def __call__(self, x, scale=1.0):
        return self.head(self.encoder(x)) * scale


def capture(*args, **kwargs):
    return ArgsAndKwargs.capture(*args, **kwargs)


def labels(layer):
    return [p.label for p in unbind_params(layer)[1]]


@pytest.mark.parametrize("module", [Mlp(), Nested()], ids=["compact", "setup"])
@pytest.mark.parametrize("jit", [False, True])
def test_output_equals_flax(module, jit):
    variables = module.init(tm.key(0), X)
    net = unflaxify_apply(module, variables, X)
    net = Jitted(net) if jit else net
    np.testing.assert_allclose(net(capture(X * 2)), module.apply(variables, X * 2), rtol=1e-6)


def test_structure_and_labels():
    net = unflaxify_apply(Mlp(), Mlp().init(tm.key(0), X), X)
    assert list(net.submodule_calls) == [(0, "Dense_1.__call__"), (1, "Dense_0.__call__")]
    assert set(labels(net)) == {
        "scale",
        "Dense_0.kernel",
        "Dense_0.bias",
        "Dense_1.kernel",
        "Dense_1.bias",
    }
    assert isinstance(net.scope_data, InterceptedFlaxScopeData)
    nested = unflaxify_apply(Nested(), Nested().init(tm.key(0), X), X)
    assert "encoder.first.kernel" in labels(nested)
    assert set(nested.submodule_calls[0, "encoder.__call__"].submodule_calls) == {
        (0, "first.__call__"),
        (1, "second.__call__"),
    }
    assert nested.scope_data is None


class Tower(nn.Module):
    depth: int

    def setup(self):
        self.dense = nn.Dense(4)
        self.below = [Tower(self.depth - 1)] if self.depth else []

    def __call__(self, x):
        x = jnp.tanh(self.dense(x))
        for floor in self.below:
            x = x + floor(x)
        return x


def every_place(layer, path=()):
    for call, submodule in layer.submodule_calls.items():
        yield (*path, call)
        yield from every_place(submodule, (*path, call))


def test_replacing_any_submodule_at_each_depth_equals_editing_the_parameters():
    variables = Tower(2).init(tm.key(0), X)
    net = unflaxify_apply(Tower(2), variables, X)
    places = list(every_place(net))
    assert sorted(len(path) for path in places) == [1, 1, 2, 2, 3]
    for path in places:

        def place(layer, path=path):
            for call in path:
                layer = layer.submodule_calls[call]
            return layer

        # Without weights and biases each of these modules gives 0.
        params = jax.tree.map(lambda x: x, variables["params"])
        *parents, last = [name.partition(".")[0] for _, name in path]
        node = params
        for name in parents:
            node = node[name]
        node[last] = jax.tree.map(jnp.zeros_like, node[last])
        want = Tower(2).apply({"params": params}, X)
        assert not np.allclose(want, net(capture(X))), path
        replaced = select(net).at(place).set(Elementwise(lambda inputs: 0 * inputs.args[0]))
        np.testing.assert_allclose(replaced(capture(X)), want, atol=1e-6, err_msg=str(path))
        followed = (
            select(net)
            .at(place)
            .apply(lambda layer: Sequential([layer, Elementwise(lambda x: 0 * x)]))
        )
        np.testing.assert_allclose(followed(capture(X)), want, atol=1e-6, err_msg=str(path))


def test_call_time_arguments_and_methods():
    variables = Nested().init(tm.key(0), X)
    net = unflaxify_apply(Nested(), variables, X, scale=1.0)
    np.testing.assert_allclose(
        net(capture(X, scale=3.0)), Nested().apply(variables, X, scale=3.0), rtol=1e-6
    )
    encoder = Encoder()
    variables = encoder.init(tm.key(0), X)
    encode = unflaxify_apply(encoder, variables, X, method="encode")
    assert encode.method_name == "encode"
    np.testing.assert_allclose(encode(capture(X)), encoder.apply(variables, X), rtol=1e-6)


class Counts(nn.Module):
    @nn.compact
    def __call__(self, x):
        mutable = self.variable("mv", "n", lambda: jnp.int32(10))
        fixed = self.variable("iv", "k", lambda: jnp.float32(2))
        mutable.value = mutable.value + 2
        return x * fixed.value + self.param("bias", nn.initializers.ones, ())


class Shares(nn.Module):
    def setup(self):
        self.shared = Counts()
        self.other = Counts()

    def __call__(self, x):
        return self.other(self.shared(x) + self.shared(2 * x))


def test_shared_submodules_with_mutable_and_immutable_collections():
    variables = Shares().init(tm.key(0), X)
    variables = {**variables, "mv": jax.tree.map(lambda _: jnp.int32(10), variables["mv"])}
    net = unflaxify_apply(Shares(), variables, X, mutable=["mv"])
    want, changed = Shares().apply(variables, X, mutable=["mv"])
    np.testing.assert_allclose(net(capture(X)), want, rtol=1e-6)
    states = {v.label: int(v.value) for v in unbind_state_vars(net)[1]}
    assert states == {FlaxVarLabel("mv", "shared.n"): 14, FlaxVarLabel("mv", "other.n"): 12}
    assert int(changed["mv"]["shared"]["n"]) == 14
    assert labels(net) == ["shared.bias", "other.bias"]
    first = net.submodule_calls[0, "shared.__call__"]
    assert first.scope_data.immutable_variables["iv"]["k"] == 2
    again = net.submodule_calls[1, "shared.__call__"]
    assert again.scope_data.parameters["bias"] is first.scope_data.parameters["bias"]


class Borrower(nn.Module):
    lent: Any

    @nn.compact
    def __call__(self, x):
        return self.lent(x) + nn.Dense(3)(x)


class Lender(nn.Module):
    def setup(self):
        self.dense = nn.Dense(3)
        self.borrower = Borrower(self.dense)

    def __call__(self, x):
        return self.borrower(x) * self.dense(x)


def test_a_module_passed_to_another():
    variables = Lender().init(tm.key(0), X)
    net = unflaxify_apply(Lender(), variables, X)
    np.testing.assert_allclose(net(capture(X)), Lender().apply(variables, X), rtol=1e-6)
    assert sorted(labels(net)) == [
        "borrower.Dense_0.bias",
        "borrower.Dense_0.kernel",
        "dense.bias",
        "dense.kernel",
    ]


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(x) + jax.random.normal(self.make_rng("noise"))


class NoisyTwice(nn.Module):
    def setup(self):
        self.noisy = Noisy()

    def __call__(self, x):
        return self.noisy(x) + self.noisy(x)


def test_random_streams():
    rngs = {"dropout": tm.key(0), "noise": tm.key(1)}
    net = unflaxify_apply(NoisyTwice(), {}, X, rngs=rngs)
    streams = {"dropout": tm.stream(0), "noise": tm.stream(1)}
    assert net(capture(X), random_streams=streams).shape == X.shape
    assert [int(s.offset.value) for s in streams.values()] == [2, 2]
    with pytest.raises(TypeError, match=r"'noise', which is missing.*\['dropout'\]"):
        net(capture(X), random_streams={"dropout": tm.stream()})
    with pytest.raises(TypeError, match=r"rngs must be a mapping"):
        unflaxify_apply(NoisyTwice(), {}, X, rngs=tm.key(0))


class Lifted(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(Mlp)(name="again")(x)
        x = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(3)(x)
        return nn.Dense(2, name="last")(x)


def test_lifted_modules_run_as_part_of_their_parent():
    variables = Lifted().init(tm.key(0), X)
    net = unflaxify_apply(Lifted(), variables, X)
    assert list(net.submodule_calls) == [(0, "last.__call__")]
    np.testing.assert_allclose(net(capture(X)), Lifted().apply(variables, X), rtol=1e-6)
    assert sorted(net.scope_data.parameters) == ["VmapDense_0", "again"]


def test_gradients_reach_the_parameters():
    variables = Mlp().init(tm.key(0), X)
    net = unflaxify_apply(Mlp(), variables, X)
    slots, params = unbind_params(net, freeze=True)

    def loss(params):
        return slots.bind_variables(params)(capture(X)).sum()

    grads = {g.label: g.value for g in jax.grad(loss)(params)}
    want = jax.grad(lambda p: Mlp().apply({"params": p}, X).sum())(variables["params"])
    np.testing.assert_allclose(grads["Dense_0.kernel"], want["Dense_0"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(grads["scale"], want["scale"], rtol=1e-5)


class Depends(nn.Module):
    def setup(self):
        self.one, self.two = nn.Dense(4), nn.Dense(4)

    def __call__(self, x, twice=False):
        return self.two(self.one(x)) if twice else self.one(x)


def test_errors():
    variables = Depends().init(tm.key(0), X, twice=True)
    net = unflaxify_apply(Depends(), variables, X)
    with pytest.raises(KeyError, match=r"call 1 on a submodule is 'two.__call__', but was none"):
        net(capture(X, twice=True))
    # The repair: trace with arguments like these.
    unflaxify_apply(Depends(), variables, X, twice=True)(capture(X, twice=True))
    with pytest.raises(TypeError, match="must be an ArgsAndKwargs"):
        net(X)
    data = InterceptedFlaxScopeData({}, {"params": {"a": StateVariable(1.0)}}, {}, frozenset())
    bad = InterceptedFlaxModuleMethod(nn.Dense(2), "__call__", data, {})
    with pytest.raises(ValueError, match=r"'params' belongs into scope_data.parameters"):
        bad(capture(X))
    assert isinstance(unbind_params(net)[1][0], Parameter)
