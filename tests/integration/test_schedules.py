"""Schedules over the real store and the real stream: one task for each moment, whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
import structlog

from tasksvc.domain.errors import (
    ScheduleNotFound,
    StoreUnavailable,
    TooManySchedules,
    UnknownKind,
)
from tasksvc.domain.schedule import Missed, ScheduleOrder, Tick
from tasksvc.domain.task import Status
from tasksvc.duties.scheduler import Scheduler
from tasksvc.loop import Loop, WakeUp
from tasksvc.metrics import Metrics
from tasksvc.services import schedules as schedules_module
from tasksvc.services.schedules import ScheduleService
from tasksvc.services.tasks import TaskService
from tasksvc.store.database import Database
from tasksvc.store.schedule_store import ScheduleStore
from tests.harness import eventually, query
from tests.services import MakeServices

Make = Callable[[], ScheduleService]

YEARLY = "0 0 1 1 *"

MADE = "SELECT schedule, scheduled_for FROM task ORDER BY schedule, scheduled_for"


@pytest.fixture
async def make_schedules(
    database_url: str, make_services: MakeServices, metrics: Metrics
) -> AsyncIterator[Make]:
    """Makes services of schedules, each with connections of its own, as processes have."""
    stores = []

    def make(wake_scheduler: Callable[[], object] = lambda: None) -> ScheduleService:
        stores.append(ScheduleStore(Database(database_url)))
        return ScheduleService(
            stores[-1],
            make_services().tasks,
            metrics,
            wake_scheduler=wake_scheduler,
            max_waiting=100,
        )

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
def schedules(make_schedules: Make) -> ScheduleService:
    return make_schedules()


def order(cron: str = YEARLY, task: dict[str, Any] | None = None, **changes: Any) -> ScheduleOrder:
    task = task or {"content": "x"}
    made = ScheduleOrder(cron, "UTC", json.dumps(task), Missed.LAST, False, task.get("kind"))
    return made._replace(**changes)


def make_due(url: str, seconds_ago: float = 0.0) -> datetime:
    """All schedules have been due for so long; since when."""
    ((moment,), *_) = query(
        url,
        "UPDATE schedule SET next_run_at = clock_timestamp() - make_interval(secs => %s)"
        " WHERE next_run_at IS NOT NULL RETURNING next_run_at",
        seconds_ago,
    )
    query(url, "UPDATE schedule SET next_run_at = %s WHERE next_run_at IS NOT NULL", moment)
    assert isinstance(moment, datetime)
    return moment


def made(url: str) -> list[tuple[str, datetime]]:
    """The schedule and the moment of each task."""
    return query(url, MADE)


# Put.


async def test_new_schedule_comes_next_after_the_clock_of_the_database(
    schedules: ScheduleService, database_url: str
) -> None:
    schedule, is_new = await schedules.put("nightly", order("* * * * *", timezone="Asia/Tokyo"))

    assert is_new
    assert schedule[:5] == ("nightly", "* * * * *", "Asia/Tokyo", '{"content": "x"}', Missed.LAST)
    assert (schedule.updated_at, schedule.last_run_at, schedule.last_task_id) == (None, None, None)
    assert schedule.next_run_at is not None
    assert (
        timedelta(seconds=-1) < schedule.next_run_at - schedule.created_at <= timedelta(minutes=1)
    )
    assert await schedules.get("nightly") == schedule
    assert query(database_url, "SELECT count(*) FROM task") == [(0,)]


async def test_schedule_that_is_put_again_is_changed(schedules: ScheduleService) -> None:
    first, _ = await schedules.put("a", order())
    changed = order("5 4 * * *", task={"content": "y"}, missed=Missed.SKIP)

    second, is_new = await schedules.put("a", changed)

    assert not is_new
    assert (second.cron, second.missed) == ("5 4 * * *", Missed.SKIP)
    assert json.loads(second.task) == {"content": "y"}
    assert second.created_at == first.created_at
    assert second.updated_at is not None
    assert second.next_run_at != first.next_run_at


async def test_put_takes_away_no_moment_that_is_due(
    schedules: ScheduleService, database_url: str
) -> None:
    """A deployment that puts its schedules again may come at any moment."""
    await schedules.put("a", order())
    due = make_due(database_url)

    schedule, _ = await schedules.put("a", order(task={"content": "y"}))

    assert schedule.next_run_at == due
    await schedules.run_due()
    assert made(database_url) == [("a", due)]
    assert query(database_url, "SELECT content FROM task") == [("y",)]


async def test_paused_schedule_makes_nothing_and_goes_on_from_now(
    schedules: ScheduleService, database_url: str
) -> None:
    first, _ = await schedules.put("a", order())
    make_due(database_url, 3600)

    paused, _ = await schedules.put("a", order(is_paused=True))

    assert paused.is_paused
    assert await schedules.run_due() == (0, None)
    again, _ = await schedules.put("a", order())
    assert again.next_run_at == first.next_run_at
    assert made(database_url) == []


async def test_kind_that_no_process_serves_is_refused(schedules: ScheduleService) -> None:
    with pytest.raises(UnknownKind):
        await schedules.put("a", order(task={"content": "x", "kind": "unknown-kind"}))
    with pytest.raises(ScheduleNotFound):
        await schedules.get("a")


async def test_number_of_schedules_is_bounded(
    schedules: ScheduleService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules_module, "MAX_SCHEDULES", 2)
    for name in ("a", "b", "a"):
        await schedules.put(name, order())

    with pytest.raises(TooManySchedules):
        await schedules.put("c", order())

    await schedules.delete("b")
    await schedules.put("c", order())
    assert [each.name for each in await schedules.find("", 10)] == ["a", "c"]


async def test_schedules_are_in_the_order_of_their_names(schedules: ScheduleService) -> None:
    for name in ("b", "B", "a.1", "_", "a-1"):
        await schedules.put(name, order())

    assert [each.name for each in await schedules.find("", 10)] == ["B", "_", "a-1", "a.1", "b"]


async def test_deleted_schedule_is_gone(schedules: ScheduleService, database_url: str) -> None:
    await schedules.put("a", order())
    make_due(database_url)
    await schedules.delete("a")

    with pytest.raises(ScheduleNotFound):
        await schedules.delete("a")
    assert await schedules.run_due() == (0, None)


# Run.


async def test_due_schedule_makes_a_task_and_goes_on(
    schedules: ScheduleService,
    task_service: TaskService,
    database_url: str,
    redis_client: redis.Redis,
    redis_prefix: str,
) -> None:
    task = {"content": "y", "max_attempts": 7, "timeout_seconds": 1.5}
    before, _ = await schedules.put("a", order(task=task))
    due = make_due(database_url)

    assert await schedules.run_due() == (1, None)

    after = await schedules.get("a")
    assert (after.next_run_at, after.last_run_at) == (before.next_run_at, due)
    assert after.last_task_id is not None
    made_task = await task_service.get(after.last_task_id)
    assert (made_task.content, made_task.status) == ("y", Status.PENDING)
    assert (made_task.schedule, made_task.scheduled_for) == ("a", due)
    assert made_task.timeout_seconds == 1.5
    assert query(database_url, "SELECT max_attempts, kind FROM task") == [(7, "default")]
    await schedules._tasks.flush()
    entries = redis_client.xrange(f"{redis_prefix}:tasks")
    assert [fields for _, fields in entries] == [{"id": made_task.id}]


async def test_moment_passes_while_the_task_of_an_earlier_one_is_live(
    schedules: ScheduleService, task_service: TaskService, database_url: str
) -> None:
    await schedules.put("a", order(task={"content": "x", "unique_key": "u"}))
    for _ in range(2):
        make_due(database_url)
        assert await schedules.run_due() == (1, None)
    first = (await schedules.get("a")).last_task_id
    assert first is not None
    assert len(made(database_url)) == 1

    await task_service.cancel(first)
    make_due(database_url)

    assert await schedules.run_due() == (1, None)
    second = (await schedules.get("a")).last_task_id
    assert second not in (None, first)
    assert len(made(database_url)) == 2


async def test_schedule_that_is_not_due_waits(
    schedules: ScheduleService, database_url: str
) -> None:
    assert await schedules.run_due() == (0, None)
    await schedules.put("a", order())
    await schedules.put("b", order())
    query(
        database_url,
        "UPDATE schedule SET next_run_at = clock_timestamp() + interval '1 hour' WHERE name = 'b'",
    )

    count, seconds = await schedules.run_due()

    assert count == 0
    assert seconds == pytest.approx(3600, abs=30)
    assert made(database_url) == []


@pytest.mark.parametrize("missed", Missed)
async def test_moment_that_was_missed(
    schedules: ScheduleService, database_url: str, metrics: Metrics, missed: Missed
) -> None:
    await schedules.put("a", order(missed=missed))
    due = make_due(database_url, 3 * 86400)

    assert (await schedules.run_due())[0] == 1

    assert made(database_url) == ([("a", due)] if missed is Missed.LAST else [])
    after = await schedules.get("a")
    assert after.next_run_at is not None
    assert after.next_run_at > due + timedelta(days=3)
    assert (after.last_run_at is None) is (missed is Missed.SKIP)
    counted = {outcome: count.value for outcome, count in metrics.schedule_runs.items()}
    is_made = missed is Missed.LAST
    assert counted == {"made": int(is_made), "skipped": int(not is_made)}


@pytest.mark.parametrize("missed", Missed)
async def test_of_many_that_were_missed_the_last_alone_is_made_up_for(
    schedules: ScheduleService, database_url: str, missed: Missed
) -> None:
    """The last of them is less than a minute old, and so is not missed."""
    await schedules.put("a", order("* * * * *", missed=missed))
    make_due(database_url, 3 * 86400)

    await schedules.run_due()

    ((_, moment),) = made(database_url)
    ((created_at,),) = query(database_url, "SELECT created_at FROM task")
    assert (moment.second, moment.microsecond) == (0, 0)
    assert timedelta(0) <= created_at - moment <= timedelta(seconds=62)


async def test_a_little_late_is_not_missed(schedules: ScheduleService, database_url: str) -> None:
    await schedules.put("a", order(missed=Missed.SKIP))
    due = make_due(database_url, 30)

    await schedules.run_due()

    assert made(database_url) == [("a", due)]


async def test_schedulers_of_many_processes_make_each_task_once(
    make_schedules: Make, database_url: str
) -> None:
    services = [make_schedules() for _ in range(3)]
    names = [f"s{number}" for number in range(40)]
    for name in names:
        await services[0].put(name, order())
    rounds = []

    for _ in range(8):
        rounds.append(make_due(database_url))
        while sum([count for count, _ in await asyncio.gather(*(s.run_due() for s in services))]):
            pass

    assert Counter(made(database_url)) == Counter((name, at) for name in names for at in rounds)


async def test_answer_that_was_lost_makes_no_second_task(
    schedules: ScheduleService, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await schedules.put("a", order())
    due = make_due(database_url)
    run = schedules._store.run_schedules
    answers: list[Any] = []

    async def run_twice(ticks: Sequence[Tick]) -> Any:
        answers.extend([await run(ticks), await run(ticks)])
        return answers[1]

    monkeypatch.setattr(schedules._store, "run_schedules", run_twice)

    assert (await schedules.run_due())[0] == 1

    assert answers[0] == answers[1] == [("a", (await schedules.get("a")).last_task_id)]
    assert made(database_url) == [("a", due)]


@pytest.mark.parametrize("change", ["changed", "paused", "deleted", "recreated"])
async def test_schedule_that_changes_between_the_look_and_the_step_makes_nothing(
    schedules: ScheduleService, database_url: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    await schedules.put("a", order())
    make_due(database_url)
    look = schedules._store.find_due_schedules

    async def look_and_change(*page: Any) -> Any:
        found = await look(*page)
        if change in ("deleted", "recreated"):
            await schedules.delete("a")
        if change != "deleted":
            changed = order(task={"content": "other"}, is_paused=change == "paused")
            await schedules.put("a", changed)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(schedules._store, "find_due_schedules", look_and_change)
        assert (await schedules.run_due())[0] == 0

    assert made(database_url) == []
    await schedules.run_due()
    contents = [("other",)] if change == "changed" else []
    assert query(database_url, "SELECT content FROM task") == contents


async def test_step_that_fails_makes_nothing_and_is_taken_again(
    schedules: ScheduleService, database_url: str
) -> None:
    await schedules.put("a", order())
    due = make_due(database_url)
    query(
        database_url,
        """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE 'not today'; END $$;
        CREATE TRIGGER fail BEFORE UPDATE ON schedule FOR EACH ROW EXECUTE FUNCTION fail()""",
    )
    with pytest.raises(StoreUnavailable):
        await schedules.run_due()
    assert made(database_url) == [], "the task went with the step"

    query(database_url, "DROP TRIGGER fail ON schedule")

    assert (await schedules.run_due())[0] == 1
    assert made(database_url) == [("a", due)]


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({"task": '{"content": "x", "max_attempts": -1}'}, "schedule_refused"),
        ({"task": '{"content": "x", "of_a_later_version": 1}'}, "schedule_not_understood"),
        ({"timezone": "Not/Here"}, "schedule_not_understood"),
        ({"cron": "nonsense"}, "schedule_not_understood"),
    ],
)
async def test_bad_schedule_stops_no_other(
    schedules: ScheduleService, database_url: str, change: dict[str, str], action: str
) -> None:
    for name in ("a", "b", "c", "d"):
        await schedules.put(name, order())
    query(
        database_url,
        """UPDATE schedule SET task = coalesce(%s::json, task), cron = coalesce(%s, cron),
            timezone = coalesce(%s, timezone) WHERE name = 'c'""",
        *map(change.get, ("task", "cron", "timezone")),
    )
    due = make_due(database_url)

    with structlog.testing.capture_logs() as lines:
        assert (await schedules.run_due())[0] == 3

    assert made(database_url) == [(name, due) for name in ("a", "b", "d")]
    errors = [line for line in lines if line["log_level"] == "error"]
    assert [(line["action"], line["schedule"]) for line in errors] == [(action, "c")]


# The duty.


@pytest.mark.slow
async def test_scheduler_sleeps_until_the_next_is_due_and_is_woken_by_a_put(
    make_schedules: Make, database_url: str
) -> None:
    wake_up = WakeUp()
    schedules = make_schedules(wake_up.now)
    step = Scheduler(schedules)
    await step.run_once()
    assert step.pause_seconds == 10
    await schedules.put("a", order())
    query(database_url, "UPDATE schedule SET next_run_at = clock_timestamp() + interval '2 s'")
    await step.run_once()
    assert 0 < step.pause_seconds < 2.1

    loop = Loop(Scheduler(schedules), wake_up)
    loop.start()
    try:
        await eventually(lambda: made(database_url))
        due = make_due(database_url)
        await schedules.put("a", order())
        await eventually(lambda: len(made(database_url)) == 2, within_seconds=5)
    finally:
        await loop.stop(within_seconds=1)
    assert made(database_url)[1] == ("a", due)


async def test_no_statement_reads_all_schedules_without_need(
    schedules: ScheduleService, database_url: str
) -> None:
    query(
        database_url,
        """INSERT INTO schedule (name, cron, timezone, task, missed, next_run_at)
        SELECT n, '0 0 1 1 *', 'UTC', '{"content": "x"}', 'last', now() + n * interval '1 min'
        FROM generate_series(1, 900) AS n""",
    )
    store = schedules._store
    plans = {
        "find_due_schedules": await explain(store, "find_due_schedules", after="", limit=50),
        "find_schedules": await explain(store, "find_schedules", after="", limit=101),
        "get_schedules": await explain(store, "get_schedules", name="a"),
        "run_schedules": await explain(store, "run_schedules", ticks="[]"),
    }

    assert "schedule_due" in plans["find_due_schedules"]
    for name, plan in plans.items():
        assert "Seq Scan" not in plan, (name, plan)
        assert "Disabled" not in plan, (name, plan)


async def explain(store: ScheduleStore, statement: str, **parameters: Any) -> str:
    """The plan that the session makes."""
    session = store._sessions["tick"]
    await session.run(store._prepared[statement], parameters)
    rows = await session.run("EXPLAIN " + store._prepared[statement].execute, parameters)
    return "\n".join(line for (line,) in rows)
