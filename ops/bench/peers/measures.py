"""What is measured of the peers, beside our own service, on the servers of one Bench."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from ops.bench import children
from ops.bench.children import ROOT, BenchError, Child
from ops.bench.measures import CREATE, Bench
from ops.bench.peers import install
from ops.bench.peers.registry import PEERS, Peer
from ops.bench.peers.tally import Tally
from ops.bench.servers import Found

_VERB_SECONDS = 60.0
_START_SECONDS = 20.0
_DRAIN_SECONDS = 40.0
_POLL_SECONDS = 0.005


class Process(Child):
    """A worker, or a verb that ends. It has no port: who wants to know looks at its tally."""

    def _await_health(self, deadline: float) -> None:
        pass

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.has_ended:
            if time.monotonic() > deadline:
                raise BenchError(f"{self._name} took more than {seconds:.0f} s: {self.last_words}")
            time.sleep(_POLL_SECONDS)
        if self._process.returncode:
            raise BenchError(f"{self._name} failed: {self.last_words}")


class PeerBench:
    """One peer: its own database and Redis number, its server, and a worker when one is needed."""

    def __init__(self, bench: Bench, peer: Peer, folder: Path) -> None:
        self.peer = peer
        self._bench = bench
        self._folder = folder
        self._database = f"bench_{peer.name.replace('-', '_')}"
        self._redis_url = self._redis_of(1 + PEERS.index(peer))
        self._tally_path = folder / "tally"
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def prepare(self) -> None:
        self._folder.mkdir()
        if self.peer.has_database:
            self._bench.query(f"CREATE DATABASE {self._database}")
            self._do("prepare")
        if self.peer.over_http:
            self._server = self._stack.enter_context(self._child(Child, "serve"))

    # The measures of a round.

    def creates(self) -> Found:
        self._forget()
        return self._load()

    def lives(self) -> Found:
        """The rate of lives that came to their end, from the first request until the last end."""
        self._forget()
        with self._worker() as (worker, tally):
            self._post_one()
            self._await_work(worker, tally, 1, _START_SECONDS)
            _, before = tally.read()
            found = self._load()
            ended_at = self._await_end(worker, tally, before + found["answers"])
        elapsed = ended_at - found["started_at"]
        return {**found, "rate": found["answers"] / elapsed, "creates_rate": found["rate"]}

    def drain(self) -> Found:
        """The rate at which a backlog is worked off, from the first task's start on."""
        count = max(100, round(self.peer.backlog * self._bench.options.seconds))
        self._forget()
        self._do("enqueue", str(count))
        if self.peer.has_database:
            self._bench.query("ANALYZE", database=self._database)
        with self._worker() as (worker, tally):
            ended_at = self._await_end(worker, tally, count)
            started_at, _ = tally.read()
        return {"rate": count / (ended_at - started_at), "count": count, "unexpected": {}}

    # Below.

    def _load(self) -> Found:
        options = self._bench.options
        return children.load(
            self._server.port,
            requests=[CREATE],
            status=201,
            connections=options.connections,
            seconds=options.seconds,
        )

    def _post_one(self) -> None:
        found = children.load(
            self._server.port, requests=[CREATE], status=201, connections=1, seconds=0.0
        )
        if not found["answers"]:
            raise BenchError(f"{self.peer.name} takes no task: {found['unexpected']}")

    @contextmanager
    def _worker(self) -> Iterator[tuple[Process, Tally]]:
        tally = Tally.create(self._tally_path)
        with self._child(Process, "work") as worker:
            yield worker, tally

    def _await_work(self, worker: Process, tally: Tally, count: int, seconds: float) -> None:
        """Until the handler was called so often. The store is left alone meanwhile."""
        deadline = time.monotonic() + seconds
        while (worked := tally.read()[1]) < count:
            if worker.has_ended or time.monotonic() > deadline:
                raise BenchError(
                    f"{self.peer.name} worked {worked} of {count} tasks: {worker.last_words}"
                )
            time.sleep(_POLL_SECONDS)

    def _await_end(self, worker: Process, tally: Tally, count: int) -> float:
        """When all is worked, and the store says so too."""
        self._await_work(worker, tally, count, _START_SECONDS + _DRAIN_SECONDS)
        deadline = time.monotonic() + _DRAIN_SECONDS
        with self._store() as unfinished:
            while unfinished():
                if worker.has_ended or time.monotonic() > deadline:
                    raise BenchError(f"{self.peer.name} never finished: {worker.last_words}")
                time.sleep(_POLL_SECONDS)
        return time.monotonic()

    @contextmanager
    def _store(self) -> Iterator[Any]:
        """Afterwards tells whether its store holds an unfinished task."""
        asked = self.peer.unfinished
        if isinstance(asked, str):
            with self._bench.cursor(self._database) as cursor:

                def ask_database() -> bool:
                    cursor.execute(asked)
                    return bool(cursor.fetchone()[0])

                yield ask_database
        else:
            with redis.Redis.from_url(self._redis_url) as client:
                yield lambda: any(client.execute_command(*each) for each in asked)

    def _forget(self) -> None:
        if self.peer.forget:
            self._bench.query(self.peer.forget, database=self._database)
        with redis.Redis.from_url(self._redis_url) as client:
            client.flushdb()

    def _do(self, verb: str, *arguments: str) -> None:
        with self._child(Process, verb, *arguments) as process:
            process.wait(_VERB_SECONDS)

    def _child(self, kind: type[Any], verb: str, *arguments: str) -> Any:
        peer = self.peer
        if peer.runtime == "node":
            program, command = install.node(), [str(ROOT / "ops/bench/peers/node/run.cjs")]
        else:
            program, command = install.python(peer), ["-m", "ops.bench.peers.run"]
        return kind(
            f"{peer.name}-{verb}",
            [*command, peer.program, verb, *arguments],
            self._folder,
            program,
            PYTHONPATH=ROOT,
            NODE_PATH=install.NODE_HOME / "node_modules",
            BENCH_TALLY=self._tally_path,
            BENCH_REDIS_URL=self._redis_url,
            BENCH_DATABASE_URL=self._bench.database_url(self._database),
        )

    def _redis_of(self, number: int) -> str:
        return urlsplit(self._bench.redis_url)._replace(path=f"/{number}").geturl()


class OwnBench:
    """Our own service at the same work."""

    def __init__(self, bench: Bench, **settings: Any) -> None:
        self._bench = bench
        self._settings = settings

    def creates(self) -> Found:
        return self._bench.creates()

    def lives(self) -> Found:
        return self._bench.lives()

    def drain(self) -> Found:
        return self._bench.drain(settings=self._settings)
