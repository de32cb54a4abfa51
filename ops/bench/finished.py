"""What many finished tasks in the table cost: two services, one of them beside an empty table, take
turns at the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ops.bench import backlog
from ops.bench.children import Child
from ops.bench.measures import CREATE, Bench
from ops.bench.servers import DRAINING, Found, lives
from ops.bench.shapes import FIGURES, drain, reads_final, scrape_ms

EMPTY = "bench_empty"
GROWN = "bench_grown"
"""The databases."""

SECONDS_A_ROUND = 25.0
"""About, with loads of two seconds."""

Services = Mapping[str, Child]
"""One for each of the databases."""


def beside_empty(bench: Bench, count: int, rounds: int) -> dict[str, Any]:
    """The rates of each round, and what a scrape takes and how large the processes are."""
    backlog.fill_finished(bench, bench.database(GROWN), count)
    found: dict[str, list[Found]] = {}

    def take_turns(name: str, step: Callable[[str], Found]) -> None:
        pairs = found.setdefault(name, [])
        order = (EMPTY, GROWN) if len(pairs) % 2 == 0 else (GROWN, EMPTY)
        pairs.append({database: step(database) for database in order})

    with _services(bench, workers=1) as working:
        for _ in range(1 + rounds):  # the first warms them up
            take_turns("drain", lambda database: _drain(bench, database, working[database]))
            take_turns("lives", lambda database: _lives(bench, working[database]))
            take_turns("reads_final", lambda database: _reads(bench, database, working[database]))
        scrapes = {database: scrape_ms(child) for database, child in working.items()}
        peaks = {database: child.peak_resident_bytes for database, child in working.items()}
    with _services(bench, workers=0) as taking:
        for _ in range(1 + rounds):
            take_turns("creates", lambda database: _creates(bench, taking[database]))
            for database in taking:
                bench.empty_streams(database)
    return {
        "rounds": {name: pairs[1:] for name, pairs in found.items()},
        "scrape_ms": scrapes,
        "peak_resident_bytes": peaks,
    }


def ratios(beside: Mapping[str, Any]) -> dict[str, list[float]]:
    """Of each figure, for each round: 1 when the finished tasks cost nothing."""
    return {
        name: [pair[GROWN]["rate"] / pair[EMPTY]["rate"] for pair in beside["rounds"][name]]
        for name in FIGURES
    }


@contextmanager
def _services(bench: Bench, workers: int) -> Iterator[Services]:
    def service(database: str) -> Child:
        name = f"{database}_{workers}"
        return bench.service(name, workers=workers, database=database, **DRAINING)

    with service(EMPTY) as empty, service(GROWN) as grown:
        yield {EMPTY: empty, GROWN: grown}


def _drain(bench: Bench, database: str, service: Child) -> Found:
    return drain(bench, database, [service], bench.options.backlog)


def _lives(bench: Bench, service: Child) -> Found:
    return lives([service], lambda: _creates(bench, service))


def _creates(bench: Bench, service: Child) -> Found:
    return bench.load(service, [CREATE], 201)


def _reads(bench: Bench, database: str, service: Child) -> Found:
    return bench.load(service, reads_final(bench, database), 200)
