"""Runs on several devices and processes, which a test process cannot have: in subprocesses."""

import os
import pathlib
import subprocess
import sys

import pytest

HELPERS = pathlib.Path(__file__).parent / "_helpers"


def run(script, *args, devices):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.run(
        [sys.executable, HELPERS / script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )


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
