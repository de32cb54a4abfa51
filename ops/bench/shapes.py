"""Shapes in which the same figures are taken: processes, connections, content."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

from ops.bench import backlog, children
from ops.bench.children import Child
from ops.bench.load import CONTENT_BYTES, create, get
from ops.bench.measures import Bench
from ops.bench.servers import PLACES, Found, lives

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


_DATABASE = "bench_shapes"

SHAPES = (
    Shape("1 process, 256 connections, 100 B"),
    Shape("2 processes", processes=2),
    Shape("4 processes", processes=4),
    Shape("1 connection", connections=1),
    Shape("64 connections", connections=64),
    Shape("512 connections", connections=512),
    Shape("100 kB of content", content_bytes=100_000),
)


def figures(bench: Bench, shape: Shape) -> dict[str, Found]:
    """Those of one shape, each beside the echo at the same work."""
    bench.database(_DATABASE)
    try:
        with bench.echo_of(shape.content_bytes) as echo:
            return _figures(bench, shape, echo)
    finally:
        bench.forget(_DATABASE)


def _figures(bench: Bench, shape: Shape, echo: Child) -> dict[str, Found]:
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
        count = _backlog(bench, shape)
        found["drain"] = drain(bench, _DATABASE, services, count, shape.content_bytes)
        found["echo_lives"] = load([echo], create_one, 201)
        found["lives"] = lives(services, lambda: load(services, create_one, 201))
        reads = reads_final(bench, _DATABASE)
        found["reads_final"] = load(services, reads, 200)
        found["echo_reads"] = load([echo], reads, 200)
        found["scrape"] = {"ms": scrape_ms(services[0])}
        working_bytes = _peak_bytes(services)
    with _services(bench, shape, workers=0) as services:
        found["creates"] = load(services, create_one, 201)
        found["echo_creates"] = load([echo], create_one, 201)
        found["memory"] = {"peak_resident_bytes": max(working_bytes, _peak_bytes(services))}
    return found


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
                    database=_DATABASE,
                    TASK_CONSUMER_CONCURRENCY=PLACES,
                )
            )
            for number in range(shape.processes)
        ]


def drain(
    bench: Bench,
    database: str,
    services: Sequence[Child],
    count: int,
    content_bytes: int = CONTENT_BYTES,
) -> Found:
    """Of a backlog, by services that run already and begin at one moment."""
    since = backlog.lowest_id(bench)
    with _held_still(services):
        backlog.fill(bench, database, count, content_bytes)
        ((begun_at,),) = bench.query("SELECT clock_timestamp()")
    return backlog.drained(bench, database, since, begun_at)


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


def reads_final(bench: Bench, database: str) -> list[str]:
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


def scrape_ms(service: Child) -> float:
    """The median of a few scrapes, each on a connection of its own."""
    took = []
    for _ in range(_SCRAPES):
        begun_at = time.monotonic()
        service.get("/metrics")
        took.append((time.monotonic() - begun_at) * 1000)
    return statistics.median(took)
