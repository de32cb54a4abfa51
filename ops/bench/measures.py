"""What is measured, each as one function over the run's processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

from ops.bench import backlog, children, stores
from ops.bench.children import Child
from ops.bench.load import CONTENT_BYTES, create, get
from ops.bench.options import create_with_options
from ops.bench.servers import DRAINING, PLACES, Found, Servers

CREATE = create(CONTENT_BYTES)

_WITH_OPTIONS: Mapping[str, Any] = MappingProxyType({"TASKSVC_HANDLERS": "ops.bench.options"})

_READ_IDS = 1000
"""How many tasks are read in turn."""


class Bench(Servers):
    """The servers, the reference, and the service twice: taking only, and taking and working.

    Each of the two has a database and a key prefix of its own, so that one does not work for the
    other.
    """

    def __enter__(self) -> Self:
        super().__enter__()
        with ExitStack() as stack:
            stack.push(super().__exit__)
            self.echo = self._stack.enter_context(self.echo_of(CONTENT_BYTES))
            self.taking = self._stack.enter_context(self.service("taking", workers=0))
            self.working = self._stack.enter_context(
                self.service("working", workers=1, TASK_CONSUMER_CONCURRENCY=PLACES)
            )
            stack.pop_all()
        return self

    def echo_of(self, content_bytes: int) -> Child:
        """One that is not started yet, whose reads answer so large a content."""
        return children.echo(self._folder, content_bytes)

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
        return self.lives_of(self.working, CREATE)

    def creates_with_options(self) -> Found:
        service = self.taking_options  # with which its database comes to be
        self.forget("bench_taking_options")
        return self.load(service, [create_with_options()], 201)

    def lives_with_options(self) -> Found:
        return self.lives_of(self.working_options, create_with_options())

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

    def _logged_statements(self) -> int:
        return self.postgres.log.path.read_text(errors="replace").count("LOG:  statement: ")

    def _reads(self, database: str) -> list[str]:
        """Whatever is there: what was created last, or has lived."""
        ids = self.query("SELECT id FROM task LIMIT %s", _READ_IDS, database=database)
        return [get(id) for (id,) in ids]
