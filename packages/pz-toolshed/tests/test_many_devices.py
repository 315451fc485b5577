"""Runs on several devices and processes, which a test process cannot have: in subprocesses."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

HELPERS = pathlib.Path(__file__).parent / "_helpers"


def start(script, *args, devices):
    forced = f"--xla_force_host_platform_device_count={devices}"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {forced}",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", HELPERS / script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(script, *args, devices):
    return finish(start(script, *args, devices=devices))


def run_together(folder, mode):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start("two_processes.py", port, i, folder, mode, devices=2) for i in range(2)]
    return [finish(process) for process in both]


def test_two_processes_train_save_are_killed_and_resume_on_another_mesh(tmp_path):
    pytest.importorskip("optax")
    pytest.importorskip("orbax.checkpoint")
    killed = run_together(tmp_path, "start")
    # The first to be killed may take the other along before its own signal comes: the runtime then
    # ends it with another signal, or with an exception in the step that both take.
    codes = [done.returncode for done in killed]
    assert -signal.SIGKILL in codes, killed[0].stderr
    assert 0 not in codes, killed[0].stderr
    resumed = run_together(tmp_path, "resume")
    assert [done.returncode for done in resumed] == [0, 0], resumed[0].stderr
    alone = run("two_processes.py", 0, 0, tmp_path, "alone", devices=1)
    want = losses_in(alone.stdout)
    assert len(want) == 6
    for before, after in zip(killed, resumed, strict=True):
        assert losses_in(before.stdout + after.stdout) == pytest.approx(want, abs=2e-5)


def losses_in(text):
    # The gloo library prints lines of its own.
    return [float(x.removeprefix("loss ")) for x in text.splitlines() if x.startswith("loss ")]


def test_eight_devices_equal_one(tmp_path):
    pytest.importorskip("optax")
    done = run("eight_devices.py", tmp_path, devices=8)
    assert done.returncode == 0, done.stderr
    cases = [line.removeprefix("ok ") for line in done.stdout.splitlines()]
    assert cases == ["data", "tensor", "full", "saving", "initialisation"]


def test_the_comparison_needs_eight_devices(tmp_path):
    # The companion: the script notices when nothing is sharded.
    pytest.importorskip("optax")
    assert run("eight_devices.py", tmp_path, devices=1).returncode != 0
