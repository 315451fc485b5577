"""The examples in docstrings and in the README run."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import pz_core

pytestmark = pytest.mark.smoke

MODULES = [info.name for info in pkgutil.iter_modules(pz_core.__path__)]
README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"pz_core.{name}"))
    assert results.failed == 0


@pytest.mark.skipif(not README.exists(), reason="the README is not in a built wheel's tests")
def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert len(block.strip().splitlines()) <= 15
        exec(compile(block, str(README), "exec"), {})
