"""Guards of the monorepo: one version, one licence, a complete CI matrix, current aliases."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.name for path in (ROOT / "packages").iterdir() if path.is_dir())


def _project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def wrong_edges(version, projects):
    """Returns the internal requirements that do not say `>=version,<next minor`."""
    major, minor, _ = version.split(".")
    expected = f">={version},<{major}.{int(minor) + 1}"
    requirements = [r for project in projects for r in project.get("dependencies", ())]
    internal = [r for r in requirements if re.match(r"(pz-\w+|penzai)\b", r)]
    return [r for r in internal if not re.fullmatch(r"[\w-]+" + re.escape(expected), r)]


def test_internal_edges_match_the_version():
    version = (ROOT / "VERSION").read_text().strip()
    projects = [_project(ROOT / "packages" / name) for name in PACKAGES] + [_project(ROOT)]
    assert wrong_edges(version, projects) == []


def test_the_edge_guard_can_fail():
    projects = [{"dependencies": ["pz-core>=0.3.0,<0.4", "pz-named>=0.2.0,<0.4", "jax>=0.8"]}]
    assert wrong_edges("0.3.0", projects) == ["pz-named>=0.2.0,<0.4"]


def commands_of(*files):
    """`environment:script` of every command in some files, without the cell of a matrix."""
    text = "".join((ROOT / file).read_text() for file in files)
    found = re.findall(r"\./hatchw run \"?([a-z0-9]+)[^:\n#]*:(\w+)", text)
    return {f"{environment}:{script}" for environment, script in found}


def test_the_workflow_runs_what_ci_runs():
    here = commands_of(".ci/run", ".ci/oldest", ".ci/demo")
    assert here <= commands_of(".github/workflows/ci.yml", ".ci/demo")
    assert {"lint:check", "iso:test", "oldest:test", "wheels:parity"} <= here


def extras_within(extras, name):
    """Every `wheel[extra]` that one of the umbrella's extras brings, as (wheel, extra)."""
    found = set()
    for requirement in extras[name]:
        wheel, listed = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", requirement).groups()
        for extra in listed.split(","):
            found |= extras_within(extras, extra) if wheel == "penzai" else {(wheel, extra)}
    return found


def test_all_brings_every_extra_of_every_wheel():
    offered = {
        (name, extra)
        for name in PACKAGES
        for extra in _project(ROOT / "packages" / name).get("optional-dependencies", ())
    }
    brought = extras_within(_project(ROOT)["optional-dependencies"], "all")
    assert brought == offered
    assert ("pz-viz", "rich") in brought


def test_licences_are_identical():
    licence = (ROOT / "LICENSE").read_bytes()
    assert [
        n for n in PACKAGES if (ROOT / "packages" / n / "LICENSE").read_bytes() != licence
    ] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_has_its_files(name):
    folder = ROOT / "packages" / name
    import_name = name.replace("-", "_")
    expected = [
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "tests",
        f"src/{import_name}/__init__.py",
        f"src/{import_name}/py.typed",
    ]
    assert [file for file in expected if not (folder / file).exists()] == []


def test_the_ci_matrices_list_exactly_the_packages():
    listed = f"[{', '.join(PACKAGES)}]"
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert workflow.count(f"package: {listed}") == 2
    hatch = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    for environment in ("iso", "oldest"):
        assert sorted(hatch[environment]["matrix"][0]["package"]) == PACKAGES
    steps = (ROOT / ".ci/run").read_text()
    assert sorted(re.search(r"for package in (.*); do", steps)[1].split()) == PACKAGES


def test_aliases_are_current():
    script = ROOT / "scripts/generate_aliases.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_alias_check_can_fail(tmp_path):
    """The check runs on a copy in which one generated file was changed by hand."""
    import shutil

    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "src", tmp_path / "src")
    stale = tmp_path / "src/penzai/core/selectors.py"
    stale.write_text(stale.read_text() + "# changed by hand\n")
    run = subprocess.run(
        [sys.executable, tmp_path / "scripts/generate_aliases.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "penzai/core/selectors.py" in run.stdout


def _init_statements_out_of_place(source):
    """Statements of a package's `__init__` other than its docstring, imports and `__all__`."""
    allowed = []
    for node in ast.parse(source).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (is_docstring or is_all or isinstance(node, (ast.Import, ast.ImportFrom))):
            allowed.append(ast.unparse(node))
    return allowed


@pytest.mark.parametrize("name", [n for n in PACKAGES if n != "pz-viz"])  # pz_viz registers too
def test_package_inits_hold_imports_only(name):
    for path in (ROOT / "packages" / name / "src").rglob("__init__.py"):
        assert _init_statements_out_of_place(path.read_text()) == [], path


def test_the_init_guard_can_fail():
    assert _init_statements_out_of_place('"""Doc."""\nimport a\nx = 1\n') == ["x = 1"]


SKIPPING = """
import pytest

def test_skipped_for_want_of_a_browser():
    pytest.skip("no chromium here")

def test_skipped_for_another_reason():
    pytest.skip("not today")
"""


@pytest.mark.parametrize("required, failed", [("", 0), ("chromium", 2)])
def test_what_is_required_is_not_skipped(tmp_path, required, failed):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_a.py").write_text(SKIPPING)
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('chromium')")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path]
    run = subprocess.run(
        [*command, "--continue-on-collection-errors"],
        env=os.environ | {"PZ_REQUIRE": required},
        capture_output=True,
        text=True,
    )
    assert bool(run.returncode) == bool(failed), run.stdout
    assert run.stdout.count("this was to be skipped: ") >= failed
    assert ("this was to be skipped" in run.stdout) == bool(failed)
    assert "not today" not in run.stdout.split("short test summary")[0]
