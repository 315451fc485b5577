"""What `from penzai import pz` loads and when, and what static analysers see of it."""

import json
import subprocess
import sys

import jax
import pytest

import penzai
import pz_viz
from penzai import pz

SHOWS_PICTURES = """
import treescope
from pz_nn import Affine
layer = Affine.from_config("layer", None, {"features": 2}, {"features_out": 3})
text = treescope.render_to_text(layer, roundtrip_mode=True)
assert text.startswith("pz.nn.Affine("), text
assert "pz.nn.Linear(" in text, text
"""
# What a user may have written first -> what must hold then, each in a process of its own.
PROGRAMS = {
    "only pz: nothing to draw, nothing loaded": """
from penzai import pz
for name in ("treescope", "pz_viz", "pz_nn", "pz_named"):
    assert name not in sys.modules, name
assert {"nn", "ts", "show", "select"} <= set(dir(pz))
""",
    "pz, then treescope": "from penzai import pz\nimport treescope" + SHOWS_PICTURES,
    "treescope, then pz": "import treescope\nfrom penzai import pz" + SHOWS_PICTURES,
    "pz, then pz_viz": "from penzai import pz\nimport pz_viz" + SHOWS_PICTURES,
    "pz_viz, then pz": "import pz_viz\nfrom penzai import pz" + SHOWS_PICTURES,
    "treescope is as if nobody had been in between": """
from penzai import pz
finders = list(sys.meta_path)
import treescope, importlib.machinery
assert isinstance(treescope.__loader__, importlib.machinery.SourceFileLoader)
assert treescope.__spec__.loader is treescope.__loader__
assert len(sys.meta_path) == len(finders) - 1
""",
    "show_selection fetches what draws": """
from penzai import pz
pz.select({"a": 1, "b": 2}).at(lambda tree: tree["b"]).show_selection()
assert "pz_viz" in sys.modules
""",
    "show_value fetches what draws": """
from penzai import pz
pz.select({"a": 1, "b": 2}).at(lambda tree: tree["b"]).show_value()
assert "pz_viz" in sys.modules
""",
    "submodules by themselves": """
import penzai.pz.nn
from penzai.pz import ts, nx
import pz_named.named_axes
assert nx is pz_named.named_axes and penzai.pz.nn.Linear and ts.render_array
""",
    "a star import brings every name": """
from penzai.pz import *
assert nn.Linear and nx.wrap and chk.ArraySpec and show and ts
""",
}
RUN_EACH_IN_A_FORK = """
import json, os, sys
import jax, numpy  # the parent holds what is slow to load and is not ours
programs = json.loads(sys.argv[1])
for name, program in programs.items():
    child = os.fork()
    if child == 0:
        try:
            exec(program, {"sys": sys, "__name__": "__main__"})
        except BaseException as error:
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def _failures(programs):
    run = subprocess.run(
        [sys.executable, "-c", RUN_EACH_IN_A_FORK, json.dumps(programs)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in run.stdout.splitlines() if line.startswith("FAILED")]


def test_what_comes_along_with_each_order_of_imports():
    assert _failures(PROGRAMS) == []


def test_a_failing_program_is_noticed():
    assert _failures({"loads treescope": "import treescope\nassert 'treescope' not in sys.modules"})


def test_every_name_is_there_and_is_listed():
    assert sorted(pz.__all__) == pz.__all__
    assert set(pz.__all__) <= set(dir(pz))
    assert [name for name in pz.__all__ if getattr(pz, name) is not getattr(pz, name)] == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'penzai\.pz' has no attribute 'selct'"):
        pz.selct  # noqa: B018
    assert not hasattr(pz, "selct")


def test_the_version_is_that_of_the_wheel():
    from importlib import metadata

    assert penzai.__version__ == metadata.version("penzai")


def test_operations_of_a_stack_count_every_layer():
    key, axes = jax.random.key(0), {"features": 4}
    block = {"name": "block", "input_axes": axes, "output_axes": axes}
    stack = pz.nn.LayerStack.from_sublayer_builder(
        pz.nn.Affine.from_config, "blocks", 7, key, block
    )
    x = pz.nx.ones({"features": 4})
    layer = pz.nn.Affine.from_config(init_base_rng=key, **block)
    [one] = pz_viz.summary_rows(layer, depth=0, inputs=(x,))
    [seven] = pz_viz.summary_rows(stack, depth=0, inputs=(x,))
    assert seven.flops == pytest.approx(7 * one.flops, rel=0.02)


MYPY_CONFIG = """
[mypy]
strict = true
disallow_any_generics = false
[mypy-jax.*,jaxlib.*,numpy.*,treescope.*,ml_dtypes.*]
follow_imports = skip
ignore_missing_imports = true
"""
SAMPLE = """
from penzai import pz
from penzai.core import selectors

layer = pz.nn.Affine.from_config("layer", None, {"features": 2}, {"features_out": 3})
reveal_type(layer)
reveal_type(pz.select(layer))
reveal_type(selectors.select(1))
"""


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """Runs mypy on a program; skips jax's own types, which would take a minute."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(MYPY_CONFIG)

    def lines(program):
        (folder / "sample.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "sample.py"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert run.returncode in (0, 1), run.stdout + run.stderr
        return run.stdout.splitlines()

    return lines


def test_mypy_sees_types_through_the_namespace(mypy):
    notes = "\n".join(mypy(SAMPLE))
    assert 'Revealed type is "pz_nn.linear_and_affine.Affine"' in notes
    assert 'Revealed type is "pz_core.selectors.Selection[pz_nn.linear_and_affine.Affine]"' in notes
    assert 'Revealed type is "pz_core.selectors.Selection[int]"' in notes


def test_mypy_sees_exactly_the_names_that_are_there(mypy):
    namespaces = {"pz": pz, "pz.nn": pz.nn, "pz.ts": pz.ts, "pz.nx": pz.nx, "pz.chk": pz.chk}
    names = [
        f"{namespace}.{name}"
        for namespace, module in namespaces.items()
        for name in getattr(module, "__all__", None) or vars(module)
        if not name.startswith("_")
    ]
    wrong = ["pz.selct", "pz.nn.Liner", "pz.ts.rendr"]
    report = mypy("from penzai import pz\n" + "\n".join([*names, *wrong]) + "\n")
    errors = [line for line in report if "attr-defined" in line]
    assert [line.split('"')[1] for line in errors] == ["selct", "Liner", "rendr"]
