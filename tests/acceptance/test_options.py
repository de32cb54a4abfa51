"""The options of a create, against the running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import assert_problem, post, talk

SHORT_SECONDS = 0.6

LATE_SECONDS = 0.5
"""A task starts within so long of its time."""


def create(service: ServiceProcess, **options: object) -> dict[str, Any]:
    answer = talk(service.port, post(json.dumps({"content": "x", **options}).encode()))
    assert answer.status == 201, answer.body
    task: dict[str, Any] = answer.json()
    return task


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def ended(service: ServiceProcess, id: str, status: str) -> dict[str, Any]:
    """The task, once it has that status."""
    await eventually(lambda: service.task(id)["status"] == status)
    return service.task(id)


def started_late(service: ServiceProcess, id: str, due: datetime) -> float:
    """How many seconds after its time a task that takes no time was done."""
    ((finished_at,),) = query(
        service.env["DATABASE_URL"], "SELECT finished_at FROM task WHERE id = %s", id
    )
    return (finished_at - due).total_seconds()


async def test_delayed_task_starts_at_its_time(shared_service: ServiceProcess) -> None:
    task = create(shared_service, delay_seconds=SHORT_SECONDS)

    assert task["status"] == "pending"
    due = moment(task["run_at"])
    assert (due - moment(task["created_at"])).total_seconds() == pytest.approx(
        SHORT_SECONDS, abs=0.1
    )
    assert "run_at" not in await ended(shared_service, task["id"], "completed")
    assert 0 <= started_late(shared_service, task["id"], due) < LATE_SECONDS


@pytest.mark.slow
async def test_many_delayed_tasks_each_start_at_their_time(shared_service: ServiceProcess) -> None:
    delays = [SHORT_SECONDS + 0.05 * number for number in range(20)]
    tasks = [create(shared_service, delay_seconds=delay) for delay in delays]

    for task in tasks:
        await ended(shared_service, task["id"], "completed")
        late = started_late(shared_service, task["id"], moment(task["run_at"]))
        assert 0 <= late < LATE_SECONDS


async def test_task_starts_at_a_given_moment(shared_service: ServiceProcess) -> None:
    task = create(shared_service, run_at=soon(SHORT_SECONDS))

    await ended(shared_service, task["id"], "completed")
    assert 0 <= started_late(shared_service, task["id"], moment(task["run_at"])) < LATE_SECONDS


async def test_moment_that_has_passed_is_now(shared_service: ServiceProcess) -> None:
    task = create(shared_service, run_at="2020-01-01T00:00:00Z")

    assert "run_at" not in task
    await ended(shared_service, task["id"], "completed")
    assert started_late(shared_service, task["id"], moment(task["created_at"])) < LATE_SECONDS


async def test_delayed_task_can_be_canceled(shared_service: ServiceProcess) -> None:
    task = create(shared_service, delay_seconds=3600)

    status, _, body = shared_service.request("PATCH", f"/task/{task['id']}/cancel")

    assert status == 200
    assert json.loads(body)["status"] == "canceled"


async def test_task_that_could_not_start_in_time_fails(shared_service: ServiceProcess) -> None:
    task = create(shared_service, delay_seconds=3600, expires_at=soon(SHORT_SECONDS))

    assert moment(task["expires_at"]) < moment(task["run_at"])
    failed = await ended(shared_service, task["id"], "failed")
    assert failed["error"] == {
        "type": "Expired",
        "message": "It could not start in time.",
        "attempt": 0,
    }
    late = started_late(shared_service, task["id"], moment(task["expires_at"]))
    assert 0 <= late < LATE_SECONDS


async def test_task_that_starts_in_time_does_not_expire(shared_service: ServiceProcess) -> None:
    task = create(shared_service, expires_at=soon(3600))

    await ended(shared_service, task["id"], "completed")


@pytest.mark.slow
async def test_backoff_of_a_task(shared_services: Callable[..., ServiceProcess]) -> None:
    service = shared_services(
        TASK_SIMULATED_SECONDS=60, TASK_RETRY_BASE_SECONDS=1e7, TASK_RETRY_MAX_SECONDS=1e7
    )
    quick = [{"retry_max_seconds": 0}, {"retry_base_seconds": 0}]
    ids = [
        create(service, timeout_seconds=0.05, max_attempts=3, **bounds)["id"]
        for bounds in [*quick, {"retry_base_seconds": 100, "retry_max_seconds": 200}, {}]
    ]

    for id in ids[:2]:
        assert (await ended(service, id, "failed"))["error"]["attempt"] == 3
    waiting = []
    for id in ids[2:]:
        await eventually(lambda id=id: "error" in service.task(id))
        waiting.append(service.task(id))
    assert [task["status"] for task in waiting] == ["pending"] * 2
    seconds = [
        (moment(task["run_at"]) - moment(task["updated_at"])).total_seconds() for task in waiting
    ]
    assert seconds[0] <= 100
    assert seconds[1] > 1000  # but once in ten thousand times


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"retry_base_seconds": -1}, "/retry_base_seconds"),
        ({"retry_max_seconds": -1}, "/retry_max_seconds"),
        ({"retry_base_seconds": 367 * 86400}, "/retry_base_seconds"),
        ({"retry_max_seconds": "long"}, "/retry_max_seconds"),
        ({"retry_max_seconds": "5"}, "/retry_max_seconds"),
        ({"retry_base_seconds": 2, "retry_max_seconds": 1}, "/retry_max_seconds"),
    ],
)
async def test_backoff_that_will_not_do_is_named(
    shared_service: ServiceProcess, options: dict[str, Any], pointer: str
) -> None:
    answer = talk(shared_service.port, post(json.dumps({"content": "x", **options}).encode()))

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.slow
async def test_time_limit_and_attempts_of_a_task(
    shared_services: Callable[..., ServiceProcess],
) -> None:
    service = shared_services(TASK_SIMULATED_SECONDS=60, TASK_RETRY_BASE_SECONDS=0)
    task = create(service, timeout_seconds=0.1, max_attempts=2)

    assert task["timeout_seconds"] == 0.1
    failed = await ended(service, task["id"], "failed")
    assert failed["error"] == {
        "type": "TimedOut",
        "message": "It ran for longer than 0.1 s.",
        "attempt": 2,
    }


@pytest.mark.slow
async def test_high_priority_goes_first_and_low_does_not_starve(
    shared_services: Callable[..., ServiceProcess],
) -> None:
    service = shared_services(TASK_SIMULATED_SECONDS=0.05, TASK_CONSUMER_CONCURRENCY=1)
    lows, highs = (
        [create(service, priority=priority)["id"] for _ in range(10)]
        for priority in ("low", "high")
    )
    for id in lows + highs:
        await ended(service, id, "completed")

    order = query(service.env["DATABASE_URL"], "SELECT id FROM task ORDER BY finished_at")
    places = {id: place for place, (id,) in enumerate(order)}
    # The lows had begun before the first high was there; from then on they had one turn in eight.
    overtaken = [id for id in lows if places[id] > places[highs[-1]]]
    assert len(overtaken) >= 5
    assert any(places[highs[0]] < places[id] < places[highs[-1]] for id in lows)


async def test_priority_is_shown_and_kept_by_a_retry(shared_service: ServiceProcess) -> None:
    task = create(shared_service, priority="low")
    assert task["priority"] == "low"
    assert "priority" not in create(shared_service, priority="normal")
    assert (await ended(shared_service, task["id"], "completed"))["priority"] == "low"

    status, _, body = shared_service.request("POST", f"/task/{task['id']}/retry")
    assert (status, json.loads(body)["priority"]) == (201, "low")
