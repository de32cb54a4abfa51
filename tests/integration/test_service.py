"""The service over the real store and the real stream: what it keeps when one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg2
import pytest
import redis

from tasksvc.domain.errors import (
    LeaseLost,
    StoreUnavailable,
    StreamUnavailable,
    TaskIsFinal,
    TaskNotFound,
)
from tasksvc.domain.outcome import COMPLETED, RunResult
from tasksvc.domain.task import Claim, Status, Task
from tasksvc.embedded import EmbeddedRedis
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker, Row, Worker

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"

UNPUBLISHED = "SELECT count(*) FROM task WHERE published_at IS NULL"

LOCKS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@asynccontextmanager
async def worker_locked(database_url: str) -> AsyncIterator[Callable[[int], Any]]:
    """Another session locks the workers' rows; `waiting(n)` is
    when n statements wait for them."""
    connection = psycopg2.connect(database_url)

    async def waiting(count: int) -> None:
        await eventually(lambda: query(database_url, LOCKS) == [(count,)])

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM worker FOR UPDATE")
        yield waiting
    finally:
        connection.close()


async def test_task_is_committed_and_published(
    worker: Worker, redis_client: redis.Redis, stream_key: str, database_url: str
) -> None:
    task = await worker.create("content")

    assert (task.status, task.content) == (Status.PENDING, "content")
    assert [fields for _, fields in redis_client.xrange(stream_key)] == [{"id": task.id}]
    assert query(database_url, UNPUBLISHED) == [(0,)]


async def test_task_created_without_redis_is_published_when_it_is_back(
    own_worker: Worker, own_redis: EmbeddedRedis, own_stream: TaskStream, database_url: str
) -> None:
    own_redis.kill()

    task = await own_worker.create()

    assert (await own_worker.tasks.get(task.id)).status is Status.PENDING
    assert query(database_url, UNPUBLISHED) == [(1,)]
    with pytest.raises(StreamUnavailable):
        await own_worker.publish_due()

    own_redis.start()

    await eventually_publishes(own_worker)
    assert (await own_stream.measure())[0] == 1
    assert query(database_url, UNPUBLISHED) == [(0,)]
    await own_worker.work()
    assert (await own_worker.tasks.get(task.id)).status is Status.COMPLETED


async def eventually_publishes(worker: Worker) -> None:
    async def publishes() -> int:
        try:
            return await worker.publish_due()
        except StreamUnavailable:  # it makes the group first
            return 0

    await eventually(publishes)


async def test_redis_out_of_memory_leaves_the_task_to_the_relay(
    own_worker: Worker, own_redis: EmbeddedRedis, own_stream: TaskStream, database_url: str
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        await own_worker.create()
        await own_worker.create()
        assert query(database_url, UNPUBLISHED) == [(2,)]
        client.config_set("maxmemory", "0")

    assert await own_worker.publish_due() == 2
    assert (await own_stream.measure())[0] == 2


async def test_tasks_are_worked_on_while_redis_is_out_of_memory(
    own_worker: Worker, own_redis: EmbeddedRedis, rows: Callable[[], list[Row]]
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        await own_worker.create()

        async def is_done() -> bool:
            await own_worker.work()
            return rows() == [("completed", 1, 0)]

        await eventually(is_done)


async def test_full_stream_takes_what_fits_and_the_rest_follows(
    make_worker: MakeWorker, stream: TaskStream, database_url: str
) -> None:
    stream._max_entries = 3
    worker = make_worker()
    await worker.service.register()
    await asyncio.gather(*(worker.tasks.create("x") for _ in range(5)))
    await worker.flush()
    assert (await stream.measure())[0] == 3
    assert query(database_url, UNPUBLISHED) == [(2,)]
    assert await worker.publish_due() == 0

    entries = await stream.read(str(worker.service.id), 1, 2)
    await stream.acknowledge([entry for entry, _ in entries])

    assert await worker.publish_due() == 2
    assert (await stream.measure())[0] == 3
    assert query(database_url, UNPUBLISHED) == [(0,)]


async def test_consumer_takes_from_the_store_what_a_full_stream_has_no_room_for(
    make_worker: MakeWorker, stream: TaskStream, rows: Callable[[], list[Row]]
) -> None:
    stream._max_entries = 1
    worker = make_worker(places=10)
    await worker.service.register()
    for _ in range(3):
        await worker.create()

    async def is_done() -> bool:
        await worker.work()
        return rows() == [("completed", 1, 0)] * 3

    await eventually(is_done)


async def test_answer_to_an_insert_that_was_lost_is_found_by_the_second_try(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Callable[[], list[Row]]
) -> None:
    insert = store.insert_tasks

    async def insert_twice(*args: Any) -> Any:
        await insert(*args)
        return await insert(*args)

    monkeypatch.setattr(store, "insert_tasks", insert_twice)

    task = await worker.create()

    assert (await worker.tasks.get(task.id)).id == task.id
    assert len(rows()) == 1


async def test_claim_asks_for_an_id_once(worker: Worker, rows: Callable[[], list[Row]]) -> None:
    task = await worker.create()

    claims = await worker.service.claim([task.id, task.id, task.id])

    assert [(claim.id, claim.attempt) for claim in claims] == [(task.id, 1)]
    assert await worker.service.claim([task.id]) == []
    assert rows() == [("processing", 1, 0)]


async def test_task_is_claimed_by_one_of_many(
    make_worker: MakeWorker, rows: Callable[[], list[Row]]
) -> None:
    workers = [make_worker() for _ in range(4)]
    for worker in workers:
        await worker.service.register()
    task = await workers[0].create()

    claims = await asyncio.gather(*(worker.service.claim([task.id]) for worker in workers))

    assert sorted(map(len, claims)) == [0, 0, 0, 1]
    assert rows() == [("processing", 1, 0)]


async def test_finish_of_an_attempt_that_is_not_the_current_one_changes_nothing(
    make_worker: MakeWorker, rows: Callable[[], list[Row]]
) -> None:
    zombie, other = make_worker(), make_worker()
    await zombie.service.register()
    await other.service.register()
    task = await zombie.create()
    await zombie.service.claim([task.id])
    held = zombie.service.held
    await zombie.service.leave()
    await other.service.claim([task.id])

    await zombie.service.finish([RunResult(task.id, held[task.id], COMPLETED)])

    assert rows() == [("processing", 2, 0)]
    assert zombie.metrics.results_fenced.value == 1


async def test_finish_whose_answer_was_lost_counts_as_written(
    worker: Worker, rows: Callable[[], list[Row]]
) -> None:
    task = await worker.create()
    (claim,) = await worker.service.claim([task.id])
    finish = RunResult(task.id, claim.attempt, COMPLETED)
    await worker.service.finish([finish])

    await worker.service.finish([finish])

    assert rows() == [("completed", 1, 0)]
    assert worker.metrics.results_fenced.value == 0


async def test_of_many_cancels_one_wins(worker: Worker) -> None:
    task = await worker.create()

    answers = await asyncio.gather(
        *(worker.tasks.cancel(task.id) for _ in range(5)), return_exceptions=True
    )

    assert sum(isinstance(each, TaskIsFinal) for each in answers) == 4
    assert (await worker.tasks.get(task.id)).status is Status.CANCELED
    with pytest.raises(TaskNotFound):
        await worker.tasks.cancel(UNKNOWN_ID)


async def test_leave_releases_without_a_charge(
    worker: Worker,
    rows: Callable[[], list[Row]],
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
) -> None:
    for _ in range(3):
        await worker.create()
    claimed = [task for (task,) in query(database_url, "SELECT id FROM task")]
    await worker.stream.read(str(worker.service.id), 1, 10)
    await worker.service.claim(claimed)

    await worker.service.leave()

    assert rows() == [("pending", 1, 0)] * 3
    assert query(database_url, "SELECT * FROM worker") == []
    assert redis_client.xinfo_consumers(stream_key, "tasksvc") == []
    published = [fields["id"] for _, fields in redis_client.xrange(stream_key)]
    assert sorted(published) == sorted(claimed), "published again, each once"
    assert worker.service.held == {}
    with pytest.raises(LeaseLost):
        await worker.service.claim(claimed)


async def test_leave_waits_for_a_claim_whose_caller_is_gone(
    worker: Worker, database_url: str, rows: Callable[[], list[Row]]
) -> None:
    task = await worker.create()
    async with worker_locked(database_url) as waiting:
        claiming = asyncio.create_task(worker.service.claim([task.id]))
        await waiting(1)
        claiming.cancel()
        await asyncio.wait([claiming])
        leaving = asyncio.create_task(worker.service.leave())
        await waiting(2)

    await leaving

    assert rows()[0][0] == "pending"


async def test_claim_whose_answer_was_lost_is_settled_by_the_heartbeat(
    worker: Worker,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
    redis_client: redis.Redis,
    stream_key: str,
    rows: Callable[[], list[Row]],
) -> None:
    """Without the stream, which is emptied, nothing else would tell of the task."""
    await worker.create()
    claim = store.claim_tasks
    is_lost = False

    async def lose_first_answer(*args: Any) -> list[Claim]:
        nonlocal is_lost
        claims = await claim(*args)
        if claims and not is_lost:
            is_lost = True
            raise StoreUnavailable
        return claims

    monkeypatch.setattr(store, "claim_tasks", lose_first_answer)
    with pytest.raises(StoreUnavailable):
        await worker.take()
    assert rows() == [("processing", 1, 0)]
    redis_client.delete(stream_key)

    async def is_done() -> bool:
        await worker.service.renew_lease()
        await worker.flush()
        await eventually_looks(worker)
        await worker.work()
        return rows()[0][0] == "completed"

    await eventually(is_done)
    assert rows() == [("completed", 2, 0)]


async def eventually_looks(worker: Worker) -> None:
    try:
        await worker.publish_due()
    except StreamUnavailable:
        await worker.publish_due()


async def test_settling_keeps_what_is_held(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Callable[[], list[Row]]
) -> None:
    held, lost = await worker.create(), await worker.create()
    await worker.service.claim([held.id])
    claim = store.claim_tasks

    async def lose_answer(*args: Any) -> list[Claim]:
        await claim(*args)
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_tasks", lose_answer)
        with pytest.raises(StoreUnavailable):
            await worker.service.claim([lost.id])
    assert rows() == [("processing", 1, 0)] * 2

    await worker.service.renew_lease()
    await worker.flush()

    assert rows() == [("processing", 1, 0), ("pending", 1, 0)]


async def test_lapsed_worker_leaves_the_backlog_to_others(
    worker: Worker, database_url: str, redis_client: redis.Redis, stream_key: str
) -> None:
    for _ in range(6):
        await worker.create()
    await worker.consumer.run_once()
    query(database_url, "UPDATE worker SET lapsed_at = clock_timestamp()")

    with pytest.raises(LeaseLost):
        await worker.consumer.run_once()

    assert redis_client.xlen(stream_key) == 6


async def test_progress_that_cannot_be_kept_fails_no_run(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def be_away(progresses: Any) -> None:
        raise StoreUnavailable

    task = await worker.create()
    (claim,) = await worker.service.claim([task.id])
    with monkeypatch.context() as patch:
        patch.setattr(store, "keep_progress", be_away)
        await worker.service.report(claim, 0.5, "half")
    assert (await worker.tasks.get(task.id)).progress is None

    await worker.service.report(claim, 7, "done \0 \ud83d")

    kept = {"fraction": 1.0, "message": "done  ?"}
    assert (await worker.tasks.get(task.id)).progress == kept


async def test_flush_waits_for_what_is_under_way(
    worker: Worker, redis_client: redis.Redis, stream_key: str
) -> None:
    creating = [asyncio.ensure_future(worker.tasks.create("x")) for _ in range(300)]
    await asyncio.sleep(0)

    await worker.flush()

    assert all(task.done() for task in creating)
    assert redis_client.xlen(stream_key) == 300


async def test_retry_tells_of_its_task_as_it_was_made(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly it is read, and however quickly a consumer takes it."""
    old = await worker.create()
    await worker.tasks.cancel(old.id)
    read = store.get_tasks

    async def read_late(ids: list[str], session: str) -> list[Task]:
        await worker.flush()
        assert (await worker.stream.measure())[0] == 0
        return await read(ids, session)

    await worker.take()  # what was canceled
    monkeypatch.setattr(store, "get_tasks", read_late)
    assert (await worker.tasks.retry(old.id)).status is Status.PENDING
    await worker.flush()
    assert (await worker.stream.measure())[0] == 1
