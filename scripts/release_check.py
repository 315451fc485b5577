"""Checks the distributions as they would be published.

    ./hatchw run release:check                          everything: about 1.5 hours on two cores
    ./hatchw run release:check --list                   the names of the cells
    ./hatchw run release:check 3.12-pz-nn 3.13-together builds and contents, then those cells
    ./hatchw run release:check --smoke                  every cell with its quick tests only
    ./hatchw run release:check --quick                  builds and contents, no cells
    ./hatchw run release:check --output dist            leaves what was checked in that folder

Builds all sdists and wheels twice, and wheels from the unpacked sdists, and compares the bytes; runs
`twine check --strict`; looks into each archive. Then the cells: each installs one wheel alone, or
all of them together, into a clean environment of one Python, with the newest or the oldest
supported jax, and runs the tests from a temporary folder against what is installed. Every cell
runs, whichever fails; the last line names the ones that did.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WHEELS = sorted(path.name for path in (ROOT / "packages").iterdir() if path.is_dir())
PYTHONS = ("3.11", "3.12", "3.13")
EPOCH = "1577836800"  # archives carry this time, not the clock's
OLDEST_JAX = ("jax==0.8.0", "jaxlib==0.8.0")
TEST_TOOLS = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6")
# What tests the umbrella by itself, without the repository around it.
UMBRELLA_TESTS = tuple(
    f"integration_tests/{name}.py"
    for name in ("conftest", "test_guide", "test_umbrella", "test_v2_programs")
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One clean environment and the tests that run in it.

    Attributes:
      name: Its name on the command line.
      python: Version of Python.
      requirements: What is installed.
      wheels: Whose tests run.
      files: Other test files that run, below the root.
    """

    name: str
    python: str
    requirements: tuple[str, ...]
    wheels: tuple[str, ...]
    files: tuple[str, ...] = ()


def cells() -> list[Cell]:
    """Every cell, the cheap ones of each Python first."""
    together = {
        "together": ("penzai[models,toolshed,flax,equinox,ipython,rich]", "mypy"),
        # Without flax and equinox, whose releases of today need a newer jax.
        "together-oldest-jax": ("penzai[models,toolshed,ipython,rich]", "mypy", *OLDEST_JAX),
    }
    alone: dict[str, tuple[str, ...]] = {"": (), "-oldest-jax": OLDEST_JAX}
    found = []
    for python in PYTHONS:
        for suffix, jax in alone.items():
            found += [
                Cell(f"{python}-{name}{suffix}", python, (name, *jax), (name,)) for name in WHEELS
            ]
        found += [
            Cell(f"{python}-{name}", python, requirements, tuple(WHEELS), UMBRELLA_TESTS)
            for name, requirements in together.items()
        ]
    return found


def run(*command: str | os.PathLike[str], cwd: pathlib.Path = ROOT, **environment: str) -> None:
    """Runs a command.

    Raises:
      subprocess.CalledProcessError: If it fails.
    """
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, env={**os.environ, **environment})


def build(target: pathlib.Path) -> dict[str, str]:
    """Builds every distribution into `target`; returns {file name: sha256}."""
    for folder in [ROOT, *(ROOT / "packages" / name for name in WHEELS)]:
        command = (sys.executable, "-m", "hatchling", "build", "-d", target)
        run(*command, cwd=folder, SOURCE_DATE_EPOCH=EPOCH)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(target.iterdir())}


def wrong_contents(path: pathlib.Path) -> list[str]:
    """What is wrong in a distribution: stray files, missing ones, dead links in its description."""
    if path.suffix == ".whl":
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
        import_name = path.name.split("-")[0]
        allowed = (f"{import_name}/", f"{import_name}-")
        missing = [n for n in (f"{import_name}/py.typed",) if n not in names]
        if not any(n.endswith("licenses/LICENSE") for n in names):
            missing.append("licenses/LICENSE")
        [metadata] = [n for n in names if n.endswith(".dist-info/METADATA")]
        dead = dead_links(archive.read(metadata).decode("utf-8"))
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
        dead = []  # its PKG-INFO is the wheel's METADATA
    stray = [
        n for n in names if not n.startswith(allowed) or "__pycache__" in n or n.endswith(".pyc")
    ]
    return [
        *(f"{path.name}: stray {n}" for n in stray),
        *(f"{path.name}: no {n}" for n in missing),
        *(f"{path.name}: its description links to {n}, which the registry has not" for n in dead),
    ]


def dead_links(description: str) -> list[str]:
    """Targets of links and pictures in a description that lead nowhere outside the repository."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", description, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)]*)\)", prose) + re.findall(r'(?:src|href)="([^"]*)"', prose)
    return [target for target in targets if not target.startswith(("https://", "#"))]


def rebuilt_from_sources(dist: pathlib.Path, work: pathlib.Path) -> list[str]:
    """Wheels in `dist` that the source distribution beside them does not build, in words."""
    wrong = []
    for archive in sorted(dist.glob("*.tar.gz")):
        folder = work / archive.name.removesuffix(".tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(work, filter="data")
        command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work)
        run(*command, cwd=folder, SOURCE_DATE_EPOCH=EPOCH)
        [wheel] = work.glob(f"{folder.name}-*.whl")
        if wheel.read_bytes() != (dist / wheel.name).read_bytes():
            wrong.append(f"{archive.name}: builds another wheel than the repository does")
    return wrong


def check_distributions(work: pathlib.Path) -> list[str]:
    """Builds into `work / "first"`; returns what is wrong with the distributions, in words."""
    first, second = build(work / "first"), build(work / "second")
    wrong = [f"{n}: not the same bytes twice" for n in first if first[n] != second.get(n)]
    (work / "rebuilt").mkdir()
    wrong += rebuilt_from_sources(work / "first", work / "rebuilt")
    built = sorted((work / "first").iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    return wrong + [line for path in built for line in wrong_contents(path)]


def environment(folder: pathlib.Path, cell: Cell, dist: pathlib.Path) -> pathlib.Path:
    """Makes the clean environment of a cell; returns its interpreter."""
    run("uv", "venv", "--quiet", "--clear", "--python", cell.python, folder)
    interpreter = folder / "bin" / "python"
    install = ("uv", "pip", "install", "--quiet", "--python", interpreter, "--find-links", dist)
    run(*install, *cell.requirements, *TEST_TOOLS)
    return interpreter


def run_tests(
    interpreter: pathlib.Path, cell: Cell, scratch: pathlib.Path, only_smoke: bool
) -> None:
    """Runs copies of a cell's tests from where the sources cannot be imported by accident."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in cell.wheels:
        shutil.copytree(ROOT / "packages" / name / "tests", scratch / name / "tests")
        shutil.copy(ROOT / "packages" / name / "README.md", scratch / name)  # its examples run too
    for file in cell.files:
        shutil.copy(ROOT / file, scratch)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
    options = settings["ini_options"]
    lines = ["[pytest]", f"addopts = {options['addopts']}"]
    for key in ("markers", "filterwarnings"):
        lines += [f"{key} ="] + [f"    {value}" for value in options[key]]
    (scratch / "pytest.ini").write_text("\n".join(lines) + "\n")
    command = [interpreter, "-m", "pytest", "-q", "--numprocesses=auto", "--maxprocesses=4"]
    command += ["--dist=loadfile", "--no-loadscope-reorder"]
    command += ["-m", "smoke"] if only_smoke else []
    # Saving is killed at many more moments than in CI.
    run(*command, cwd=scratch, JAX_PLATFORMS="cpu", PZ_KILL_POINTS="50")


def failed_cells(chosen: list[Cell], work: pathlib.Path, only_smoke: bool) -> list[str]:
    """Runs cells; returns the names of those that failed."""
    failed = []
    for cell in chosen:
        start = time.monotonic()
        print(f"::: {cell.name}", flush=True)
        try:
            interpreter = environment(work / "env", cell, work / "first")
            run_tests(interpreter, cell, work / "tests", only_smoke)
            told = "ok"
        except subprocess.CalledProcessError as error:
            failed.append(cell.name)
            told = f"FAILED (status {error.returncode})"
        print(f"::: {told} {cell.name} ({time.monotonic() - start:.0f} s)", flush=True)
    return failed


def main() -> int:
    """Runs the checks; returns the exit status."""
    by_name = {cell.name: cell for cell in cells()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: every cell")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    parser.add_argument("--quick", action="store_true", help="builds and contents only")
    parser.add_argument("--smoke", action="store_true", help="only the quick tests of each cell")
    parser.add_argument("--output", type=pathlib.Path, help="where to leave what was checked")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cells if name not in by_name]:
        parser.error(f"no such cell: {', '.join(unknown)}; --list names them")
    if arguments.list:
        print("\n".join(by_name))
        return 0
    chosen = [by_name[name] for name in arguments.cells or by_name]
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        if wrong := check_distributions(work):
            print("\n".join(wrong))
            return 1
        print("::: ok distributions", flush=True)
        failed = [] if arguments.quick else failed_cells(chosen, work, arguments.smoke)
        if arguments.output and not failed:
            shutil.copytree(work / "first", arguments.output, dirs_exist_ok=True)
    if failed:
        print(f"release check: {len(failed)} of {len(chosen)} cells failed: {', '.join(failed)}")
        return 1
    print("release check passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
