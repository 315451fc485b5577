"""The examples of the README run, on a file that the test writes."""

import importlib
import pathlib
import pkgutil
import re

import pytest

import pz_models

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_from_a_configuration_runs():
    exec(compile(BLOCKS[1], "README.md", "exec"), {})


def test_the_example_from_a_file_names_what_exists():
    """Its weights are 98 MB, so only its names are checked here; the demo runs it."""
    for name in re.findall(r"pz_models\.([A-Za-z_.]+)\(", BLOCKS[0]):
        value = pz_models
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value)


def _modules():
    found = pkgutil.walk_packages(pz_models.__path__, "pz_models.")
    return [m.name for m in found if not m.name.rsplit(".", 1)[-1].startswith("_")]


@pytest.mark.smoke
@pytest.mark.parametrize("name", _modules())
def test_every_public_module_is_documented_and_says_what_it_exports(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in module.__all__:
        assert getattr(module, exported, None) is not None
