"""A worker over the real store and the real stream, whose steps the test takes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasksvc.consumers.consumer import Consumer
from tasksvc.consumers.executor import Executor
from tasksvc.consumers.places import Places
from tasksvc.domain.retry import RetryPolicy
from tasksvc.domain.task import Claim, Task
from tasksvc.embedded import EmbeddedRedis
from tasksvc.handlers import Handler
from tasksvc.handlers.kinds import KindConfig
from tasksvc.metrics import Metrics
from tasksvc.services.queues import QueueService
from tasksvc.store.database import Database
from tasksvc.store.queue_store import QueueStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.services import MakeServices, Services

Row = tuple[Any, ...]


async def do_nothing(claim: Claim) -> None:
    """A handler."""


class Worker:
    """A process with one consumer that has no loops of its own."""

    def __init__(
        self,
        services: Services,
        stream: TaskStream,
        metrics: Metrics,
        handler: Handler,
        places: int,
        limits: Mapping[str, int | None] | None = None,
    ) -> None:
        self.service = services.worker
        self.tasks = services.tasks
        self.publisher = services.publisher
        self.rescue = services.rescue
        self.flush = services.flush
        self.stream = stream
        self.metrics = metrics
        self.running = services.runs
        self.direct_start = services.direct_start
        executor = Executor(
            {kind: KindConfig(handler) for kind in limits or ("default",)},
            RetryPolicy(0, 0),
            metrics,
            max_result_bytes=1000,
        )
        kinds = {"default": None} if limits is None else limits
        self.consumer = Consumer(
            1, Places(places, kinds), self.service, stream, executor, self.running
        )
        self.finisher = self.consumer._finisher

    async def create(self, content: str = "x") -> Task:
        """Creates a task and waits until it is published, if Redis is there."""
        task = (await self.tasks.create(content)).task
        await self.flush()
        return task

    async def take(self) -> int:
        """Reads what a consumer that has just started asks for first, and then what is new."""
        taken = await self.consumer.run_once()
        return taken or await self.consumer.run_once()

    async def publish_due(self) -> int:
        """What a relay does in a step; how many."""
        count, _ = await self.publisher.publish_due()
        return count

    async def finish(self) -> int:
        """Writes all that runs, once it has ended."""
        await eventually(lambda: not len(self.running))
        return await self.finisher.run_once()

    async def work(self) -> None:
        await self.take()
        await self.finish()


MakeWorker = Callable[..., Worker]


@pytest.fixture
async def queue_store(database_url: str) -> AsyncIterator[QueueStore]:
    store = QueueStore(Database(database_url))
    yield store
    await store.close()


@pytest.fixture
def queues(queue_store: QueueStore, worker: Worker) -> QueueService:
    return QueueService(queue_store, worker.publisher, max_waiting=100)


@pytest.fixture
async def make_worker(
    make_services: MakeServices, stream: TaskStream, metrics: Metrics
) -> AsyncIterator[MakeWorker]:
    """Makes workers that are not registered yet; each is like a process of its own."""
    workers: list[Worker] = []

    def make(handler: Handler = do_nothing, *, places: int = 4, **overrides: Any) -> Worker:
        worker = Worker(make_services(**overrides), stream, metrics, handler, places)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        for run in list(worker.running._runs.values()):
            assert run.task is not None
            run.task.cancel()
            await asyncio.wait([run.task])


@pytest.fixture
async def worker(make_worker: MakeWorker) -> Worker:
    """A registered worker whose tasks take no time."""
    worker = make_worker()
    await worker.service.register()
    return worker


@pytest.fixture
def rows(database_url: str) -> Callable[[], list[Row]]:
    """Status, attempt and failures of every task, in the order of their creation."""
    return lambda: query(database_url, "SELECT status, attempt, failures FROM task ORDER BY id")


@pytest.fixture
def stream_key(redis_prefix: str) -> str:
    return f"{redis_prefix}:tasks"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that the test may break."""
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        yield server


@pytest.fixture
async def own_stream(own_redis: EmbeddedRedis) -> AsyncIterator[TaskStream]:
    """A stream in the Redis that the test may break."""
    stream = TaskStream(
        own_redis.url, prefix="own", readers=4, block_seconds=0.1, max_entries=10_000
    )
    await stream.open()
    yield stream
    await stream.close()


@pytest.fixture
async def own_worker(store: TaskStore, own_stream: TaskStream, metrics: Metrics) -> Worker:
    """A registered worker over the Redis that the test may break."""
    worker = Worker(
        Services.over(store, own_stream, metrics), own_stream, metrics, do_nothing, places=4
    )
    await worker.service.register()
    return worker


def lapse(database_url: str, worker_id: str | None) -> None:
    """The worker's lease has run out."""
    query(
        database_url,
        "UPDATE worker SET expires_at = clock_timestamp() - interval '1 second' WHERE id = %s",
        worker_id,
    )
