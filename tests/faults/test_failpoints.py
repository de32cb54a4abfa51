"""The process dies exactly at a step of a task's life, and the task still ends once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import StartServant
from tests.faults.handlers import DIED
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Effects = Callable[[], list[dict[str, Any]]]

ROWS = "SELECT status, attempt, failures FROM task"


def try_to_create(servant: ServiceProcess) -> None:
    """The answer may never come: the service dies over it."""
    with contextlib.suppress(OSError):
        servant.create()


@pytest.mark.parametrize("failpoint", ["after_insert", "after_publication"])
async def test_task_survives_death_on_its_way_in(
    start_servant: StartServant, failpoint: str
) -> None:
    servant = start_servant(FAILPOINT=failpoint, TASK_CONSUMER_WORKERS=0)
    try_to_create(servant)
    assert servant.process.wait(10) == DIED

    other = start_servant()

    await eventually(lambda: query(other.env["DATABASE_URL"], ROWS) == [("completed", 1, 0)])


@pytest.mark.parametrize("failpoint", ["after_held_insert", "after_telling"])
async def test_task_that_starts_where_it_is_created_ends_once(
    start_servant: StartServant, failpoint: str
) -> None:
    doomed = start_servant(FAILPOINT=failpoint)

    def is_dead() -> bool:  # as soon as it has found out that nothing waits
        try_to_create(doomed)
        return doomed.process.poll() == DIED

    await eventually(is_dead)
    other = start_servant()

    url = other.env["DATABASE_URL"]
    await eventually(lambda: {status for status, *_ in query(url, ROWS)} == {"completed"})
    again = [row for row in query(url, ROWS) if row != ("completed", 1, 0)]
    assert set(again) <= {("completed", 2, 1)}
    assert failpoint != "after_held_insert" or again
    await eventually(lambda: other.metric("tasksvc_stream_depth") == 0)
    await eventually(lambda: other.metric("tasksvc_stream_pending") == 0)


@pytest.mark.parametrize(
    ("failpoint", "attempts", "runs"),
    [
        ("after_claim", 2, 1),
        ("after_effect", 2, 2),
        ("after_finish", 1, 1),
        ("before_acknowledgement", 1, 1),
    ],
)
async def test_task_ends_once_though_its_worker_dies(
    start_servant: StartServant, effects: Effects, failpoint: str, attempts: int, runs: int
) -> None:
    front = start_servant(TASK_CONSUMER_WORKERS=0)
    doomed = start_servant(FAILPOINT=failpoint)
    front.create()
    assert doomed.process.wait(10) == DIED

    start_servant()

    url = front.env["DATABASE_URL"]
    await eventually(lambda: query(url, ROWS) == [("completed", attempts, attempts - 1)])
    assert len([each for each in effects() if each["event"] == "start"]) == runs
    await eventually(lambda: front.metric("tasksvc_stream_depth") == 0)
    await eventually(lambda: front.metric("tasksvc_stream_pending") == 0)


async def test_cancel_is_final_though_the_service_dies_before_it_answers(
    start_servant: StartServant,
) -> None:
    servant = start_servant(FAILPOINT="after_cancel", TASK_CONSUMER_WORKERS=0)
    id = servant.create()["id"]
    with pytest.raises(OSError, match=r"."):
        servant.request("PATCH", f"/task/{id}/cancel")
    assert servant.process.wait(10) == DIED

    other = start_servant()

    assert other.task(id)["status"] == "canceled"
    assert other.request("PATCH", f"/task/{id}/cancel")[0] == 400


async def test_hand_back_survives_death_in_the_middle(start_servant: StartServant) -> None:
    servant = start_servant(FAILPOINT="after_finish", TASKSVC_GRACE_SECONDS=0)
    servant.create('{"seconds": 60, "ignores_cancel": true}')
    await eventually(lambda: servant.metric("tasksvc_running") == 1)
    assert servant.stop() == DIED
    url = servant.env["DATABASE_URL"]
    assert query(url, ROWS) == [("pending", 1, 0)]

    query(url, "UPDATE task SET content = 'x'")
    start_servant()

    await eventually(lambda: query(url, ROWS) == [("completed", 2, 0)])


@pytest.mark.parametrize("failpoint", ["after_rescue", "after_republication"])
async def test_rescue_survives_the_death_of_the_rescuer(
    start_servant: StartServant, failpoint: str
) -> None:
    first = start_servant()
    first.create('{"seconds": 60}')
    await eventually(lambda: first.metric("tasksvc_running") == 1)
    query(first.env["DATABASE_URL"], "UPDATE task SET content = 'x'")
    rescuer = start_servant(FAILPOINT=failpoint)
    first.kill()
    assert rescuer.process.wait(15) == DIED

    last = start_servant()

    await eventually(lambda: query(last.env["DATABASE_URL"], ROWS) == [("completed", 2, 1)])


async def test_task_that_kills_every_worker_ends_as_failed(
    start_servant: StartServant, effects: Effects
) -> None:
    front = start_servant(TASK_CONSUMER_WORKERS=0, TASK_MAX_ATTEMPTS=2)
    id = front.create('{"exits": true}')["id"]
    for _ in range(2):
        assert start_servant(spawn=True).process.wait(15) == DIED

    start_servant()

    await eventually(lambda: front.task(id)["status"] == "failed")
    assert front.task(id)["error"]["type"] == "WorkerLost"
    assert len(effects()) == 2


@pytest.mark.parametrize("failpoint", ["before_schedule", "after_schedule"])
async def test_moment_of_a_schedule_has_one_task_though_its_maker_dies(
    start_servant: StartServant, failpoint: str
) -> None:
    doomed = start_servant(FAILPOINT=failpoint)
    body = b'{"cron": "0 0 1 1 *", "task": {"content": "x"}}'
    headers = {"Content-Type": "application/json"}
    assert doomed.request("PUT", "/schedules/a", body, headers)[0] == 201
    url = doomed.env["DATABASE_URL"]
    query(url, "UPDATE schedule SET next_run_at = clock_timestamp()")
    with contextlib.suppress(OSError):  # it wakes, and dies
        doomed.request("PUT", "/schedules/a", body, headers)
    assert doomed.process.wait(10) == DIED

    start_servant()

    await eventually(lambda: query(url, ROWS) == [("completed", 1, 0)])
    assert query(url, "SELECT next_run_at > clock_timestamp() FROM schedule") == [(True,)]
