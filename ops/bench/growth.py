"""How the cost grows: with finished tasks in the table, processes, connections, and content."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg2
import redis

from ops.bench import backlog, children, costs
from ops.bench.children import BenchError, Child
from ops.bench.load import CONTENT_BYTES, create, get
from ops.bench.measures import PLACES, Bench, Found, lives
from tasksvc.stream.keys import Keys

DRAIN = "drain of 100,000"
WAITING = "100,000 waiting"
RUNNING = "10,000 running sleeps"

FAILURES = (BenchError, OSError, subprocess.SubprocessError, psycopg2.Error)
"""One shape's, which the run outlives."""

_STEP_SECONDS = 8.0
"""What a shape takes beside its loads."""

_LOADS = 6

_FILL_SECONDS = 10e-6
"""For each finished task."""

_MANY_SECONDS = 45.0
"""What needs many tasks at a time."""

_READ_IDS = 1000
_SCRAPES = 5

_LARGEST_BACKLOG_BYTES = 500_000_000

FIGURES = {
    "creates": ("creates", "echo_creates"),
    "lives": ("whole lives", "echo_lives"),
    "drain": ("drain", "echo_lives"),
    "reads_final": ("reads of a final task", "echo_reads"),
}
"""Each with its words, and what it is divided by: the echo just beside it. That of lives is one of
creates, too."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the same figures are taken with."""

    words: str
    processes: int = 1
    connections: int = 256
    content_bytes: int = CONTENT_BYTES
    is_grown: bool = False
    """Whether its table has the finished tasks."""

    @property
    def database(self) -> str:
        return "bench_grown" if self.is_grown else "bench_empty"


EMPTY = "1 process, 256 connections, 100 B, empty table"
GROWN = "finished tasks in the table"

SHAPES = (
    Shape(EMPTY),
    Shape(GROWN, is_grown=True),
    Shape("2 processes", processes=2),
    Shape("4 processes", processes=4),
    Shape("1 connection", connections=1),
    Shape("64 connections", connections=64),
    Shape("512 connections", connections=512),
    Shape("100 kB of content", content_bytes=100_000),
)

Round = dict[str, dict[str, Found]]
"""For each shape its figures."""


def measure(bench: Bench, finished: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All shapes, to and fro, and what needs many tasks at a time."""
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

    say(f"inserting {finished:,} finished tasks")
    backlog.fill_finished(bench, bench.database("bench_grown"), finished)
    measured: list[Round] = []
    for number in range(rounds):
        found: Round = {}
        for shape in SHAPES if number % 2 == 0 else SHAPES[::-1]:
            found |= attempt(shape.words, lambda shape=shape: figures(bench, shape))
        measured.append(found)
    many = attempt(DRAIN, lambda: _large_drain(bench))
    many |= attempt(WAITING, lambda: costs.with_waiting(bench, 100_000))
    many |= attempt(RUNNING, lambda: costs.with_running(bench, 10_000))
    return {
        "finished": finished,
        "summary": summary(measured),
        "beside_empty": beside_empty(measured),
        "many": many,
        "failed": failed,
        "rounds": measured,
    }


def expected_seconds(finished: int, rounds: int, seconds: float) -> float:
    """About what all of it takes."""
    each_round = len(SHAPES) * (_STEP_SECONDS + _LOADS * seconds)
    return finished * _FILL_SECONDS + rounds * each_round + _MANY_SECONDS


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


def figures(bench: Bench, shape: Shape) -> dict[str, Found]:
    """Those of one shape, each beside the echo at the same work."""
    database = bench.database(shape.database)
    since = backlog.lowest_id(bench)
    try:
        with bench.echo_of(shape.content_bytes) as echo:
            return _figures(bench, shape, database, since, echo)
    finally:
        _forget(bench, shape, since)


def _figures(
    bench: Bench, shape: Shape, database: str, since: str, echo: Child
) -> dict[str, Found]:
    def load(subjects: Sequence[Child], requests: list[str], status: int) -> Found:
        return children.load(
            *(each.port for each in subjects),
            requests=requests,
            status=status,
            connections=shape.connections,
            seconds=bench.options.seconds,
        )

    create_one = [create(shape.content_bytes)]
    found: dict[str, Found] = {}
    with _services(bench, shape, workers=1) as services:
        with _held_still(services):
            backlog.fill(bench, database, _backlog(bench, shape), shape.content_bytes)
            ((begun_at,),) = bench.query("SELECT clock_timestamp()")
        found["drain"] = backlog.drained(bench, database, since, begun_at)
        found["echo_lives"] = load([echo], create_one, 201)
        found["lives"] = lives(services, lambda: load(services, create_one, 201))
        reads = _reads_final(bench, database)
        found["reads_final"] = load(services, reads, 200)
        found["echo_reads"] = load([echo], reads, 200)
        found["scrape"] = {"ms": _scrape_ms(services[0])}
        working_bytes = _peak_bytes(services)
    with _services(bench, shape, workers=0) as services:
        found["creates"] = load(services, create_one, 201)
        found["echo_creates"] = load([echo], create_one, 201)
        found["memory"] = {"peak_resident_bytes": max(working_bytes, _peak_bytes(services))}
    return found


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


def beside_empty(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """What becomes of each figure with the finished tasks: 1 when they cost nothing."""
    both = [each for each in rounds if EMPTY in each and GROWN in each]
    return {
        name: _spread([_ratio(each[GROWN], name) / _ratio(each[EMPTY], name) for each in both])
        for name in (FIGURES if both else ())
    }


def _large_drain(bench: Bench) -> Found:
    echo = bench.echo_creates()
    found = bench.drain(100_000)
    return {**found, "echo_rate": echo["rate"], "ratio": found["rate"] / echo["rate"]}


def _ratio(found: Mapping[str, Found], name: str) -> float:
    return float(found[name]["rate"] / found[FIGURES[name][1]]["rate"])


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _backlog(bench: Bench, shape: Shape) -> int:
    return min(bench.options.backlog, _LARGEST_BACKLOG_BYTES // shape.content_bytes)


@contextmanager
def _services(bench: Bench, shape: Shape, workers: int) -> Iterator[list[Child]]:
    """All the processes of a shape, on one database and one stream."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                bench.service(
                    f"shape_{number}",
                    workers=workers,
                    database=shape.database,
                    TASK_CONSUMER_CONCURRENCY=PLACES,
                )
            )
            for number in range(shape.processes)
        ]


@contextmanager
def _held_still(services: Sequence[Child]) -> Iterator[None]:
    """They are ready, and do nothing until all may begin at once."""
    processes = [psutil.Process(each.pid) for each in services]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def _reads_final(bench: Bench, database: str) -> list[str]:
    """Of tasks from all over the table."""
    ((tasks,),) = bench.query("SELECT coalesce(sum(tasks), 0) FROM task_tally", database=database)
    percent = min(100.0, 100.0 * 5 * _READ_IDS / max(1, int(tasks)))
    ids = bench.query(
        "SELECT id FROM task TABLESAMPLE SYSTEM (%s) WHERE finished_at IS NOT NULL"
        " ORDER BY random() LIMIT %s",
        percent,
        _READ_IDS,
        database=database,
    )
    return [get(id) for (id,) in ids]


def _peak_bytes(services: Sequence[Child]) -> int:
    """Of the largest of them."""
    return max(each.peak_resident_bytes for each in services)


def _scrape_ms(service: Child) -> float:
    """The median of a few scrapes, each on a connection of its own."""
    took = []
    for _ in range(_SCRAPES):
        begun_at = time.monotonic()
        service.get("/metrics")
        took.append((time.monotonic() - begun_at) * 1000)
    return statistics.median(took)


def _forget(bench: Bench, shape: Shape, since: str) -> None:
    """All but the finished tasks that were there before."""
    if not shape.is_grown:
        bench.forget(shape.database)
        return
    with bench.cursor(shape.database) as cursor:
        cursor.execute("DELETE FROM task WHERE id >= %s::uuid", (since,))
        cursor.execute("VACUUM task")
    with redis.Redis.from_url(bench.redis.url) as client:
        client.xtrim(Keys(shape.database).tasks, 0, approximate=False)
