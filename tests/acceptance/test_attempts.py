"""The history of a task, against the running service."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import Answer, assert_problem, assert_safe_headers, post, request, talk

Start = Callable[..., ServiceProcess]

SHOP = "tests.handlers.shop"

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"

KEYS = ["attempt", "started_at", "ended_at", "worker", "outcome"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def shop(shared_services: Start) -> ServiceProcess:
    """A service that serves the kinds of tests/handlers/shop.py."""
    return shared_services(TASKSVC_HANDLERS=SHOP, TASK_RETRY_BASE_SECONDS=0)


@pytest.fixture
def idle(shared_services: Start) -> ServiceProcess:
    """A service that works on nothing."""
    return shared_services(TASK_CONSUMER_WORKERS=0)


def create(service: ServiceProcess, kind: str, content: str = "x", **options: object) -> str:
    body = json.dumps({"content": content, "kind": kind, **options}).encode()
    answer = talk(service.port, post(body))
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


async def ended(service: ServiceProcess, id: str, status: str) -> dict[str, Any]:
    """The task, once it has that status."""
    await eventually(lambda: service.task(id)["status"] == status)
    return service.task(id)


def ask(service: ServiceProcess, id: str) -> Answer:
    return talk(service.port, request("GET", f"/task/{id}/attempts"))


def attempts(service: ServiceProcess, id: str) -> list[dict[str, Any]]:
    """Of a task that is there: well-formed, and in order."""
    answer = ask(service, id)
    assert answer.status == 200, answer.body
    assert_safe_headers(answer)
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["attempts"]
    found: list[dict[str, Any]] = document["attempts"]
    numbers = [each["attempt"] for each in found]
    assert numbers == sorted(set(numbers))
    for each in found:
        assert list(each)[:5] == KEYS
        assert set(each) - set(KEYS) <= {"error", "traceback"}
        assert TIME.fullmatch(each["started_at"])
        assert (each["ended_at"] is None) == (each["outcome"] is None)
        if each["ended_at"] is not None:
            assert TIME.fullmatch(each["ended_at"])
            assert each["started_at"] < each["ended_at"]
    return found


def name(service: ServiceProcess) -> str:
    return f"{socket.gethostname()}:{service.process.pid}"


async def test_task_that_never_ran_has_no_attempts(idle: ServiceProcess) -> None:
    id = idle.create()["id"]
    assert attempts(idle, id) == []

    idle.request("PATCH", f"/task/{id}/cancel")
    assert attempts(idle, id) == []


@pytest.mark.parametrize("kind", [None, "greet"])
async def test_plain_task_has_one(shop: ServiceProcess, kind: str | None) -> None:
    id = shop.create()["id"] if kind is None else create(shop, kind)
    task = await ended(shop, id, "completed")

    (attempt,) = attempts(shop, id)

    assert list(attempt) == KEYS
    assert (attempt["attempt"], attempt["outcome"]) == (1, "completed")
    # One that starts where it is created starts in the same microsecond, at times.
    assert task["created_at"] <= attempt["started_at"] < attempt["ended_at"] == task["updated_at"]


async def test_run_goes_on_until_it_is_canceled(shop: ServiceProcess) -> None:
    id = create(shop, "sleep-process", "60")
    await eventually(lambda: "progress" in shop.task(id))
    (before,) = attempts(shop, id)
    assert list(before) == KEYS
    assert (before["attempt"], before["outcome"], before["worker"]) == (1, None, name(shop))

    shop.request("PATCH", f"/task/{id}/cancel")

    (after,) = attempts(shop, id)
    assert after["ended_at"] is not None
    assert after == before | {"outcome": "canceled", "ended_at": after["ended_at"]}


async def test_failures_have_their_errors_and_tracebacks(shop: ServiceProcess) -> None:
    id = create(shop, "fail", "why")
    task = await ended(shop, id, "failed")

    found = attempts(shop, id)

    assert [each["outcome"] for each in found] == ["retried", "failed"]
    for number, each in enumerate(found, 1):
        assert list(each) == [*KEYS, "error", "traceback"]
        assert each["worker"] == name(shop)
        assert each["error"] == {"type": "Unheard", "message": "why", "attempt": number}
        assert each["traceback"].startswith("Traceback (most recent call last):\n")
        assert ", in fail\n    raise Unheard(content)\n" in each["traceback"]
        assert each["traceback"].endswith("tests.handlers.shop.Unheard: why\n")
    assert task["error"] == found[-1]["error"]
    assert "Traceback" not in json.dumps(task)
    events = await eventually(
        lambda: [  # a handler's own lines have no action
            event
            for event in shop.events()
            if event.get("action") == "handler_failed" and event["task_id"] == id
        ]
    )
    assert events[0]["exception"][0]["frames"][-1]["name"] == "fail"


async def test_traceback_comes_over_from_a_process(shop: ServiceProcess) -> None:
    id = create(shop, "fail-process", "why")
    await ended(shop, id, "failed")

    (attempt,) = attempts(shop, id)

    assert ", in fail_in_a_process\n    raise Unheard(content)\n" in attempt["traceback"]
    assert attempt["traceback"].rstrip().endswith("tests.handlers.shop.Unheard: why")


async def test_long_and_hostile_traceback_is_cut_and_kept(shop: ServiceProcess) -> None:
    id = create(shop, "fail", '"quotes" \\ {a,b} %s € ' + "x" * 20_000)
    await ended(shop, id, "failed")

    for each in attempts(shop, id):
        assert len(each["traceback"].encode()) <= 8192
        assert each["traceback"].endswith("xxx\n")


async def test_worker_that_stops_and_one_that_dies(start_service: Start) -> None:
    sleeping = {"TASK_SIMULATED_SECONDS": 60, "TASKSVC_GRACE_SECONDS": 0}
    stopped = start_service(**sleeping)
    id = stopped.create()["id"]
    await ended(stopped, id, "processing")
    assert stopped.stop() == 0
    killed = start_service(**sleeping)
    await ended(killed, id, "processing")
    killed.kill()
    last = start_service()
    await ended(last, id, "completed")

    released, lost, completed = attempts(last, id)

    assert (released["outcome"], released["worker"]) == ("released", name(stopped))
    assert (lost["outcome"], lost["worker"]) == ("lost", name(killed))
    assert lost["error"]["type"] == "WorkerLost"
    assert completed["outcome"] == "completed"
    assert "error" not in released.keys() | completed.keys()
    assert not any("traceback" in each for each in (released, lost, completed))


async def test_of_very_many_the_newest_are_shown(idle: ServiceProcess) -> None:
    id = idle.create()["id"]
    query(
        idle.env["DATABASE_URL"],
        """INSERT INTO attempt (task_id, attempt, started_at, outcome)
        SELECT %s, n, clock_timestamp() - interval '1 s', 'released'
        FROM generate_series(1, 1200) AS n""",
        id,
    )

    assert [each["attempt"] for each in attempts(idle, id)] == list(range(201, 1201))


@pytest.mark.parametrize("id", [UNKNOWN_ID, "x", UNKNOWN_ID + "0", "%00"])
async def test_unknown_task_has_no_history(idle: ServiceProcess, id: str) -> None:
    assert_problem(ask(idle, id), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_history_can_only_be_read(idle: ServiceProcess, method: str) -> None:
    answer = talk(idle.port, request(method, f"/task/{UNKNOWN_ID}/attempts", body=b""))

    assert_problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"
