import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import unbind_params
from pz_nn.basic_ops import Elementwise
from pz_nn.grouping import Sequential
from pz_toolshed.jit_wrapper import Jitted

eqx = pytest.importorskip("equinox")
from pz_toolshed.equinox_modules import (  # noqa: E402
    ArgsAndKwargs,
    UnconvertibleModuleError,
    from_equinox,
)

X = jnp.linspace(-1, 1, 3)


class Inner(eqx.Module):
    linear: eqx.nn.Linear
    order: jax.Array
    name: str = eqx.field(static=True)

    def __call__(self, x):
        return self.linear(x)[self.order]


class Outer(eqx.Module):
    inners: list
    head: eqx.nn.Linear
    again: eqx.nn.Linear
    table: dict
    activation: object = jax.nn.relu

    def __call__(self, x):
        for inner in self.inners:
            x = self.activation(inner(x))
        rows = jax.vmap(self.head)(jnp.stack([x, x]))
        return rows.sum(0) * self.table["gain"] + self.again(x) + self.head.bias


def make():
    keys = jax.random.split(tm.key(0), 3)
    head = eqx.nn.Linear(3, 3, key=keys[2])
    return Outer(
        inners=[Inner(eqx.nn.Linear(3, 3, key=k), jnp.array([2, 0, 1]), "n") for k in keys[:2]],
        head=head,
        again=head,
        table={"gain": jnp.float32(2)},
    )


def capture(*args, **kwargs):
    return ArgsAndKwargs.capture(*args, **kwargs)


@pytest.mark.parametrize("jit", [False, True])
def test_output_equals_the_original(jit):
    net = from_equinox(make())
    net = Jitted(net) if jit else net
    np.testing.assert_allclose(net(capture(X)), make()(X), atol=1e-6)


def test_labels_and_sharing():
    net = from_equinox(make())
    assert {p.label for p in unbind_params(net)[1]} == {
        "table['gain']",
        "head.weight",
        "head.bias",
        "inners[0].linear.weight",
        "inners[0].linear.bias",
        "inners[1].linear.weight",
        "inners[1].linear.bias",
    }
    assert net.submodules["again"] is net.submodules["head"]
    assert list(net.submodules["inners[0]"].constants) == ["order"]


def zero(inputs):
    return 0 * inputs.args[0]


def test_replacing_a_shared_module_in_one_place_equals_editing_the_original():
    edited = select(from_equinox(make())).at(lambda n: n.submodules["again"]).set(Elementwise(zero))
    want = eqx.tree_at(lambda m: m.again, make(), eqx.nn.Lambda(lambda x: 0 * x))(X)
    np.testing.assert_allclose(edited(capture(X)), want, atol=1e-6)


class Tower(eqx.Module):
    dense: eqx.nn.Linear
    below: list

    def __init__(self, depth, key):
        self.dense = eqx.nn.Linear(3, 3, key=key)
        self.below = [Tower(depth - 1, jax.random.fold_in(key, depth))] if depth else []

    def __call__(self, x):
        x = jnp.tanh(self.dense(x))
        for floor in self.below:
            x = x + floor(x)
        return x


def every_place(layer, path=()):
    for name, submodule in layer.submodules.items():
        yield (*path, name)
        yield from every_place(submodule, (*path, name))


def test_replacing_any_submodule_at_each_depth_equals_editing_the_original():
    original = Tower(2, tm.key(1))
    net = from_equinox(original)
    places = list(every_place(net))
    assert sorted(len(path) for path in places) == [1, 1, 2, 2, 3]
    for path in places:

        def place(layer, path=path):
            for name in path:
                layer = layer.submodules[name]
            return layer

        def where(module, path=path):
            for name, _, index in (name.partition("[") for name in path):
                module = getattr(module, name)
                module = module[int(index[:-1])] if index else module
            return module

        want = eqx.tree_at(where, original, eqx.nn.Lambda(lambda x: 0 * x))(X)
        assert not np.allclose(want, net(capture(X))), path
        replaced = select(net).at(place).set(Elementwise(zero))
        np.testing.assert_allclose(replaced(capture(X)), want, atol=1e-6, err_msg=str(path))
        followed = (
            select(net)
            .at(place)
            .apply(lambda layer: Sequential([layer, Elementwise(lambda x: 0 * x)]))
        )
        np.testing.assert_allclose(followed(capture(X)), want, atol=1e-6, err_msg=str(path))


def test_equinox_layers():
    mlp = eqx.nn.MLP(3, 2, 4, 2, key=tm.key(1))
    net = from_equinox(mlp)
    np.testing.assert_allclose(net(capture(X)), mlp(X), atol=1e-6)
    assert "layers[0].weight" in [p.label for p in unbind_params(net)[1]]
    layers = eqx.nn.Sequential([eqx.nn.Linear(3, 3, key=tm.key(2)), eqx.nn.Dropout(0.5)])
    key = tm.key(3)
    np.testing.assert_allclose(
        from_equinox(layers)(capture(X, key=key)), layers(X, key=key), atol=1e-6
    )


def test_gradients_reach_the_parameters():
    slots, params = unbind_params(from_equinox(make()), freeze=True)
    grads = jax.grad(lambda ps: slots.bind_variables(ps)(capture(X)).sum())(params)
    by_label = {g.label: g.value for g in grads}
    want = eqx.filter_grad(lambda m: m(X).sum())(make())
    np.testing.assert_allclose(
        by_label["inners[0].linear.weight"], want.inners[0].linear.weight, rtol=1e-4, atol=1e-6
    )
    # One parameter here, two leaves there.
    np.testing.assert_allclose(
        by_label["head.weight"], want.head.weight + want.again.weight, rtol=1e-4, atol=1e-6
    )


def test_errors():
    with pytest.raises(TypeError, match=r"must be an eqx.Module, got a int"):
        from_equinox(3)
    with pytest.raises(TypeError, match=r"must be an ArgsAndKwargs"):
        from_equinox(make())(X)
    norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="ema")
    with pytest.raises(UnconvertibleModuleError, match=r"is an eqx.nn.StateIndex"):
        from_equinox(norm)
    net = (
        select(from_equinox(make()))
        .at(lambda n: n.submodules["head"])
        .set(Elementwise(lambda inputs: inputs.args[0]))
    )
    with pytest.raises(AttributeError, match=r"'bias' was asked of the submodule 'head'"):
        net(capture(X))


class Scanned(eqx.Module):
    layers: eqx.nn.Linear

    def __call__(self, x):
        arrays, rest = eqx.partition(self.layers, eqx.is_array)
        return jax.lax.scan(lambda x, one: (eqx.combine(one, rest)(x), None), x, arrays)[0]


def test_a_module_that_scans_over_its_submodule_is_named():
    keys = jax.random.split(tm.key(0), 2)
    original = Scanned(eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(keys))
    assert original(X).shape == X.shape
    with pytest.raises(ValueError, match="scan") as info:
        from_equinox(original)(capture(X))
    (note,) = [n for n in info.value.__notes__ if "converted module" in n]
    assert "Scanned: stand-ins took the places of its submodules layers." in note
