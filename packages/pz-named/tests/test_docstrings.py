"""Every example in a docstring or the README runs."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import pz_named

MODULES = ["pz_named", *(f"pz_named.{m.name}" for m in pkgutil.iter_modules(pz_named.__path__))]
README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_every_public_module_lists_its_names():
    for name in MODULES:
        if not name.split(".")[-1].startswith("_"):
            module = importlib.import_module(name)
            assert all(hasattr(module, public) for public in module.__all__), name


@pytest.mark.skipif(not README.exists(), reason="only the wheel is here, not its README")
def test_readme_examples_run():
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, str(README), "exec"), {})
