"""Tasks that start where they are created, because a consumer there has nothing else to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from tasksvc.consumers import consumer as consumer_module
from tasksvc.domain.errors import DataRejected, StoreUnavailable, StreamUnavailable
from tasksvc.domain.task import Claim, Options, Priority, Status, Task
from tasksvc.services.queues import QueueService
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually
from tests.integration.conftest import MakeWorker, Row, Worker, do_nothing, lapse

pytestmark = pytest.mark.slow

Rows = Callable[[], list[Row]]

STARTED = [("processing", 1, 0)]
LEFT = [("pending", 0, 0)]


class Handler:
    """Notes what it starts, and lets nothing end before it may."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.may_end = asyncio.Event()

    async def __call__(self, claim: Claim) -> None:
        self.claims.append(claim)
        await self.may_end.wait()


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def worker(make_worker: MakeWorker, handler: Handler) -> Worker:
    """A registered one, whose consumer has just found out that nothing waits."""
    worker = make_worker(handler, places=100)
    await worker.service.register()
    await idle(worker)
    return worker


async def idle(worker: Worker) -> None:
    assert await worker.take() == 0
    worker.direct_start.add(worker.consumer.reserve)


async def create(worker: Worker, **options: Any) -> Task:
    return (await worker.tasks.create("x", None, Options(**options))).task


@pytest.fixture
def entries(redis_client: redis.Redis, stream_key: str) -> Callable[[], tuple[int, int]]:
    """How many the stream has, and how many of them a consumer has in hand."""

    def count() -> tuple[int, int]:
        pending = redis_client.xpending(stream_key, "tasksvc")["pending"]
        return redis_client.xlen(stream_key), pending

    return count


Entries = Callable[[], tuple[int, int]]


async def test_it_starts_with_its_create_and_without_a_claim(
    worker: Worker, handler: Handler, rows: Rows, monkeypatch: pytest.MonkeyPatch, store: TaskStore
) -> None:
    monkeypatch.delattr(TaskStore, "claim_tasks")

    task = await create(worker)

    assert (task.status, task.updated_at) == (Status.PENDING, None)  # as it was made
    await eventually(lambda: handler.claims)
    assert rows() == STARTED
    (claim,) = handler.claims
    assert (claim.id, claim.attempt, claim.content) == (task.id, 1, "x")
    assert worker.service.held == {task.id: 1}
    seen = await worker.tasks.get(task.id)
    assert seen.created_at == task.created_at
    assert seen.updated_at is not None
    assert seen.updated_at >= task.created_at
    handler.may_end.set()
    await worker.finish()
    assert rows() == [("completed", 1, 0)]
    assert worker.consumer.is_idle


async def test_its_entry_is_in_hand_while_it_runs_and_acknowledged_after_it_is_written(
    worker: Worker, handler: Handler, entries: Entries, store: TaskStore
) -> None:
    task = await create(worker)

    await eventually(lambda: entries() == (1, 1))
    assert await worker.consumer.run_once() == 0  # no other consumer gets it
    handler.may_end.set()
    finish = store.finish_tasks

    async def finish_with_a_look(finishes: Any) -> Any:
        assert entries() == (1, 1)
        return await finish(finishes)

    store.finish_tasks = finish_with_a_look  # type: ignore[method-assign]
    await worker.finish()

    assert entries() == (0, 0)
    assert (await worker.tasks.get(task.id)).status is Status.COMPLETED


async def test_entry_that_comes_after_the_end_is_acknowledged(
    worker: Worker, handler: Handler, entries: Entries, stream: TaskStream, rows: Rows
) -> None:
    publish, may_publish = stream.publish_to, asyncio.Event()

    async def publish_late(*args: Any) -> Any:
        await may_publish.wait()
        return await publish(*args)

    stream.publish_to = publish_late  # type: ignore[method-assign]
    await create(worker)
    handler.may_end.set()
    await eventually(lambda: handler.claims)
    await worker.finish()
    assert rows() == [("completed", 1, 0)]
    assert not worker.consumer.is_idle  # its entry is not published yet
    may_publish.set()

    await eventually(lambda: worker.consumer.is_idle)
    assert entries() == (0, 0)


async def test_run_that_ended_meanwhile_is_not_published(
    worker: Worker, handler: Handler, stream: TaskStream
) -> None:
    told, may_publish = [], asyncio.Event()

    async def publish_late(worker_id: str, number: int, ids: list[str], lane: object) -> Any:
        told.append(len(ids))
        await may_publish.wait()
        return []

    stream.publish_to = publish_late  # type: ignore[method-assign,assignment]
    await create(worker)
    await eventually(lambda: told == [1])
    await create(worker)
    handler.may_end.set()
    await worker.finish()
    may_publish.set()

    await eventually(lambda: worker.consumer.is_idle)
    assert told == [1]


@pytest.mark.parametrize("places", [4, 1])
async def test_consumer_keeps_places_for_what_it_may_be_given(
    make_worker: MakeWorker, handler: Handler, places: int, rows: Rows, entries: Entries
) -> None:
    """While it waits it may be given entries; so with one place it takes nothing but from the
    stream."""
    worker = make_worker(handler, places=places)
    await worker.service.register()
    await idle(worker)
    waiting = asyncio.create_task(worker.consumer.run_once())
    await eventually(lambda: worker.stream.waiting)

    for _ in range(2):
        await create(worker)

    assert len(handler.claims) + await waiting <= places
    await worker.flush()
    started = 2 if places == 4 else 1

    async def have_started() -> bool:
        if len(handler.claims) < started:
            await worker.consumer.run_once()  # that read may have ended before the second create
        return len(handler.claims) == started

    await eventually(have_started)
    assert rows() == STARTED * started + LEFT * (2 - started)


async def test_many_at_a_time_go_through_the_stream(
    make_worker: MakeWorker, rows: Rows, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "_FEW", 3)
    worker = make_worker(do_nothing, places=100)
    await worker.service.register()
    await idle(worker)

    await worker.tasks.create_many([("x", Options())] * 4)
    await worker.flush()

    assert rows() == LEFT * 4
    assert entries() == (4, 0)


async def test_consumer_that_has_not_read_yet_or_found_more_than_it_took_takes_nothing_new(
    make_worker: MakeWorker, handler: Handler, rows: Rows
) -> None:
    worker = make_worker(handler, places=2)
    worker.direct_start.add(worker.consumer.reserve)
    await worker.service.register()
    for _ in range(4):
        await worker.create()
    assert rows() == LEFT * 4
    assert await worker.take() == 2
    handler.may_end.set()
    await worker.finish()

    await worker.create()
    assert rows() == [("completed", 1, 0)] * 2 + LEFT * 3
    assert await worker.consumer.run_once() == 2
    await worker.finish()
    assert await worker.consumer.run_once() == 1


async def test_it_has_no_entry_where_others_wait(
    worker: Worker, handler: Handler, stream: TaskStream, rows: Rows, entries: Entries
) -> None:
    """It would only stand in the line."""
    other = await worker.tasks._store.insert_tasks([worker.tasks.new_task("y", None, Options())])
    await stream.publish([other[0].id])

    await create(worker)
    await eventually(lambda: worker.consumer._telling is None)

    assert entries() == (1, 0)
    handler.may_end.set()
    await worker.finish()
    assert await worker.consumer.run_once() == 1
    await worker.finish()
    assert rows() == [("completed", 1, 0)] * 2
    assert entries() == (0, 0)


async def test_without_redis_it_runs_without_an_entry(
    worker: Worker, handler: Handler, stream: TaskStream, rows: Rows
) -> None:
    publish = stream.publish_to

    async def lose_the_answer(*args: Any) -> Any:
        await publish(*args)
        raise StreamUnavailable

    stream.publish_to = lose_the_answer  # type: ignore[method-assign]
    await create(worker)
    await eventually(lambda: handler.claims)
    handler.may_end.set()
    await worker.finish()

    assert rows() == [("completed", 1, 0)]
    # What it was given is read again, and found to be done.
    await worker.consumer.run_once()
    assert await stream.measure() == (0, 0)


async def test_telling_may_be_killed(
    worker: Worker, handler: Handler, stream: TaskStream, rows: Rows, entries: Entries
) -> None:
    publish = stream.publish_to

    async def publish_and_hang(*args: Any) -> Any:
        await publish(*args)
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "publish_to", publish_and_hang)
        await create(worker)
        await eventually(lambda: handler.claims)
        telling = worker.consumer._telling
        assert telling is not None
        await eventually(lambda: entries() == (1, 1))
        telling.cancel()
        await asyncio.wait([telling])
    handler.may_end.set()
    await worker.finish()

    await worker.consumer.run_once()
    assert rows() == [("completed", 1, 0)]
    assert await stream.measure() == (0, 0)
    await create(worker)
    await eventually(lambda: len(handler.claims) == 1)  # it has to read again first
    await worker.flush()
    assert await worker.take() == 1
    await worker.finish()


@pytest.mark.parametrize(
    "options", [{}, {"priority": Priority.HIGH}], ids=["plain", "with options"]
)
async def test_worker_that_was_declared_dead_holds_nothing_new(
    worker: Worker,
    handler: Handler,
    options: dict[str, Any],
    database_url: str,
    rows: Rows,
    stream: TaskStream,
) -> None:
    lapse(database_url, worker.service.id)
    await worker.tasks._store.lapse_workers(None)

    await create(worker, **options)
    await worker.flush()

    assert rows() == LEFT
    assert await stream.measure() == (1, 0)
    assert worker.consumer.is_idle
    assert not handler.claims


async def test_who_is_another_worker_by_the_end_of_the_create_starts_nothing(
    worker: Worker, handler: Handler, store: TaskStore, rows: Rows
) -> None:
    insert = store.insert_held_tasks

    async def insert_slowly(*args: Any) -> Any:
        made = await insert(*args)
        await worker.service.register()
        return made

    store.insert_held_tasks = insert_slowly  # type: ignore[method-assign]
    await create(worker)
    await worker.flush()

    assert rows() == STARTED  # held by the worker of before, until it is declared dead
    assert not handler.claims
    assert worker.consumer.is_idle
    assert worker.service.held == {}


@pytest.mark.parametrize(
    "options", [{}, {"priority": Priority.HIGH}], ids=["plain", "with options"]
)
async def test_create_whose_answer_was_lost_is_handed_back(
    worker: Worker, handler: Handler, options: dict[str, Any], store: TaskStore, rows: Rows
) -> None:
    """The task is there and held, although its client got an error."""
    name = "insert_tasks_with_options" if options else "insert_held_tasks"
    insert = getattr(store, name)

    async def lose_answer(*args: Any) -> Any:
        await insert(*args)
        raise StoreUnavailable

    setattr(store, name, lose_answer)
    with pytest.raises(StoreUnavailable):
        await create(worker, **options)
    assert rows() == STARTED
    assert worker.consumer.is_idle

    await worker.service.renew_lease()
    await worker.flush()

    assert rows() == [("pending", 1, 0)]
    assert not handler.claims


async def test_create_that_was_sent_twice_is_handed_back(
    worker: Worker, handler: Handler, store: TaskStore, rows: Rows
) -> None:
    """The connection broke: the first try is committed, the second finds it there."""
    run = store._run

    async def run_twice(session: str, name: str, **parameters: Any) -> Any:
        if name == "insert_held_tasks":
            await run(session, name, **parameters)
            store._sessions[session].runs_again += 1
        return await run(session, name, **parameters)

    store._run = run_twice  # type: ignore[method-assign]
    task = await create(worker)
    assert rows() == STARTED
    assert not handler.claims
    await worker.flush()

    # The heartbeat may notice first, or this consumer by the stream.
    await worker.service.renew_lease()
    await worker.flush()
    await worker.publish_due()

    async def is_started() -> bool:
        await worker.consumer.run_once()
        return bool(handler.claims)

    await eventually(is_started)
    assert handler.claims[0].id == task.id
    handler.may_end.set()
    await worker.finish()
    assert rows()[0][0] == "completed"


async def test_refused_content_frees_its_place(worker: Worker) -> None:
    with pytest.raises(DataRejected):
        await worker.tasks.create("nul \0")

    assert worker.consumer.is_idle
    assert worker.service.held == {}


TOMORROW = datetime.now(UTC) + timedelta(days=1)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)

MAY_START: dict[str, tuple[dict[str, Any], list[Row]]] = {
    "low": ({"priority": Priority.LOW, "unique_key": "u", "timeout_seconds": 9}, STARTED),
    "expires": ({"expires_at": TOMORROW}, STARTED),
    "new queue": ({"queue": "new"}, STARTED),
    "open queue": ({"queue": "open"}, STARTED),
    "limited queue": ({"queue": "limited"}, LEFT),
    "paused queue": ({"queue": "paused"}, LEFT),
    "delayed": ({"delay_seconds": 60}, LEFT),
    "later": ({"run_at": TOMORROW}, LEFT),
    "expired": ({"expires_at": YESTERDAY}, LEFT),
    "kind": ({"kind": "elsewhere"}, LEFT),
}


@pytest.mark.parametrize(("options", "expected"), MAY_START.values(), ids=MAY_START.keys())
async def test_only_what_may_start_now_and_here_is_started(
    worker: Worker,
    handler: Handler,
    queues: QueueService,
    options: dict[str, Any],
    expected: list[Row],
    rows: Rows,
) -> None:
    await queues.put("open", None)
    await queues.put("limited", 5)
    await queues.put("paused", None)
    await queues.pause("paused", is_paused=True)

    await create(worker, **options)
    await worker.flush()

    assert rows() == expected
    await eventually(lambda: len(handler.claims) == (expected == STARTED))
    if handler.claims:
        (claim,) = handler.claims
        assert claim.priority == options.get("priority", Priority.NORMAL)
        assert claim.timeout_seconds == options.get("timeout_seconds")
        handler.may_end.set()
        await worker.finish()
        assert await worker.stream.measure() == (0, 0)
    assert worker.consumer.is_idle


async def test_keys_hold_for_what_has_started(worker: Worker, handler: Handler) -> None:
    first = await worker.tasks.create("x", None, Options(unique_key="u"), key="k", fingerprint="ab")
    again = await worker.tasks.create("x", None, Options(unique_key="u"), key="k", fingerprint="ab")
    other = await worker.tasks.create("x", None, Options(unique_key="u"))

    assert (first.is_replayed, first.is_new) == (False, True)
    assert (again.is_replayed, again.is_new) == (True, True)
    assert (other.is_replayed, other.is_new) == (False, False)
    assert again.task.id == other.task.id == first.task.id
    assert other.task.status is Status.PROCESSING
    assert len(handler.claims) == 1
