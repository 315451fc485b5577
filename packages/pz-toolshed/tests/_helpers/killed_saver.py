"""Saves over an old checkpoint in children that are killed inside `save`; prints what is left.

    python killed_saver.py FOLDER POINTS

Each child is forked, blocks before one of the system calls that `save` makes, says so, and gets
SIGKILL. The points are spread evenly over all calls. One line per point:

    <call> <what the child was about to do> <seed of the checkpoint that loads afterwards>
"""

import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp

from pz_core.variables import Parameter
from pz_toolshed import _safetensors_file
from pz_toolshed.saving import load, save

NAMES = ("open", "write", "fsync", "replace", "close")


def model(seed):
    # A write for each tensor, so at least as many moments as points.
    return [Parameter(label=f"w{i}", value=jnp.full(100, seed)) for i in range(int(sys.argv[2]))]


def in_child(function):
    """Runs a function in a forked child; JAX's backend may start only there."""
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    return child


def save_and_stop_at(folder, point, pipe):
    real = {name: getattr(os, name) for name in NAMES}
    calls = 0

    def wrapped(name):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls - 1 == point:
                real["write"](pipe, name.encode())
                time.sleep(600)
            return real[name](*args, **kwargs)

        return call

    for name in NAMES:
        setattr(_safetensors_file.os, name, wrapped(name))
    save(folder, model(2))
    real["write"](pipe, f"calls {calls}".encode())


def run_child(folder, point):
    read_end, write_end = os.pipe()
    child = in_child(lambda: save_and_stop_at(folder, point, write_end))
    said = os.read(read_end, 100).decode()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read_end)
    os.close(write_end)
    return said


def main(root, points):
    first = root / "first"
    os.waitpid(in_child(lambda: save(first, model(1))), 0)
    counted = root / "counted"
    total = int(run_child(counted, None).removeprefix("calls "))
    chosen = sorted({round(i * (total - 1) / max(points - 1, 1)) for i in range(points)})
    inside = []
    for point in chosen:
        folder = root / str(point)
        folder.mkdir()
        (folder / "step_0000000000.safetensors").hardlink_to(first / "step_0000000000.safetensors")
        inside.append((point, run_child(folder, point), folder))
    for point, said, folder in inside:
        loaded = load(folder, model(0))
        (seed,) = {float(x) for p in loaded for x in (p.value.min(), p.value.max())}
        save(folder, model(3))  # the next run goes on, and clears up
        assert float(load(folder, model(0))[0].value[0]) == 3
        assert len(list(folder.iterdir())) == 1
        print(point, said, seed)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
