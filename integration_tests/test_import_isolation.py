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
    "penzai.pz": {"penzai", "pz_core"},  # the rest comes on first use
}
MAY_LOAD_TREESCOPE = {"pz_viz"}

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


# Modules that are about another library, and refuse to import without it.
NEED_AN_EXTRA = {
    "pz_models": {},
    "pz_toolshed": {
        "basic_training": "training",
        "equinox_modules": "equinox",
        "metric_writers": "training",
        "nnx_modules": "flax",
        "optimizers": "training",
        "training_loop": "training",
        "unflaxify": "flax",
    },
}
IMPORT_ALL_WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
for name in {heavy}:
    sys.modules[name] = None  # as if it were not installed
import {module}
for info in pkgutil.walk_packages({module}.__path__, "{module}."):
    try:
        importlib.import_module(info.name)
    except ImportError as error:
        print(info.name.removeprefix("{module}."), error, sep=": ")
"""


@pytest.mark.parametrize("module", NEED_AN_EXTRA)
def test_every_public_module_imports_without_extras_or_names_its_own(module):
    program = IMPORT_ALL_WITHOUT_EXTRAS.format(module=module, heavy=[*HEAVY, "equinox"])
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    refusals = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    wheel = module.replace("_", "-")
    unexplained = {
        name: message
        for name, message in refusals.items()
        if f"{wheel}[{NEED_AN_EXTRA[module].get(name)}]" not in message
    }
    assert unexplained == {}
