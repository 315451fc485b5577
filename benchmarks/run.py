"""Runs benchmark programs, prints their tables and writes JSON.

    ./hatchw run bench:run                        every program
    ./hatchw run bench:run core named             those programs
    ./hatchw run bench:run core --only "map"      rows of the program whose title contains "map"
    ./hatchw run bench:run --json figures.json    where the JSON goes (default benchmarks/results.json)

Each program is a file `bench_<name>.py` here with `PROGRAMS: dict[str, Callable[[], list[Row]]]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import platform
import sys
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from harness import Row  # noqa: E402  (the folder is put on the path above)


def _figure(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:,.0f}"
    for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value * 1e9:.3g} ns"


def _line(row: Row) -> str:
    unit = "" if row.unit == "s" else f" {row.unit}"
    target = "" if row.target is None else f"<= {row.target:g} {'met' if row.met else 'MISSED'}"
    return (
        f"  {row.name:<52.52} {row.peer:<28.28} {_figure(row.ours, row.unit):>9} "
        f"{_figure(row.theirs, row.unit):>9}{unit}  {row.ratio:7.3f} +-{row.spread:4.0%}  {target}"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the programs named on the command line; returns the exit status."""
    available = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(available))
    parser.add_argument("--only", default="", help="run titles that contain this text")
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "results.json")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.programs) - set(available))
    if unknown:
        parser.error(f"unknown program {', '.join(unknown)}; there are: {', '.join(available)}")
    rows: list[dict[str, object]] = []
    failed = 0
    import jax

    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores; "
        "ratio = ours / peer, median over interleaved rounds"
    )
    for program in arguments.programs or available:
        module = importlib.import_module(f"bench_{program}")
        for title, run in module.PROGRAMS.items():
            if arguments.only not in title:
                continue
            print(f"{program}: {title}", flush=True)
            try:
                results = run()
            except Exception:  # one broken peer must not hide the other figures
                traceback.print_exc()
                failed += 1
                continue
            for row in results:
                print(_line(row), flush=True)
                rows.append(
                    {"program": program, "title": title, **dataclasses.asdict(row), "met": row.met}
                )
    document = {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {arguments.json}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
