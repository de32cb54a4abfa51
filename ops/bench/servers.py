"""The servers of a run, and what is done with them: services, loads, and the CPU of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg2
import redis

from ops.bench import children
from ops.bench.children import ROOT, BenchError, Child
from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.testing.process import free_port

PLACES = 1000
"""For tasks that a consumer runs at a time: with handlers that take no time, a group's size."""

DRAINING: Mapping[str, Any] = MappingProxyType({"TASK_CONSUMER_CONCURRENCY": PLACES})

_DRAIN_SECONDS = 60.0

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    seconds: float
    connections: int
    backlog: int = 20_000
    """Tasks to drain."""


class Servers:
    """A PostgreSQL and a Redis of the run's own."""

    def __init__(self, folder: Path, options: Options, *, keeps_redis: bool = False) -> None:
        """`keeps_redis` is for peers that need its data on disk; the service does not."""
        self._folder = folder
        self.options = options
        self._keeps_redis = keeps_redis
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.postgres = stack.enter_context(
                EmbeddedPostgres(self._folder / "state", announce=_silent)
            )
            # Over TCP, as from another machine, and as the peers and redis-benchmark need it.
            port = free_port()
            self.redis_url = f"redis://127.0.0.1:{port}/0"
            self.redis = stack.enter_context(
                EmbeddedRedis(
                    self._folder / "state",
                    announce=_silent,
                    port=port,
                    persistent=self._keeps_redis,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def service(
        self, name: str, workers: int, database: str = "", tree: Path = ROOT, **other: Any
    ) -> Child:
        """One that is not started yet; its database, which is also its prefix, is made now."""
        database = self.database(database or f"bench_{name}", is_migrated=tree == ROOT)
        return children.service(
            name,
            self._folder / name,
            tree,
            DATABASE_URL=self.database_url(database),
            REDIS_URL=self.redis_url,
            TASKSVC_REDIS_PREFIX=database,
            TASK_CONSUMER_WORKERS=workers,
            **other,
        )

    def database(self, name: str, *, is_migrated: bool = True) -> str:
        """Returns the name of a database that is there, and up to date. A service of another tree
        migrates its own."""
        if not self.query("SELECT 1 FROM pg_database WHERE datname = %s", name):
            self.query(f"CREATE DATABASE {name}")
            if is_migrated:
                children.migrate(self.database_url(name), self._folder)
        return name

    def query(self, statement: str, *parameters: Any, database: str = "") -> list[tuple[Any, ...]]:
        with self.cursor(database) as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def cursor(self, database: str = "") -> Iterator[Any]:
        url = self.database_url(database) if database else self.postgres.url
        connection = psycopg2.connect(url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def database_url(self, name: str) -> str:
        return urlsplit(self.postgres.url)._replace(path=f"/{name}").geturl()

    def lives_of(self, child: Child, request: str) -> Found:
        with self.cpu(child) as cpu:
            found = lives([child], lambda: self.load(child, [request], 201))
        return {**found, "cpu": cpu(found["answers"])}

    def load(self, child: Child, requests: list[str], status: int) -> Found:
        with self.cpu(child) as cpu:
            found = children.load(
                child.port,
                requests=requests,
                status=status,
                connections=self.options.connections,
                seconds=self.options.seconds,
            )
        return {**found, "cpu": cpu(found["answers"])}

    @contextmanager
    def cpu(self, child: Child) -> Iterator[Callable[[int], dict[str, float]]]:
        """Yields a function that returns, afterwards, the microseconds of CPU for each."""
        pids = {"server": child.pid, "postgres": self.postgres.pid, "redis": self.redis.pid}
        before = {name: children.cpu_seconds(pid) for name, pid in pids.items()}
        used: dict[str, float] = {}
        yield lambda count: {name: each / max(1, count) * 1e6 for name, each in used.items()}
        used.update((name, children.cpu_seconds(pid) - before[name]) for name, pid in pids.items())

    def forget(self, database: str) -> None:
        """All tasks."""
        self.query("TRUNCATE task, idempotency_key", database=database)
        self.empty_streams(database)

    def empty_streams(self, database: str) -> None:
        """Those of a service without consumers are bounded, and would be full some day."""
        with redis.Redis.from_url(self.redis_url) as client:
            for stream in client.scan_iter(f"{database}:tasks*"):
                client.xtrim(stream, 0, approximate=False)


def lives(services: Sequence[Child], load: Callable[[], Found]) -> Found:
    """The rate of lives that came to their end, from the first request until the last end."""

    def ended() -> float:
        return sum(each.metric("task_processing_success_count") for each in services)

    before = ended()
    found = load()
    created = found["answers"]
    waiting = created - (ended() - before)
    while (count := ended() - before) < created:
        if time.monotonic() > found["ended_at"] + _DRAIN_SECONDS:
            raise BenchError(f"{created - count:.0f} of {created} tasks never ended.")
        time.sleep(0.05)
    elapsed = time.monotonic() - found["started_at"]
    return {
        **found,
        "rate": count / elapsed,
        "creates_rate": found["rate"],
        "backlog": waiting,
    }


def _silent(text: str) -> None:
    pass
