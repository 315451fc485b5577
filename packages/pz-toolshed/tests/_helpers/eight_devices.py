"""Compares sharded runs on 8 forced CPU devices with one device; prints a line per case.

python eight_devices.py FOLDER
"""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import unbind_params, unbind_variables
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import Linear
from pz_toolshed import saving
from pz_toolshed._training_step import compiled_step
from pz_toolshed.basic_training import StatefulTrainer
from pz_toolshed.jit_wrapper import Jitted
from pz_toolshed.sharding_util import (
    ConstrainShardingByName,
    name_to_name_device_put,
    shard_model,
    sharded_init,
    sharding_rows,
    transformer_rules,
)

WIDTH, HIDDEN, BATCH = 8, 16, 8
OPTIMIZER = optax.adam(0.05)  # one object: compiled steps are kept by it


def mesh(data, model):
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=auto)


def build(init_base_rng):
    head = Linear.from_config("head", init_base_rng, {"embedding": WIDTH}, {"vocabulary": 4})
    return Sequential([tm.stack(2, width=WIDTH, hidden=HIDDEN), head])


def loss_fn(model, state, rng, x):
    out = model(x).unwrap("batch", "vocabulary")
    return (out**2).mean() + 0.1 * jax.random.normal(rng), state, {}


def trained(model, x, steps=4):
    trainer = StatefulTrainer.build(tm.key(3), model, optax.adam(0.05), loss_fn, donate_states=True)
    losses = [float(trainer.step_with_loss(x=x)[0]) for _ in range(steps)]
    return trainer, losses


def close(actual, expected, atol=2e-5):
    tm.assert_trees_close(
        jax.tree.map(np.asarray, actual), jax.tree.map(np.asarray, expected), atol
    )


def output_and_gradient(net, inputs):
    slots, params = unbind_params(net, freeze=True)

    def loss(params):
        out = slots.bind_variables(params)(inputs)
        return (out.unwrap("batch", "vocabulary") ** 2).mean(), out

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@functools.cache
def on_one_device():
    x = tm.random_input(batch=BATCH, embedding=WIDTH)
    want = output_and_gradient(build(tm.key(0)), x)
    model = build(tm.key(0))
    trainer, losses = trained(model, x)
    return x, want, trainer, losses, unbind_params(model, freeze=True)[1]


def check(name, rules, parameter_rules, grid):
    m = mesh(*grid)
    x, want, _, single_losses, single_parameters = on_one_device()
    model = shard_model(build(tm.key(0)), m, parameter_rules)
    sharded_x = name_to_name_device_put(x, m, rules)
    row = row_of(model)
    parts = 1
    for axis in ("embedding", "neurons"):
        parts *= m.shape[parameter_rules[axis]] if axis in parameter_rules else 1
    assert row.global_shape == (2, WIDTH, HIDDEN)
    assert row.bytes_per_device == 2 * WIDTH * HIDDEN * 4 // parts, row
    close(output_and_gradient(model, sharded_x), want)
    before = step_compilations()
    trainer, losses = trained(model, sharded_x)
    assert step_compilations() == before + 1
    np.testing.assert_allclose(losses, single_losses, atol=2e-5)
    close(unbind_params(model, freeze=True)[1], single_parameters, 1e-4)
    assert row_of(model).bytes_per_device == row.bytes_per_device
    moments = [r for r in sharding_rows(trainer.state) if r.global_shape == row.global_shape]
    assert len(moments) == 2
    assert all(r.bytes_per_device == row.bytes_per_device for r in moments), moments
    print("ok", name)
    return trainer


def step_compilations():
    return compiled_step(True)._cache_size()


def row_of(model):
    return {r.name: r for r in sharding_rows(model)}["net/blocks/up.weights"]


def check_saving(trainer, folder):
    """What was saved on one mesh is loaded onto another, and trained on."""
    saving.save(folder, trainer)
    x, _, alone, *_ = on_one_device()
    m = mesh(2, 4)
    other = shard_model(build(tm.key(1)), m, {"neurons": "model"})
    resumed = saving.load(
        folder, StatefulTrainer.build(tm.key(3), other, OPTIMIZER, loss_fn, donate_states=True)
    )
    assert row_of(resumed.model).local_shape == (2, WIDTH, HIDDEN // 4)
    close(unbind_variables(resumed, freeze=True)[1], unbind_variables(trainer, freeze=True)[1], 0)
    sharded_x = name_to_name_device_put(x, m, {"batch": "data"})
    for _ in range(2):
        got, want = (float(t.step_with_loss(x=y)[0]) for t, y in ((resumed, sharded_x), (alone, x)))
        np.testing.assert_allclose(got, want, atol=1e-4)
    print("ok saving")


def check_initialisation_and_constraints():
    m, rules = mesh(4, 2), {"embedding": "data", "neurons": "model"}
    made = sharded_init(build, tm.key(0), mesh=m, axis_name_to_mesh_name=rules)
    close(
        unbind_params(made, freeze=True)[1], unbind_params(build(tm.key(0)), freeze=True)[1], 1e-6
    )
    row = {r.name: r for r in sharding_rows(made)}["net/blocks/up.weights"]
    assert row.mesh_axes == (None, "data", "model"), row
    constrained = (
        select(made)
        .at_instances_of(Linear)
        .apply(lambda layer: Sequential([layer, ConstrainShardingByName(m, {"batch": "data"})]))
    )
    x = tm.random_input(batch=BATCH, embedding=WIDTH)
    out = Jitted(constrained)(x)
    close(out, made(x))
    assert out.data_array.sharding.shard_shape(out.data_array.shape)[0] == BATCH // 4
    print("ok initialisation")


def main(folder):
    assert len(jax.devices()) == 8
    data = transformer_rules(data="data")
    tensor = transformer_rules(data="data", tensor="model")
    full = {
        k: v
        for k, v in transformer_rules(data="data", tensor="model", fully_sharded=True).items()
        if k != "batch"
    }
    check("data", data, {}, (8, 1))
    check("tensor", {"batch": "data"}, tensor, (2, 4))
    check_saving(check("full", {"batch": "data"}, full, (4, 2)), folder)
    check_initialisation_and_constraints()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
