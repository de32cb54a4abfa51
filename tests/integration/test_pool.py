"""All that runs in the background: it comes back when it is killed, and stops in good order."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import structlog
from aiohttp import web

from tasksvc.app import BACKGROUND, create_app
from tasksvc.background import Background
from tasksvc.domain.errors import Unavailable
from tasksvc.domain.task import Claim, Status
from tasksvc.handlers import Handler
from tasksvc.loop import Loop
from tasksvc.services.tasks import TaskService
from tasksvc.settings import Settings
from tasksvc.store.store import Store
from tasksvc.store.task_store import TaskStore
from tasksvc.web.app_keys import SERVICE
from tests.harness import eventually
from tests.integration.conftest import Row, do_nothing

pytestmark = pytest.mark.slow

Rows = Callable[[], list[Row]]
StartApp = Callable[..., Any]


@pytest.fixture
async def start_app(settings: Settings) -> AsyncIterator[StartApp]:
    """Starts the whole service within the test, but for its port."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler = do_nothing, **changes: Any) -> web.Application:
        app = create_app(replace(settings, **changes), handler)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        return app

    yield start
    for runner in runners:
        await runner.cleanup()


async def is_completed(service: TaskService, id: str) -> bool:
    return (await service.get(id)).status is Status.COMPLETED


async def process_one(service: TaskService) -> None:
    task = (await service.create("x")).task
    await eventually(lambda: is_completed(service, task.id), 10)


@pytest.mark.slow
async def test_each_loop_starts_again_when_its_asyncio_task_is_killed(start_app: StartApp) -> None:
    app = await start_app(workers=2)
    for loop in app[BACKGROUND]._loops():
        killed = loop._task
        killed.cancel()
        await eventually(
            lambda loop=loop, killed=killed: loop._task is not killed and not loop.is_done, 2
        )
        await process_one(app[SERVICE])


@pytest.mark.slow
async def test_service_survives_the_killing_of_all_its_asyncio_tasks_at_once(
    start_app: StartApp, rows: Rows
) -> None:
    app = await start_app(workers=2)
    service = app[SERVICE]
    for _ in range(3):
        creating = [asyncio.ensure_future(service.create("x")) for _ in range(50)]
        await asyncio.sleep(0)
        ours = {asyncio.current_task(), *creating}
        for task in asyncio.all_tasks() - ours:
            task.cancel()
        await asyncio.gather(*creating, return_exceptions=True)
        await process_one(service)

    await eventually(lambda: {status for status, *_ in rows()} == {"completed"})


class BulkResult:
    name = "step"
    pause_seconds = 0.0

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.count = 0
        self.hangs, self.has_hung = asyncio.Event(), asyncio.Event()

    async def run_once(self) -> int:
        self.count += 1
        if self.hangs.is_set():
            self.has_hung.set()
            await asyncio.Event().wait()
        if self.answers and isinstance(answer := self.answers.pop(0), BaseException):
            raise answer
        await asyncio.sleep(0.001)
        return 0


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong"), Unavailable(), asyncio.CancelledError(), MemoryError(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
async def test_loop_survives_whatever_its_step_raises(error: BaseException) -> None:
    step = BulkResult(error, error)
    loop = Loop(step)
    loop.start()
    try:
        await eventually(lambda: step.count > 5)
    finally:
        await loop.stop(1)
    assert loop.is_done


async def test_failing_step_is_tried_again_within_its_own_pause() -> None:
    """A lease would run out while its heartbeat backs off for longer."""
    step = BulkResult(*[Unavailable()] * 20)
    step.pause_seconds = 0.25
    loop = Loop(step)

    pauses = [await loop._run_step() for _ in range(20)]

    assert min(pauses) > 0
    assert max(pauses) <= 0.25


@pytest.mark.slow
async def test_hung_loop_is_reported(start_app: StartApp) -> None:
    app = await start_app()
    pool = app[BACKGROUND]
    step = BulkResult()
    hung = Loop(step)
    pool._duties.append(hung)
    hung.start()
    await eventually(lambda: step.count > 1)
    assert pool.stalled() == []

    step.hangs.set()
    await step.has_hung.wait()
    hung._ticked_at -= 31

    assert pool.stalled() == ["step"]
    with structlog.testing.capture_logs() as lines:
        watchdog = next(loop for loop in pool._duties if loop.name == "watchdog")
        await watchdog._step.run_once()
    assert ["step"] in [line.get("loops") for line in lines]


async def test_loop_that_is_asked_to_stop_ends_its_step_first() -> None:
    is_in, may_go = asyncio.Event(), asyncio.Event()

    class Slow(BulkResult):
        async def run_once(self) -> int:
            is_in.set()
            await may_go.wait()
            self.answers.append("ended")
            return 0

    step = Slow()
    loop = Loop(step)
    loop.start()
    await is_in.wait()
    stopping = asyncio.create_task(loop.stop(5))
    await asyncio.sleep(0)
    may_go.set()
    await stopping

    assert step.answers == ["ended"]


async def test_loop_that_swallows_its_cancel_is_asked_again() -> None:
    is_in = asyncio.Event()

    class Deaf(BulkResult):
        async def run_once(self) -> int:
            is_in.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.count += 1
                if self.count > 2:
                    raise
            return 0

    loop = Loop(Deaf())
    loop.start()
    await is_in.wait()

    await loop.stop(within_seconds=0)

    assert loop.is_done


async def wait(claim: Claim) -> None:
    await asyncio.Event().wait()


async def running(app: web.Application, tasks: int = 1) -> None:
    for _ in range(tasks):
        await app[SERVICE].create("x")
    await eventually(lambda: len(app[BACKGROUND]._worker.held) == tasks)


async def test_stop_takes_nothing_more_and_lets_what_runs_end(
    start_app: StartApp, rows: Rows
) -> None:
    may_end = asyncio.Event()

    async def handle(claim: Claim) -> None:
        await may_end.wait()

    app = await start_app(handle, grace_seconds=30)
    pool, service = app[BACKGROUND], app[SERVICE]
    await running(app, 2)
    stopping = asyncio.create_task(pool.stop())
    await eventually(lambda: all(consumer.reading.is_done for consumer in pool._consumers))
    await service.create("later")
    may_end.set()

    await stopping

    assert rows() == [("completed", 1, 0)] * 2 + [("pending", 0, 0)]
    assert pool._worker.id is None


@pytest.mark.slow
async def test_what_is_just_being_created_may_end_within_the_grace_period(
    start_app: StartApp, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start_app(grace_seconds=30, concurrency=100)
    pool, service = app[BACKGROUND], app[SERVICE]
    await eventually(lambda: pool._consumers[0]._has_all)
    insert, may_insert = TaskStore.insert_held_tasks, asyncio.Event()

    async def insert_slowly(*args: Any) -> Any:
        await may_insert.wait()
        return await insert(*args)

    monkeypatch.setattr(TaskStore, "insert_held_tasks", insert_slowly)
    creating = service.create("x")
    stopping = asyncio.create_task(pool.stop())
    await eventually(lambda: pool._consumers[0].reading.is_done)
    assert not pool._consumers[0].is_idle
    may_insert.set()
    await creating
    await stopping

    assert rows() == [("completed", 1, 0)]


@pytest.mark.slow
async def test_stop_keeps_the_lease_until_all_is_handed_back(
    start_app: StartApp, rows: Rows, store: TaskStore
) -> None:
    """With a grace period of several leases."""
    app = await start_app(wait, grace_seconds=1.5, lease_seconds=0.5, heartbeat_seconds=0.1)
    other = await start_app(workers=0, lease_seconds=0.5)
    await running(app)

    await app[BACKGROUND].stop()

    assert rows() == [("pending", 1, 0)]
    assert other[BACKGROUND].stalled() == []


async def test_hurry_cuts_the_grace_short(start_app: StartApp, rows: Rows) -> None:
    app = await start_app(wait, grace_seconds=60)
    await running(app)
    stopping = asyncio.create_task(app[BACKGROUND].stop())
    await asyncio.sleep(0)
    started = time.monotonic()

    app[BACKGROUND].hurry()
    await stopping

    assert time.monotonic() - started < 5
    assert rows() == [("pending", 1, 0)]


@pytest.mark.slow
async def test_handlers_that_ignore_their_cancel_lose_their_tasks(
    start_app: StartApp, rows: Rows
) -> None:
    async def ignore(claim: Claim) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    app = await start_app(ignore, grace_seconds=0)
    await running(app, 3)
    started = time.monotonic()

    await app[BACKGROUND].stop()

    assert time.monotonic() - started < 8
    assert rows() == [("pending", 1, 0)] * 3
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("task-")]


async def test_second_stop_does_nothing(start_app: StartApp) -> None:
    app = await start_app()
    await app[BACKGROUND].stop()

    await app[BACKGROUND].stop()

    assert app[BACKGROUND]._worker.id is None


async def test_pool_without_consumers_is_no_worker(start_app: StartApp) -> None:
    app = await start_app(workers=0)
    pool: Background = app[BACKGROUND]

    assert app[BACKGROUND]._worker.id is None
    duties = {"relay", "scheduler", "rescuer", "janitor", "watchdog"}
    assert {loop.name for loop in pool._loops()} == duties


@pytest.mark.slow
async def test_stop_without_postgres_leaves_the_tasks_to_a_rescuer(
    start_app: StartApp, rows: Rows, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start_app(wait, grace_seconds=0)
    await running(app)

    async def be_away(*args: Any) -> Any:
        raise Unavailable

    for name in ("finish_tasks", "release_tasks", "renew_lease"):
        monkeypatch.setattr(app[SERVICE]._store, name, be_away)
    with structlog.testing.capture_logs() as lines:
        await app[BACKGROUND].stop()

    assert [line["action"] for line in lines if line["action"] == "left_tasks"] == ["left_tasks"]
    assert rows() == [("processing", 1, 0)]


@pytest.mark.slow
async def test_idle_service_runs_less_than_one_statement_a_second(
    start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the times that are the default."""
    count, counted_at = 0, 0.0
    run = Store._run

    async def counting(store: Store, *args: Any, **parameters: Any) -> Any:
        nonlocal count, counted_at
        count += 1
        counted_at = time.monotonic()
        return await run(store, *args, **parameters)

    monkeypatch.setattr(Store, "_run", counting)
    app = await start_app(lease_seconds=10.0, heartbeat_seconds=2.5, relay_seconds=2.5)
    await process_one(app[SERVICE])
    await eventually(
        lambda: time.monotonic() > counted_at + 0.5
    )  # the duties' first steps are over
    started, count = time.monotonic(), 0

    seconds = 7.0
    await eventually(lambda: time.monotonic() > started + seconds)

    assert 2 <= count <= seconds


async def test_everything_that_was_started_is_ended(start_app: StartApp) -> None:
    before = asyncio.all_tasks()
    app = await start_app(workers=3)
    await process_one(app[SERVICE])

    await app.cleanup()

    left = asyncio.all_tasks() - before
    assert json.dumps(sorted(task.get_name() for task in left)) == "[]"
