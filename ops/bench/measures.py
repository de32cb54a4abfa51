"""What is measured, each as one function over the run's processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg2
import redis

from ops.bench import backlog, children, stores
from ops.bench.children import BenchError, Child
from ops.bench.load import CONTENT_BYTES, create, get
from ops.bench.options import create_with_options
from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.testing.process import free_port

CREATE = create(CONTENT_BYTES)

PLACES = 1000
"""For tasks that a consumer runs at a time: with handlers that take no time, a group's size."""

DRAINING = MappingProxyType({"TASK_CONSUMER_CONCURRENCY": PLACES})

_WITH_OPTIONS: Mapping[str, Any] = MappingProxyType({"TASKSVC_HANDLERS": "ops.bench.options"})

_READ_IDS = 1000
"""How many tasks are read in turn."""

_DRAIN_SECONDS = 60.0

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    seconds: float
    connections: int
    backlog: int = 20_000
    """Tasks to drain."""


class Bench:
    """The servers, the reference, and the service twice: taking only, and taking and working.

    Each of the two has a database and a key prefix of its own, so that one does not work for the
    other.
    """

    def __init__(self, folder: Path, options: Options, *, keeps_redis: bool = False) -> None:
        """`keeps_redis` is for those who need its data on disk: the service does not."""
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
            self.echo = stack.enter_context(self.echo_of(CONTENT_BYTES))
            self.taking = stack.enter_context(self.service("taking", workers=0))
            self.working = stack.enter_context(
                self.service("working", workers=1, TASK_CONSUMER_CONCURRENCY=PLACES)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def service(self, name: str, workers: int, database: str = "", **other: Any) -> Child:
        """One that is not started yet; its database, which is also its prefix, is made now."""
        database = self.database(database or f"bench_{name}")
        return children.service(
            name,
            self._folder / name,
            DATABASE_URL=self.database_url(database),
            REDIS_URL=self.redis_url,
            TASKSVC_REDIS_PREFIX=database,
            TASK_CONSUMER_WORKERS=workers,
            **other,
        )

    def echo_of(self, content_bytes: int) -> Child:
        """One that is not started yet, whose reads answer so large a content."""
        return children.echo(self._folder, content_bytes)

    def database(self, name: str) -> str:
        """The name of a database that is there, and up to date."""
        if not self.query("SELECT 1 FROM pg_database WHERE datname = %s", name):
            self.query(f"CREATE DATABASE {name}")
            children.migrate(self.database_url(name), self._folder)
        return name

    @cached_property
    def taking_options(self) -> Child:
        """Takes tasks with all options; started when it is first asked for."""
        return self._stack.enter_context(self.service("taking_options", workers=0, **_WITH_OPTIONS))

    @cached_property
    def working_options(self) -> Child:
        """Works them, too."""
        settings = {**DRAINING, **_WITH_OPTIONS}
        return self._stack.enter_context(self.service("working_options", workers=1, **settings))

    # The measures of a round.

    def pgbench(self) -> Found:
        return stores.pgbench(self)

    def redis_benchmark(self) -> Found:
        return stores.redis_benchmark(self)

    def echo_creates(self) -> Found:
        return self.load(self.echo, [CREATE], 201)

    def echo_reads(self) -> Found:
        return self.load(self.echo, self._reads("bench_taking"), 200)

    def creates(self) -> Found:
        self.forget("bench_taking")
        return self.load(self.taking, [CREATE], 201)

    def reads_pending(self) -> Found:
        return self.load(self.taking, self._reads("bench_taking"), 200)

    def reads_final(self) -> Found:
        return self.load(self.working, self._reads("bench_working"), 200)

    def lives(self) -> Found:
        return self._lives(self.working, CREATE)

    def creates_with_options(self) -> Found:
        service = self.taking_options  # with which its database comes to be
        self.forget("bench_taking_options")
        return self.load(service, [create_with_options()], 201)

    def lives_with_options(self) -> Found:
        return self._lives(self.working_options, create_with_options())

    def drain(self, count: int = 0, settings: Mapping[str, Any] = DRAINING) -> Found:
        """Of a backlog, by one service that has just started."""
        database = self.database("bench_draining")
        since = backlog.lowest_id(self)
        backlog.fill(self, database, count or self.options.backlog)
        with self.service("draining", workers=1, **settings):
            found = backlog.drained(self, database, since)
        self.forget(database)
        return found

    # The measures beside the rounds.

    def start(self) -> Found:
        """From the process's start to its first healthy answer, with servers that are warm."""
        with self.service("starting", workers=1) as child:
            time.sleep(0.5)  # its first round of duties is over
            return {"seconds": child.started_in_seconds, "resident_bytes": child.resident_bytes}

    def idle_statements(self, seconds: float) -> Found:
        """What PostgreSQL logs of an idle service that serves and works."""
        service = self.service("idle", workers=1)
        self.query("ALTER DATABASE bench_idle SET log_statement = 'all'")
        with service:
            time.sleep(1.0)
            before = self._logged_statements()
            time.sleep(seconds)
            return {"a_second": (self._logged_statements() - before) / seconds}

    # Below.

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

    def _lives(self, child: Child, request: str) -> Found:
        with self._cpu(child) as cpu:
            found = lives([child], lambda: self.load(child, [request], 201))
        return {**found, "cpu": cpu(found["answers"])}

    def load(self, child: Child, requests: list[str], status: int) -> Found:
        with self._cpu(child) as cpu:
            found = children.load(
                child.port,
                requests=requests,
                status=status,
                connections=self.options.connections,
                seconds=self.options.seconds,
            )
        return {**found, "cpu": cpu(found["answers"])}

    @contextmanager
    def _cpu(self, child: Child) -> Iterator[Callable[[int], dict[str, float]]]:
        """Afterwards tells the microseconds of CPU for each of so many."""
        pids = {"server": child.pid, "postgres": self.postgres.pid, "redis": self.redis.pid}
        before = {name: children.cpu_seconds(pid) for name, pid in pids.items()}
        used: dict[str, float] = {}
        yield lambda count: {name: each / max(1, count) * 1e6 for name, each in used.items()}
        used.update((name, children.cpu_seconds(pid) - before[name]) for name, pid in pids.items())

    def _logged_statements(self) -> int:
        return self.postgres.log.path.read_text(errors="replace").count("LOG:  statement: ")

    def _reads(self, database: str) -> list[str]:
        """Whatever is there: what was created last, or has lived."""
        ids = self.query("SELECT id FROM task LIMIT %s", _READ_IDS, database=database)
        return [get(id) for (id,) in ids]

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
