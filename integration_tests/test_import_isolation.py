"""What an import brings, each in a fresh process; every guard has a companion that fails it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "flax", "optax", "orbax", "kagglehub", "gguf", "IPython")
SIBLINGS = ("pz_core", "pz_named", "pz_nn", "pz_models", "pz_toolshed", "pz_viz", "penzai")

# import name -> what it may bring of ours (design: wheels and edges)
EDGES = {
    "pz_named": {"pz_named"},
    "pz_core": {"pz_core"},
    "pz_nn": {"pz_nn", "pz_core", "pz_named"},
    "pz_models": {"pz_models", "pz_nn", "pz_core", "pz_named"},
    "pz_toolshed": {"pz_toolshed", "pz_nn", "pz_core", "pz_named"},
    "pz_viz": {"pz_viz", "pz_core", "pz_named"},
    "penzai.pz": {"penzai", "pz_viz", "pz_nn", "pz_core", "pz_named"},
}
MAY_LOAD_TREESCOPE = {"pz_viz", "penzai.pz"}

PROBE = """
import sys
{statement}
print(" ".join(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def loaded_after(statement):
    """Returns the top-level modules that a fresh interpreter holds after `statement`."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def surplus(module, loaded):
    """Returns what of `loaded` an import of `module` must not bring."""
    forbidden = set(HEAVY) | (set(SIBLINGS) - EDGES[module])
    if module not in MAY_LOAD_TREESCOPE:
        forbidden.add("treescope")
    return sorted(loaded & forbidden)


@pytest.mark.parametrize("module", EDGES)
def test_an_import_brings_only_its_own_edges(module):
    # treescope brings IPython by itself where that is installed.
    theirs = loaded_after("import treescope") if module in MAY_LOAD_TREESCOPE else set()
    assert surplus(module, loaded_after(f"import {module}") - theirs) == []


@pytest.mark.parametrize(
    ("module", "statement", "found"),
    [
        ("pz_named", "import pz_named, pz_core", ["pz_core"]),
        ("pz_core", "import pz_core, sys; sys.modules['treescope'] = sys", ["treescope"]),
        ("pz_models", "import pz_models, optax", ["optax"]),
    ],
)
def test_the_guard_can_fail(module, statement, found):
    pytest.importorskip(found[0])
    assert surplus(module, loaded_after(statement)) == found


@pytest.mark.parametrize("module", ["pz_models", "pz_toolshed"])
def test_every_public_module_imports_without_extras(module):
    walk = (
        f"import importlib, pkgutil, {module}\n"
        f"for m in pkgutil.walk_packages({module}.__path__, '{module}.'):\n"
        "    importlib.import_module(m.name)"
    )
    allowed = {"optax"} if module == "pz_toolshed" else set()
    assert set(surplus(module, loaded_after(walk))) <= allowed
