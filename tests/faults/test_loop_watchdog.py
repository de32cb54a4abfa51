"""No request holds the event loop: bodies at the limit, of many shapes, to every endpoint, and the
largest answers, while the loop is watched (`tests.faults.watched`)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.testing.process import clean_environment, free_port
from tasksvc.web.routes import TASKS
from tests.conftest import database_named
from tests.harness import ServiceProcess, create_database, eventually, query
from tests.wire import Answer

pytestmark = pytest.mark.slow

LONGEST_SECONDS = 0.05
"""Of the processor's time: see `tests.faults.watched`."""

_TRIES = 3

MAX_BYTES = 262_144
MAX_BATCH_BYTES = 5_242_880

OPTIONS: dict[str, Any] = {
    "kind": "default",
    "max_attempts": 3,
    "timeout_seconds": 5,
    "delay_seconds": 9e3,
    "expires_at": "2099-12-31T23:59:59+01:00",
    "priority": "low",
    "queue": "q",
    "retry_base_seconds": 1,
    "retry_max_seconds": 9,
}


class Watched:
    """A service, and how long its loop was held."""

    def __init__(self, service: ServiceProcess, holds: Path) -> None:
        self._service = service
        self._holds = holds
        self.url = service.env["DATABASE_URL"]

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer to a request that holds the loop for no longer than it may.

        What else the machine does can only make it look worse, so of three times one is enough.
        """
        for _ in range(_TRIES):
            answer, held = self._ask(method, path, body)
            print(method, path[:40], len(body or b""), "->", answer.status, len(answer.body), held)
            if held <= LONGEST_SECONDS:
                return answer
        raise AssertionError(f"it holds the loop for {held} s: {answer.status} {path[:40]}")

    def held_since(self, start: int) -> float:
        """The longest time that is written in the file from there on."""
        return max(map(float, self._holds.read_text()[start:].split()), default=0.0)

    def now(self) -> int:
        """The end of that file."""
        return len(self._holds.read_text())

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[Answer, float]:
        start = self.now()
        answer = self._talk(method, path, body)
        self._talk("GET", "/health/live", None)  # the watch has come round, too
        return answer, self.held_since(start)

    def _talk(self, method: str, path: str, body: bytes | None) -> Answer:
        # By the library: an answer may have 75 MB.
        connection = HTTPConnection("127.0.0.1", self._service.port, timeout=60)
        with closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return Answer("HTTP/1.1", response.status, {}, response.read())


@pytest.fixture(scope="module")
def watched(
    postgres: EmbeddedPostgres,
    template: str,
    redis_server: EmbeddedRedis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """Nothing is processed, so that what is measured is what requests cost."""
    create_database(postgres.url, "watched", template)
    folder = tmp_path_factory.mktemp("watched")
    holds = folder / "holds"
    holds.touch()
    env = clean_environment(
        DATABASE_URL=database_named(postgres.url, "watched"),
        REDIS_URL=redis_server.url,
        TASKSVC_REDIS_PREFIX="watched",
        TASK_CONSUMER_WORKERS=0,
        LOG_LEVEL="info",
        PORT=free_port(),
    )
    command = [sys.executable, "-m", "tests.faults.watched", str(holds)]
    service = ServiceProcess(folder, env, command)
    service.start()
    yield Watched(service, holds)
    service.end()


def filled(begin: bytes, element: bytes, end: bytes, size: int) -> bytes:
    """As many elements between the two as fit."""
    count = (size - len(begin) - len(end)) // (len(element) + 1)
    return begin + b",".join([element] * count) + end


def many_keys(begin: bytes, end: bytes, size: int) -> bytes:
    keys = (b'"%x":0' % number for number in range(size // 10))
    return begin + b",".join(keys) + end


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ELEMENTS = {
    "objects": b"{}",
    "numbers": b"0",
    "arrays": b"[]",
    "unknown": b'{"a":0}',
    "empty": b'{"content":""}',
    "bad queue": b'{"queue":""}',
    "good": b'{"content":"x"}',
    "nested": nested(900),
    "tasks": b'{"tasks":[{}]}',
    "long": b'"' + b"\\u0001" * 100_000 + b'"',
}
"""What an array may be full of."""


def wrong_bodies(size: int) -> dict[str, bytes]:
    """For any endpoint."""
    return {
        "array": filled(b"[", b"[]", b"]", size),
        "unknown keys": many_keys(b"{", b"}", size),
        "one key again and again": filled(b"{", b'"tasks":[{}]', b"}", size),
        "deep": b"[" * (size // 2) + b"]" * (size // 2),
        "deep objects": b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6),
        "spaces": b" " * (size - 2) + b"{}",
        "digits": b"9" * size,
        "string": b'"' + b"\\u0001" * (size // 6 - 1) + b'"',
        "broken off": b'{"tasks":[' + b'{"content":"x"},' * (size // 17),
    }


def wrong_objects(field: bytes, size: int) -> dict[str, bytes]:
    """For an endpoint whose body has this field."""
    begin = b'{"%s":' % field
    return wrong_bodies(size) | {
        **{
            f"{name} in it": filled(begin + b"[", each, b"]}", size)
            for name, each in ELEMENTS.items()
        },
        "keys in it": many_keys(begin + b"{", b"}}", size),
        "keys beside it": many_keys(begin + b"0,", b"}", size),
        "string in it": begin + b'"' + b"\\u0001" * (size // 6 - 20) + b'"}',
        "kept apart": filled(b"{", begin[1:] + b"0", b"}", size),
    }


def batch(tasks: list[dict[str, Any]]) -> bytes:
    body = json.dumps({"tasks": tasks}).encode()
    assert len(body) <= MAX_BATCH_BYTES
    return body


BATCHES = {
    "plain": batch([{"content": "x"}] * 1000),
    "large": batch([{"content": "x" * 4096}] * 1000),
    "options": batch([{"content": "x" * 4096, **OPTIONS}] * 1000),
    "escapes": batch([{"content": "\u0001" * 800, **OPTIONS}] * 1000),
    "unique": batch([{"content": "x", "unique_key": f"k{n}", **OPTIONS} for n in range(1000)]),
    "unique again": batch(
        [{"content": "y", "unique_key": f"k{n}", **OPTIONS} for n in range(1000)]
    ),
    "queues": batch([{"content": "x", "queue": f"q{n}"} for n in range(1000)]),
    "looks like NUL": batch([{"content": "\\u0000", **OPTIONS}] * 1000),
    "nulls": batch([{"content": "x", **dict.fromkeys(OPTIONS)}] * 1000),
    "times": batch([{"content": "x", "run_at": "2099-12-31 23:59:59.123456789-12:34"}] * 1000),
    "twenty": batch([{"content": "\u0001" * 43_000}] * 20),
}
"""That are taken."""

WRONG_BATCHES = wrong_objects(b"tasks", MAX_BATCH_BYTES) | {
    "last": batch([{"content": "x", **OPTIONS}] * 999 + [{"content": 1}]),
    "each": batch([{"content": "x", **OPTIONS, "kind": ""}] * 1000),
    "one unknown key each": batch([{"content": "x", **OPTIONS, "a": 1}] * 1000),
    "one too many": batch([{"content": "x", **OPTIONS}] * 1001),
    "keys in one": many_keys(b'{"tasks":[{', b"}]}", MAX_BATCH_BYTES),
    "keys in twenty": b'{"tasks":['
    + b",".join([many_keys(b"{", b"}", MAX_BYTES - 10_000)] * 20)
    + b"]}",
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(watched: Watched, name: str) -> None:
    answer = watched.ask("POST", "/tasks", BATCHES[name])

    assert answer.status == 201, answer.body[:200]


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_batches_that_will_not_do(watched: Watched, name: str) -> None:
    answer = watched.ask("POST", "/tasks", WRONG_BATCHES[name])

    assert answer.status in (400, 422)


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "/task", b"content"),
        ("POST", "/tasks/cancel", b"filter"),
        ("POST", "/tasks/retry", b"filter"),
        ("PUT", "/queues/a", b"concurrency"),
        ("PUT", "/schedules/a", b"task"),
        ("PUT", "/schedules/a", b"cron"),
        ("PUT", "/schedules/a", b"timezone"),
    ],
)
def test_bodies_that_will_not_do(watched: Watched, method: str, path: str, field: bytes) -> None:
    for body in wrong_objects(field, MAX_BYTES).values():
        assert watched.ask(method, path, body).status in (201, 400, 422)


@pytest.mark.parametrize(
    "path", [re.sub(r"\{\w+\}", "x", each.path) for each in TASKS if each.method == "GET"]
)
def test_long_queries(watched: Watched, path: str) -> None:
    for search in ("a&" * 3500, "a=" + "%41" * 2500, "&".join(f"{n}=1" for n in range(900))):
        assert watched.ask("GET", f"{path}?{search}").status == 422


def insert_large_tasks(url: str) -> str:
    """As many as fill a page, as large as they can be; the id of one."""
    query(
        url,
        """INSERT INTO task (id, content, max_attempts, status, finished_at, result)
        SELECT ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, repeat(%s, 43000), 3,
            'completed', now(), ('[' || repeat('[],', 21000) || '[]]')::json
        FROM generate_series(1, 100) AS n""",
        "\x01",
    )
    return "ffffffff-0000-7000-8000-000000000001"


def test_large_answers(watched: Watched) -> None:
    id = insert_large_tasks(watched.url)
    query(
        watched.url,
        """INSERT INTO attempt (task_id, attempt, started_at, ended_at, outcome, error, traceback)
        SELECT %s, n, now(), now(), 'retried', jsonb_build_object('message', repeat('x', 1000)),
            repeat('x', 8192)
        FROM generate_series(1, 1000) AS n""",
        id,
    )

    assert len(watched.ask("GET", "/tasks?limit=100").body) > 7_000_000
    assert len(watched.ask("GET", f"/task/{id}").body) > 258_000
    assert len(watched.ask("GET", f"/task/{id}/attempts").body) > 8_000_000
    query(watched.url, "DELETE FROM task WHERE id >= 'ffffffff-0000-7000-8000-000000000000'")


def test_batch_of_large_tasks_that_are_there_already(watched: Watched) -> None:
    query(
        watched.url,
        """INSERT INTO task (id, content, max_attempts, unique_key, due_at)
        SELECT ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, repeat('x', 250000),
            3, 'large' || n, now() + interval '1 day'
        FROM generate_series(1, 300) AS n""",
    )
    tasks = [{"content": "x", "unique_key": f"large{n}"} for n in range(1, 301)]

    assert len(watched.ask("POST", "/tasks", batch(tasks)).body) > 75_000_000
    query(watched.url, "DELETE FROM task WHERE id >= 'ffffffff-0000-7000-8000-000000000000'")


def test_many_at_a_time(watched: Watched) -> None:
    query(
        watched.url,
        "INSERT INTO queue (name) SELECT 'many' || n FROM generate_series(1, 1200) AS n",
    )
    watched.ask("POST", "/tasks", BATCHES["unique"])

    assert len(watched.ask("GET", "/queues").json()["queues"]) == 1000
    for path, status in (("/tasks/cancel", "pending"), ("/tasks/retry", "canceled")):
        for is_dry in (True, False):
            body = {"filter": {"status": status, "queue": "q"}, "dry_run": is_dry}
            answer = watched.ask("POST", path, json.dumps(body).encode())
            assert answer.json()["matched"] == 1000


async def test_schedules(watched: Watched) -> None:
    """A thousand of them are due at the same moment."""
    query(
        watched.url,
        """INSERT INTO schedule (name, cron, timezone, task, missed, next_run_at)
        SELECT 's' || n, '0 0 29 2 *', 'Europe/Berlin',
            json_build_object('content', repeat(%s, 2730)), 'last', now()
        FROM generate_series(1, 1000) AS n""",
        "\x01",
    )
    start = watched.now()
    put = {"cron": "0 0 1 1 *", "task": {"content": "x"}}
    watched.ask("PUT", "/schedules/other", json.dumps(put).encode())  # wakes the scheduler

    assert len(watched.ask("GET", "/schedules").json()["schedules"]) == 100
    count = "SELECT count(*) FROM task WHERE schedule IS NOT NULL"
    await eventually(lambda: query(watched.url, count) == [(1000,)])
    assert watched.held_since(start) <= LONGEST_SECONDS
