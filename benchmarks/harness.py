"""Side-by-side timing: ratios that hold on noisy machines.

One idea: the contenders of a row run in turn, round after round, so that a slow moment hits all
of them; a row reports the median over rounds of `ours / peer`, and rounds go on until the
quartiles of that ratio lie close together or the time is spent.

    rows = compare("add, equal names", ours=lambda: a + b, peers={"raw jnp": lambda: x + y},
                   targets={"raw jnp": 2.0})

A program is a module `bench_<part>.py` with `PROGRAMS: dict[str, Callable[[], list[Row]]]`;
`run.py` runs them, prints the table and writes the JSON.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

__all__ = ["Row", "compare", "counted"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison of ours with one peer.

    Attributes:
      name: What was measured.
      peer: What it was measured against.
      ours: Our figure, in `unit`.
      theirs: The peer's figure, in `unit`.
      ratio: Median over rounds of ours / theirs (not the ratio of the medians).
      spread: Distance between the quartiles of the ratio, relative to its median.
      target: The largest ratio that meets the target; None where none is set.
      unit: "s" for times, or what was counted ("equations", "bytes").
    """

    name: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    spread: float = 0.0
    target: float | None = None
    unit: str = "s"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.ratio <= self.target


def counted(
    name: str,
    ours: float,
    peers: Mapping[str, float],
    *,
    unit: str,
    targets: Mapping[str, float] | None = None,
) -> list[Row]:
    """Rows for figures that do not vary between runs (equations, bytes, instructions)."""
    targets = targets or {}
    return [
        Row(name, peer, ours, value, ours / value, 0.0, targets.get(peer), unit)
        for peer, value in peers.items()
    ]


def _seconds_per_call(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def _calls_for(function: Callable[[], Any], at_least_s: float) -> int:
    """How many calls make one timing long enough to be read off the clock."""
    calls = 1
    while True:
        seconds = _seconds_per_call(function, calls)
        if seconds * calls >= at_least_s or calls >= 100_000:
            return calls
        calls = max(calls * 2, min(100_000, int(at_least_s / max(seconds, 1e-9))))


def compare(
    name: str,
    ours: Callable[[], Any],
    peers: Mapping[str, Callable[[], Any]],
    *,
    targets: Mapping[str, float] | None = None,
    at_least_s: float = 0.02,
    min_rounds: int = 7,
    max_s: float = 20.0,
    spread: float = 0.05,
) -> list[Row]:
    """Times ours against each peer, in turn, until the ratios settle.

    Args:
      name: What is measured.
      ours: Our contender; a call without arguments. What it returns is waited for.
      peers: The others, by name.
      targets: By peer's name, the largest ratio ours / peer that meets the target.
      at_least_s: Calls are repeated within a round until one timing takes this long, in seconds.
      min_rounds: Fewest rounds.
      max_s: No new round starts after this many seconds.
      spread: Rounds stop once every ratio's interquartile range over its median is below this.

    Returns:
      One row per peer.
    """
    contenders = {"": ours, **peers}
    calls = {}
    for key, function in contenders.items():
        jax.block_until_ready(function())  # compile and warm up
        calls[key] = _calls_for(function, at_least_s)
    times: dict[str, list[float]] = {key: [] for key in contenders}
    begin = time.perf_counter()
    while True:
        for key, function in contenders.items():
            times[key].append(_seconds_per_call(function, calls[key]))
        rounds = len(times[""])
        if rounds < min_rounds:
            continue
        rows = [
            _row(name, peer, times[""], times[peer], (targets or {}).get(peer)) for peer in peers
        ]
        if all(r.spread <= spread for r in rows) or time.perf_counter() - begin > max_s:
            return rows


def _row(name: str, peer: str, ours: list[float], theirs: list[float], target: float | None) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(
        name,
        peer,
        statistics.median(ours),
        statistics.median(theirs),
        middle,
        (high - low) / middle,
        target,
    )
