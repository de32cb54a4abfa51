"""How the cost grows: with processes, connections, content, and finished tasks in the table."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg2

from ops.bench import costs, finished
from ops.bench.children import BenchError
from ops.bench.measures import Bench
from ops.bench.servers import Found
from ops.bench.shapes import FIGURES, SHAPES, figures

DRAIN = "drain of 100,000"
WAITING = "100,000 waiting"
RUNNING = "10,000 running sleeps"
FINISHED = "finished tasks"

FINISHED_ROUNDS = 9

FAILURES = (BenchError, OSError, subprocess.SubprocessError, psycopg2.Error)
"""One shape's, which the run outlives."""

_STEP_SECONDS = 8.0
"""What a shape takes beside its loads."""

_LOADS = 6

_FILL_SECONDS = 10e-6
"""For each finished task."""

_MANY_SECONDS = 45.0
"""What needs many tasks at a time."""

Round = dict[str, dict[str, Found]]
"""For each shape its figures."""


def measure(bench: Bench, count: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All shapes, to and fro, what needs many tasks at a time, and so many that are finished."""
    failed: dict[str, str] = {}

    def attempt(what: str, step: Callable[[], Found]) -> dict[str, Found]:
        """What it found, under its name; nothing when it failed, which the run outlives."""
        say(what)
        try:
            return {what: step()}
        except FAILURES as error:
            failed[what] = str(error)
            say(f"{what}: {error}")
            return {}

    measured: list[Round] = []
    for number in range(rounds):
        found: Round = {}
        for shape in SHAPES if number % 2 == 0 else SHAPES[::-1]:
            found |= attempt(shape.words, partial(figures, bench, shape))
        measured.append(found)
    many = attempt(DRAIN, lambda: _large_drain(bench))
    many |= attempt(WAITING, lambda: costs.with_waiting(bench, 100_000))
    many |= attempt(RUNNING, lambda: costs.with_running(bench, 10_000))
    beside = attempt(FINISHED, lambda: finished.beside_empty(bench, count, FINISHED_ROUNDS))
    return {
        "finished": count,
        "summary": summary(measured),
        "beside_empty": beside.get(FINISHED),
        "many": many,
        "failed": failed,
        "rounds": measured,
    }


def expected_seconds(count: int, rounds: int, seconds: float) -> float:
    """About what all of it takes."""
    each_round = len(SHAPES) * (_STEP_SECONDS + _LOADS * seconds)
    beside = count * _FILL_SECONDS + FINISHED_ROUNDS * finished.SECONDS_A_ROUND
    return rounds * each_round + _MANY_SECONDS + beside


def loads(growth: Mapping[str, Any]) -> list[dict[str, Found]]:
    """What was asked of the services and of the echo, with the shape in its name."""
    return [
        {
            f"{words}, {name}": found
            for words, all_found in each.items()
            for name, found in all_found.items()
            if "unexpected" in found
        }
        for each in growth["rounds"]
    ]


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """For each shape the median and the spread of its ratios, a scrape and the memory."""
    found: dict[str, Any] = {}
    for words in (shape.words for shape in SHAPES):
        measured = [each[words] for each in rounds if words in each]
        if not measured:
            continue
        found[words] = {
            name: {
                "rate": statistics.median(each[name]["rate"] for each in measured),
                **_spread([_ratio(each, name) for each in measured]),
            }
            for name in FIGURES
        }
        found[words]["scrape_ms"] = statistics.median(each["scrape"]["ms"] for each in measured)
        found[words]["peak_resident_bytes"] = max(
            each["memory"]["peak_resident_bytes"] for each in measured
        )
    return found


def beside_empty(growth: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What becomes of each figure with the finished tasks: 1 when they cost nothing."""
    found = growth["beside_empty"]
    return {name: _spread(each) for name, each in finished.ratios(found).items()} if found else {}


def _large_drain(bench: Bench) -> Found:
    echo = bench.echo_creates()
    found = bench.drain(100_000)
    return {**found, "echo_rate": echo["rate"], "ratio": found["rate"] / echo["rate"]}


def _ratio(found: Mapping[str, Found], name: str) -> float:
    return float(found[name]["rate"] / found[FIGURES[name][1]]["rate"])


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
