"""The release's small programs: the version bump and the list of public names."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "VERSION", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in (ROOT / "packages").iterdir():
        (tmp_path / "packages" / folder.name).mkdir(parents=True)
        shutil.copy(folder / "pyproject.toml", tmp_path / "packages" / folder.name)
    return tmp_path


def _edges(folder):
    """The requirements between our wheels, as (place, wheel with extras, range)."""
    paths = [folder / "pyproject.toml", *folder.glob("packages/*/pyproject.toml")]
    return [
        (path.relative_to(folder), *edge)
        for path in paths
        for edge in re.findall(
            r'"((?:pz-\w+|penzai)(?:\[[\w,]+\])?)([<>=~!][^"]*)"', path.read_text()
        )
    ]


# From whatever version is current to one above it: these tests hold after a bump, too.
def test_a_bump_updates_the_version_and_every_edge(copy):
    before = _edges(copy)
    assert len(before) > 6
    _script("bump_version").bump(copy, "97.4.1")
    assert (copy / "VERSION").read_text() == "97.4.1\n"
    assert _edges(copy) == [(path, wheel, ">=97.4.1,<97.5") for path, wheel, _ in before]


def test_a_bump_to_what_is_no_version_is_refused(copy):
    with pytest.raises(ValueError, match=r"bump\('0\.4\.0rc1'\): a version is three numbers"):
        _script("bump_version").bump(copy, "0.4.0rc1")
    assert (copy / "VERSION").read_text() == (ROOT / "VERSION").read_text()


def test_the_lists_of_public_names_are_current():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/public_api.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_list_notices_a_changed_signature(monkeypatch):
    import pz_core.selectors

    script = _script("public_api")
    before = script.listing("pz_core")
    monkeypatch.setattr(pz_core.selectors, "select", lambda tree, surprise: tree)
    assert "surprise" in script.listing("pz_core")
    assert "surprise" not in before
    monkeypatch.setattr(pz_core.selectors, "select", lambda tree, limit=(1, "a"), how=len: tree)
    assert "select(tree, limit=(1, 'a'), how=len)" in script.listing("pz_core")


def test_names_from_private_modules_are_listed_with_their_signatures():
    text = _script("public_api").listing("pz_core")
    assert "pz_core.variables.variable_jit(" in text
    assert "pz_core.Selection is pz_core.selectors.Selection" in text
    assert not re.search(r" is \S*\._", text)


def test_a_dead_link_in_a_description_is_noticed():
    text = (
        '[a](https://a.org) ![b](b.png) [c](../c) `[d](d)` <img src="e.png">\n'
        "```\n[f](f)\n```\n[g](#g)"
    )
    assert _script("release_check").dead_links(text) == ["b.png", "../c", "e.png"]


def test_the_release_check_has_a_cell_for_everything_that_is_supported():
    names = [cell.name for cell in _script("release_check").cells()]
    wheels = [path.name for path in (ROOT / "packages").iterdir()]
    for python in ("3.11", "3.12", "3.13"):
        for what in (*wheels, "together"):
            assert {f"{python}-{what}", f"{python}-{what}-oldest-jax"} <= set(names)
    assert len(set(names)) == len(names) == 6 * (len(wheels) + 1)


@pytest.mark.parametrize("name", ["penzai", *(path.name for path in (ROOT / "packages").iterdir())])
def test_a_tag_publishes_the_files_of_its_wheel_after_its_cells(name, copy):
    workflow = (ROOT / ".github/workflows/publish.yml").read_text()
    step = textwrap.dedent(re.search(r"run: \|\n((?: {10}.*\n)+)", workflow)[1])
    version = (ROOT / "VERSION").read_text().strip()

    def outputs(tag):
        environment = {"GITHUB_REF_NAME": tag, "GITHUB_OUTPUT": "out", "PATH": os.environ["PATH"]}
        subprocess.run(["bash", "-ec", step], cwd=copy, env=environment, check=True)
        return dict(line.split("=", 1) for line in (copy / "out").read_text().splitlines())

    told = outputs(f"{name}-v{version}")
    assert told["files"] == f"{name.replace('-', '_')}-{version}"
    known = {cell.name: cell for cell in _script("release_check").cells()}
    for cell in told["cells"].split():
        installed = known[cell].requirements[0]
        assert re.match(r"[a-z-]+", installed)[0] == name
    with pytest.raises(subprocess.CalledProcessError):
        outputs(f"{name}-v9.9.9")
