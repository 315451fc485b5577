"""The examples of the README and of the docstrings run."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import pz_viz

README = pathlib.Path(__file__).parents[1] / "README.md"
MODULES = sorted(m.name for m in pkgutil.iter_modules(pz_viz.__path__, "pz_viz."))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_every_public_module_names_what_is_public():
    for name in MODULES:
        module = importlib.import_module(name)
        for public in module.__all__:
            assert hasattr(module, public), (name, public)
    assert sorted(pz_viz.__all__) == list(pz_viz.__all__)


@pytest.mark.skipif(not README.exists(), reason="the README is not in the source distribution")
def test_readme_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    assert len(example.splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    assert "# Selected:" in capsys.readouterr().out
    assert "A first look" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.skipif(
    not (README.parent / "pictures").exists(), reason="the pictures are in the repository only"
)
def test_pictures_are_those_of_the_readme():
    names = re.findall(r"!\[[^]]*\]\(pictures/([^)]*)\)", README.read_text("utf-8"))
    pictures = {path.name: path for path in (README.parent / "pictures").iterdir()}
    assert sorted(names) == sorted(pictures)  # each shown, none left over
    for path in pictures.values():
        assert path.read_bytes().startswith(b"\x89PNG")
