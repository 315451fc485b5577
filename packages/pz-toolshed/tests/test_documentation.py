import ast
import pathlib
import re
import subprocess
import sys

import pytest

import pz_toolshed

PACKAGE = pathlib.Path(__file__).parent.parent
README = (PACKAGE / "README.md").read_text()
SOURCES = sorted(pathlib.Path(pz_toolshed.__file__).parent.glob("*.py"))


@pytest.mark.smoke
def test_readme_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    scope = {}
    exec(code, scope)
    assert scope["y"].named_shape == {"c": 4}
    assert len(scope["seen"]) == 2


def test_readme_names_every_public_module():
    public = {p.stem for p in SOURCES if not p.stem.startswith("_")} - {"args_and_kwargs"}
    assert {name for name in public if f"`{name}`" not in README} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_modules_have_all_and_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = [
        n.targets[0].id if isinstance(n, ast.Assign) else getattr(n, "target", None)
        for n in tree.body
        if isinstance(n, ast.Assign | ast.AnnAssign)
    ]
    assert "__all__" in [getattr(n, "id", n) for n in names]


FORBIDDEN = ("torch", "transformers", "flax", "equinox", "optax", "orbax", "treescope", "pz_models")
IMPORTED = "import sys, {modules}; print(*[m for m in {forbidden!r} if m in sys.modules])"


def imported_by(modules):
    code = IMPORTED.format(modules=modules, forbidden=FORBIDDEN)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.smoke
def test_what_needs_no_extra_imports_none():
    names = (
        "save_intermediates",
        "isolate_submodel",
        "model_rewiring",
        "jit_wrapper",
        "lora",
        "gradient_checkpointing",
        "auto_nmap",
        "saving",
        "sharding_util",
        "peft_format",
        "losses",
        "trainable",
        "mixed_precision",
        "parameter_averaging",
    )
    assert imported_by(", ".join(f"pz_toolshed.{name}" for name in names)) == []


def test_the_import_check_can_fail():
    pytest.importorskip("optax")
    assert "optax" in imported_by("pz_toolshed.basic_training")
