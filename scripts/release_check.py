"""Checks the distributions as they would be published.

    ./hatchw run release:check            everything: minutes a cell
    ./hatchw run release:check --quick    builds and contents, no test runs

Builds all sdists and wheels twice and compares the bytes; runs `twine check --strict`; looks
into each archive; installs every wheel alone and all together into clean environments on each
Python, with the oldest and the newest supported jax, and runs the tests from a temporary folder
against the installed wheels.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
OLDEST_JAX = ("jax==0.8.0", "jaxlib==0.8.0")
TEST_TOOLS = ("pytest>=8", "hypothesis>=6")
# What tests the umbrella by itself, without the repository around it.
UMBRELLA_TESTS = tuple(
    f"integration_tests/test_{name}.py" for name in ("guide", "umbrella", "v2_programs")
)


def run(*command: str | os.PathLike[str], cwd: pathlib.Path = ROOT, **environment: str) -> None:
    """Runs a command; its failure ends the check."""
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, env={**os.environ, **environment})


def build(target: pathlib.Path) -> dict[str, str]:
    """Builds every distribution into `target`; returns {file name: sha256}."""
    folders = [ROOT, *sorted(p for p in (ROOT / "packages").iterdir() if p.is_dir())]
    for folder in folders:
        # SOURCE_DATE_EPOCH: archives carry this time, not the clock's.
        run(
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "-d",
            target,
            cwd=folder,
            SOURCE_DATE_EPOCH="1577836800",
        )
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(target.iterdir())}


def wrong_contents(path: pathlib.Path) -> list[str]:
    """Names in a distribution that do not belong there, and names that are missing."""
    if path.suffix == ".whl":
        names = zipfile.ZipFile(path).namelist()
        import_name = path.name.split("-")[0]
        allowed = (f"{import_name}/", f"{import_name}-")
        missing = [n for n in (f"{import_name}/py.typed",) if n not in names]
        if not any(n.endswith("licenses/LICENSE") for n in names):
            missing.append("licenses/LICENSE")
    else:
        names = [m.name.split("/", 1)[1] for m in tarfile.open(path).getmembers() if m.isfile()]
        allowed = (
            "src/",
            "tests/",
            "PKG-INFO",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "VERSION",
            ".gitignore",
            "hatch.toml",  # hatchling adds the root project's own configuration
        )
        missing = [n for n in ("LICENSE", "README.md", "pyproject.toml") if n not in names]
    stray = [
        n for n in names if not n.startswith(allowed) or "__pycache__" in n or n.endswith(".pyc")
    ]
    return [f"{path.name}: stray {n}" for n in stray] + [f"{path.name}: no {n}" for n in missing]


def environment(
    folder: pathlib.Path, python: str, dist: pathlib.Path, *packages: str
) -> pathlib.Path:
    """Makes a clean environment with `packages`; returns its interpreter."""
    run("uv", "venv", "--quiet", "--clear", "--python", python, folder)
    interpreter = folder / "bin" / "python"
    run(
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        interpreter,
        "--find-links",
        dist,
        *packages,
        *TEST_TOOLS,
    )
    return interpreter


def run_tests(
    interpreter: pathlib.Path,
    tests: list[pathlib.Path],
    scratch: pathlib.Path,
    files: tuple[str, ...] = (),
) -> None:
    """Runs copies of `tests` from a folder where the sources cannot be imported by accident."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for folder in tests:
        shutil.copytree(folder, scratch / folder.parent.name / "tests")
    for file in files:
        shutil.copy(ROOT / file, scratch)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
    options = settings["ini_options"]
    lines = ["[pytest]", f"addopts = {options['addopts']}"]
    for key in ("markers", "filterwarnings"):
        lines += [f"{key} ="] + [f"    {value}" for value in options[key]]
    (scratch / "pytest.ini").write_text("\n".join(lines) + "\n")
    run(interpreter, "-m", "pytest", "-q", ".", cwd=scratch, JAX_PLATFORMS="cpu")


def main() -> int:
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="builds and contents only")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        first, second = build(work / "first"), build(work / "second")
        different = [n for n in first if first[n] != second.get(n)]
        if different or first.keys() != second.keys():
            print("not reproducible:", ", ".join(different or first.keys() ^ second.keys()))
            return 1
        dist = work / "first"
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()))
        wrong = [line for path in sorted(dist.iterdir()) for line in wrong_contents(path)]
        if wrong:
            print("\n".join(wrong))
            return 1
        if quick:
            return 0
        packages = sorted(p for p in (ROOT / "packages").iterdir() if p.is_dir())
        for python in PYTHONS:
            for package in packages:
                interpreter = environment(work / "env", python, dist, package.name)
                run_tests(interpreter, [package / "tests"], work / "tests")
            together = [p / "tests" for p in packages]
            for jax in ((), OLDEST_JAX):
                interpreter = environment(
                    work / "env", python, dist, "penzai[toolshed]", "mypy", *jax
                )
                run_tests(interpreter, together, work / "tests", UMBRELLA_TESTS)
    print("release check passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
