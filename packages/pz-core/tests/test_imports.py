"""What importing this wheel loads, and that the guard can fail."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.smoke

FORBIDDEN = (
    "treescope",
    "IPython",
    "torch",
    "flax",
    "optax",
    "orbax",
    "equinox",
    "pz_named",
    "pz_nn",
)
PROGRAM = """
import sys
import {module}
print(sorted(name for name in {forbidden!r} if name in sys.modules))
"""


def loaded(module, forbidden=FORBIDDEN):
    program = PROGRAM.format(module=module, forbidden=forbidden)
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_import_loads_nothing_heavy():
    assert loaded("pz_core, pz_core.tree_diff, pz_core.variable_transforms") == "[]"


def test_the_guard_can_fail():
    assert loaded("pz_core", forbidden=("jax", "treescope")) == "['jax']"


def test_every_public_module_names_what_it_offers():
    import importlib
    import pkgutil

    import pz_core

    for info in pkgutil.iter_modules(pz_core.__path__):
        module = importlib.import_module(f"pz_core.{info.name}")
        assert module.__doc__, info.name
        for name in module.__all__:
            assert hasattr(module, name), f"{info.name}.{name}"
