"""One of two processes that train together over loopback; prints its losses.

python two_processes.py PORT PROCESS FOLDER start|resume|alone
"""

import os
import pathlib
import signal
import sys

import jax
import optax
import toolshed_models as tm

from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import Linear
from pz_toolshed import saving
from pz_toolshed.basic_training import StatefulTrainer
from pz_toolshed.sharding_util import name_to_name_device_put, sharded_init, sharding_rows

OPTIMIZER = optax.adam(0.05)
RULES = {"neurons": "model", "embedding": "data"}


def build(init_base_rng):
    head = Linear.from_config("head", init_base_rng, {"embedding": 8}, {"vocabulary": 4})
    return Sequential([tm.block(init_base_rng, width=8, hidden=8), head])


def loss_fn(model, state, rng, x):
    out = model(x).unwrap("batch", "vocabulary")
    return (out**2).mean() + 0.1 * jax.random.normal(rng), state, {}


def main(port, process, folder, mode):
    if mode != "alone":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, process)
        assert len(jax.devices()) == 4
        assert len(jax.local_devices()) == 2
    grid = {"start": (2, 2), "resume": (4, 1), "alone": (1, 1)}[mode]
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(grid, ("data", "model"), axis_types=auto)
    model = sharded_init(build, tm.key(0), mesh=mesh, axis_name_to_mesh_name=RULES)
    trainer = StatefulTrainer.build(tm.key(3), model, OPTIMIZER, loss_fn)
    if mode == "resume":
        trainer = saving.resume(folder, trainer)
        assert int(trainer.state.value.step) == 3
        row = {r.name: r for r in sharding_rows(trainer.model)}["block/up.weights"]
        assert row.local_shape == (2, 8), row
    x = name_to_name_device_put(tm.random_input(batch=8, embedding=8), mesh, {"batch": "data"})
    for step in range(int(trainer.state.value.step), 6):
        if step == 3 and mode == "start":
            saving.save(folder, trainer, step=step, backend="orbax")
            trainer.step(x=x)
            print("killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        loss, _ = trainer.step_with_loss(x=x)
        print(f"\nloss {float(loss):.6f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4])
