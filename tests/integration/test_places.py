"""A consumer takes what it has a free place for, and nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from tasksvc.consumers.places import Places, share_out
from tasksvc.domain.task import Claim, Options, Priority, Task
from tasksvc.metrics import Metrics
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.conftest import EmbeddedRedis
from tests.harness import eventually, query
from tests.integration.conftest import Worker
from tests.services import Services

pytestmark = pytest.mark.slow

Limits = dict[str, int | None]
MakeProcess = Callable[..., Worker]

KINDS: Limits = {"default": None, "few": 2}


class Handler:
    """Runs until the test lets one end."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.may_end = asyncio.Semaphore(0)

    async def __call__(self, claim: Claim) -> None:
        self.running[claim.kind] += 1
        await self.may_end.acquire()
        self.running[claim.kind] -= 1


@pytest.fixture
async def make_process(
    redis_server: EmbeddedRedis, redis_prefix: str, store: TaskStore, metrics: Metrics
) -> AsyncIterator[MakeProcess]:
    """Makes registered workers, each with a stream of its own, as processes have."""
    made: list[Worker] = []

    async def make(
        handler: Handler, *, places: int = 4, kinds: Limits = KINDS, block_seconds: float = 0.05
    ) -> Worker:
        stream = TaskStream(
            redis_server.url,
            prefix=redis_prefix,
            readers=2,
            block_seconds=block_seconds,
            max_entries=10_000,
            kinds=kinds,
        )
        await stream.open()
        services = Services.over(store, stream, metrics, kinds=dict.fromkeys(kinds))
        worker = Worker(services, stream, metrics, handler, places, kinds)
        await worker.service.register()
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.consumer.reading.stop(5)
        await worker.consumer.finishing.stop(5)
        for run in list(worker.running._runs.values()):
            assert run.task is not None
            run.task.cancel()
            await asyncio.wait([run.task])
        await worker.stream.close()


async def create(worker: Worker, kind: str, priority: Priority | None = None) -> Task:
    task = (await worker.tasks.create("x", None, Options(kind=kind, priority=priority))).task
    await worker.flush()
    return task


async def take_all(worker: Worker) -> None:
    for _ in range(4):
        await worker.consumer.run_once()
    await asyncio.sleep(0)


async def test_no_more_of_a_kind_is_claimed_than_may_run(
    make_process: MakeProcess, database_url: str
) -> None:
    handler = Handler()
    worker = await make_process(handler)
    for _ in range(4):
        await create(worker, "few")

    await take_all(worker)

    assert handler.running == {"few": 2}
    assert query(database_url, "SELECT count(*) FROM task WHERE status = 'pending'") == [(2,)]
    assert worker.consumer.places.in_use == 2


async def test_kind_that_is_full_keeps_no_other_waiting(make_process: MakeProcess) -> None:
    handler = Handler()
    worker = await make_process(handler)
    for _ in range(4):
        await create(worker, "few", Priority.HIGH)
    for _ in range(4):
        await create(worker, "default")

    await take_all(worker)

    assert handler.running == {"few": 2, "default": 2}


async def test_place_that_becomes_free_during_a_blocked_read_is_filled_at_once(
    make_process: MakeProcess,
) -> None:
    handler = Handler()
    worker = await make_process(handler, block_seconds=30.0)
    for _ in range(3):
        await create(worker, "few")
    worker.consumer.reading.start()
    worker.consumer.finishing.start()
    await eventually(lambda: handler.running["few"] == 2)
    await eventually(lambda: worker.stream.waiting)  # it reads, of the other kind

    handler.may_end.release()

    await eventually(lambda: handler.running["few"] == 1)
    await eventually(lambda: handler.running["few"] == 2)
    assert worker.stream.waiting  # the same read waits still
    await worker.stream.unblock()


async def test_what_a_blocked_read_brings_too_much_goes_to_another_worker(
    make_process: MakeProcess, redis_client: redis.Redis, redis_prefix: str
) -> None:
    """The bound of a read holds for each of the streams, and a kind has three."""
    one, other = Handler(), Handler()
    worker = await make_process(one, kinds={"default": None, "few": 1}, block_seconds=5.0)
    reading = asyncio.create_task(take_all(worker))
    await eventually(lambda: worker.stream.waiting)
    source = await make_process(other, kinds={"default": None, "few": 1})
    tasks = [
        (await source.tasks.create("x", None, Options(kind="few", priority=priority))).task
        for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)
    ]
    await source.flush()
    await eventually(lambda: one.running == {"few": 1})
    await worker.stream.unblock()
    await reading

    await source.publish_due()
    await take_all(source)

    assert other.running == {"few": 1}
    assert len(tasks) == 3


async def test_two_workers_share_what_waits(make_process: MakeProcess, database_url: str) -> None:
    handlers = [Handler(), Handler()]
    workers = [await make_process(handler, places=2) for handler in handlers]
    for _ in range(6):
        await create(workers[0], "default")

    for worker in workers:
        await take_all(worker)

    assert [handler.running["default"] for handler in handlers] == [2, 2]
    assert query(database_url, "SELECT count(*) FROM task WHERE status = 'pending'") == [(2,)]


async def test_high_priority_starts_after_one_running_task_for_each_place(
    make_process: MakeProcess,
) -> None:
    handler = Handler()
    worker = await make_process(handler, places=1, kinds={"default": None, "few": None})
    for _ in range(5):
        await create(worker, "default", Priority.LOW)
    await take_all(worker)
    await create(worker, "few", Priority.HIGH)
    handler.may_end.release()
    await eventually(lambda: handler.running["default"] == 0)
    await worker.finisher.run_once()

    await take_all(worker)

    assert handler.running["few"] == 1


async def test_without_redis_it_takes_no_more_from_the_store_either(
    make_process: MakeProcess,
) -> None:
    handler = Handler()
    worker = await make_process(handler)
    for _ in range(4):
        await create(worker, "few")
    for _ in range(4):
        await create(worker, "default")
    worker.stream.is_up = False
    worker.consumer._retry_stream_at = float("inf")

    await take_all(worker)

    assert handler.running["few"] == 2
    assert handler.running["default"] <= 2


def test_places_of_threads_that_go_on_are_not_free() -> None:
    lingering = [0]
    places = Places(2, {"default": None}, blocked=lambda: lingering[0])
    assert places.free == 2
    lingering[0] = 2

    assert places.free == 0


def test_each_kind_belongs_to_the_consumers_that_can_run_it() -> None:
    kinds = {
        "default": ("loop", None),
        "few": ("loop", 3),
        "single": ("loop", 1),
        "hash": ("process", None),
    }

    shared = share_out(kinds, {"loop": 100, "thread": 32, "process": 2}, 2)

    assert [(each.run_in, each.total, dict(each.rooms())) for each in shared] == [
        ("loop", 100, {"default": 100, "few": 3}),
        ("loop", 100, {"default": 100, "single": 1}),
        ("process", 2, {"hash": 2}),
    ]
