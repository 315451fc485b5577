"""What `from penzai import pz` costs: import time against `import jax`, in fresh processes.

The clock runs inside of each process, around the import alone, so that the interpreter's own start
does not dilute the ratio. Processes run in turn; the first of each kind, which may compile
bytecode, is thrown away.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

from harness import Row

ROUNDS = 15
TARGET = 1.25
PROBE = """
import time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def _seconds(statement: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout)


def _row(name: str, ours: str, target: float | None) -> Row:
    peer = "import jax"
    times = [(_seconds(ours), _seconds(peer)) for _ in range(ROUNDS + 1)][1:]
    ratios = [a / b for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return Row(name, peer, mine, theirs, middle, (high - low) / middle, target)


def import_time() -> list[Row]:
    """The umbrella as it is imported; then with what comes along on first use."""
    return [
        _row("from penzai import pz", "from penzai import pz", TARGET),
        _row("and its layers", "from penzai import pz; pz.nn.Linear; pz.nx.wrap", None),
        _row("and its pictures", "from penzai import pz; pz.show", None),
    ]


PROGRAMS: dict[str, Callable[[], list[Row]]] = {"import time": import_time}
