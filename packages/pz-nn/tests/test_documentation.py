"""Examples in docstrings and in the README run."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import pz_nn

MODULES = [f"pz_nn.{info.name}" for info in pkgutil.iter_modules(pz_nn.__path__)]
README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failures


def test_readme_examples():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_every_exported_name_exists_and_is_listed():
    assert sorted(pz_nn.__all__) == sorted(set(pz_nn.__all__))
    assert all(hasattr(pz_nn, name) for name in pz_nn.__all__)
    for name in MODULES:
        if "._" not in name:
            module = importlib.import_module(name)
            missing = [n for n in module.__all__ if not hasattr(module, n)]
            assert not missing, name
