"""How long one has to wait: on an idle service, one request at a time, and at half its top rate."""

from __future__ import annotations

import re
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import orjson

from ops.bench import children
from ops.bench.children import BenchError
from ops.bench.load import CONTENT_BYTES, cancel, content, percentile
from ops.bench.measures import CREATE, Bench
from ops.bench.servers import Found

_WARM_UP = 20
"""Of each kind, before those that count."""

_REST_SECONDS = 0.015
"""Before each, so that the service has nothing else to do: what was before is finished by then."""

_ANSWER_SECONDS = 10.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Line:
    """One connection, kept alive: a request goes out in one piece, and its whole answer comes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: bytes, status: int) -> bytes:
        """The answer's body. Raises BenchError when it has another status."""
        self._socket.sendall(request)
        answer = self._more()
        while (head := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        length = _LENGTH.search(answer, 0, head)
        if length is None or not answer.startswith(b"HTTP/1.1 %d" % status):
            raise BenchError(f"Expected status {status}, not {answer[:40]!r}.")
        while len(answer) < head + 4 + int(length[1]):
            answer += self._more()
        return answer[head + 4 :]

    def _more(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise BenchError("The service hung up.")
        return data


def idle_wait(bench: Bench, count: int) -> Found:
    """From the moment a request to create is sent until its task's handler starts, and from the
    task's `created_at`; beside one committed row, in turn: on the same PostgreSQL, over its Unix
    socket, prepared."""
    waits, since_created, answers, commits = [], [], [], []
    request = CREATE.encode()
    with (
        _starts() as (starts, port),
        bench.service(
            "waiting", workers=1, command=("ops.bench.worker",), STARTS_PORT=port
        ) as service,
        bench.cursor("bench_waiting") as cursor,
        _line(service.port) as line,
    ):
        cursor.execute("CREATE TABLE single (id uuid PRIMARY KEY, content text NOT NULL)")
        cursor.execute("PREPARE insert_single AS INSERT INTO single VALUES ($1, $2)")
        for _ in range(_WARM_UP + count):
            time.sleep(_REST_SECONDS)
            row = (str(uuid4()), content(CONTENT_BYTES))
            begun_at = time.monotonic()
            cursor.execute("EXECUTE insert_single (%s, %s)", row)
            commits.append(time.monotonic() - begun_at)
            time.sleep(_REST_SECONDS)
            begun_at = time.monotonic()
            body = line.ask(request, 201)
            answers.append(time.monotonic() - begun_at)
            task_id, started_at = starts.recv(200).split()
            task = orjson.loads(body)
            if task["id"] != task_id.decode():
                raise BenchError("Another task was started than the one created.")
            waits.append(float(started_at) - begun_at)
            created_at = datetime.fromisoformat(task["created_at"]).timestamp()
            since_created.append(float(started_at) - (created_at - time.time() + time.monotonic()))
    found = _summed_up(waits[_WARM_UP:])
    created = _summed_up(since_created[_WARM_UP:])
    commit = _summed_up(commits[_WARM_UP:])
    return {
        **found,
        "commit_p50_ms": commit["p50_ms"],
        "commit_p99_ms": commit["p99_ms"],
        "answer_p50_ms": _summed_up(answers[_WARM_UP:])["p50_ms"],
        "commits": found["p50_ms"] / commit["p50_ms"],
        "since_created_p50_ms": created["p50_ms"],
        "commits_since_created": created["p50_ms"] / commit["p50_ms"],
    }


def cancels(bench: Bench, count: int) -> Found:
    """Of a pending task, one at a time, on a service that has nothing else to do."""
    ids = bench.query(
        "SELECT id FROM task WHERE finished_at IS NULL LIMIT %s",
        _WARM_UP + count,
        database="bench_taking",
    )
    latencies = []
    with _line(bench.taking.port) as line:
        for (id,) in ids:
            request = cancel(id).encode()
            time.sleep(_REST_SECONDS / 3)
            begun_at = time.monotonic()
            line.ask(request, 200)
            latencies.append(time.monotonic() - begun_at)
    return _summed_up(latencies[_WARM_UP:])


def paced_creates(bench: Bench, rate: float, seconds: float) -> Found:
    """At so many a second, in an open loop: see paced.py."""
    bench.forget("bench_taking")
    return children.load(
        bench.taking.port,
        requests=[CREATE],
        status=201,
        connections=bench.options.connections,
        seconds=seconds,
        rate=rate,
    )


@contextmanager
def _starts() -> Iterator[tuple[socket.socket, int]]:
    """Where a worker tells what it starts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as starts:
        starts.bind(("127.0.0.1", 0))
        starts.settimeout(_ANSWER_SECONDS)
        yield starts, starts.getsockname()[1]


@contextmanager
def _line(port: int) -> Iterator[Line]:
    line = Line(port)
    try:
        yield line
    finally:
        line.close()


def _summed_up(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "p50_ms": statistics.median(ordered) * 1000,
        "p99_ms": percentile(ordered, 99) * 1000,
    }
