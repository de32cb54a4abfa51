"""The relay: what the stream does not hold, though it should, is published again, and once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import pytest
import redis
import uuid_utils

from tasksvc.domain.errors import StoreUnavailable, StreamUnavailable
from tasksvc.domain.task import DEFAULT_LANE, Lane, NewTask
from tasksvc.duties.relay import Relay
from tasksvc.services.publisher import Publisher
from tasksvc.store.task_store import Due, TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker, Worker

pytestmark = pytest.mark.slow

AGE = (
    "UPDATE task SET published_at = published_at - interval '1 minute',"
    " due_at = due_at - interval '1 minute'"
)


async def sweep(publisher: Publisher) -> list[int]:
    """How many tasks each step of a relay published, until one finds nothing."""
    steps = []
    while True:
        try:
            steps.append(await Relay(publisher, 1.0).run_once())
        except StreamUnavailable:  # it has just made the group
            continue
        if not steps[-1]:
            return steps


async def notice_loss(stream: TaskStream, seconds_ago: float = 1.0) -> None:
    """Another process found that the group was missing a while ago, and has recreated it."""
    with suppress(StreamUnavailable):
        await stream.look()
    stream.lost_at[DEFAULT_LANE] -= seconds_ago


async def backlog(store: TaskStore, stream: TaskStream, size: int) -> list[str]:
    tasks = [NewTask(str(uuid_utils.uuid7()), "x", 3, None, True) for _ in range(size)]
    ids = [task.id for task in tasks]
    await store.insert_tasks(tasks)
    await stream.publish(ids)
    stream.lost_at.clear()
    return ids


def grow_old(client: redis.Redis, key: str, database_url: str, id: str) -> None:
    """The one task has waited for a minute, in the table and in the stream."""
    seconds, _ = client.time()
    client.delete(key)
    client.xgroup_create(key, "tasksvc", id="0", mkstream=True)
    client.xadd(key, {"id": id}, id=f"{(seconds - 60) * 1000}-0")
    query(database_url, AGE)


def published(client: redis.Redis, key: str) -> Sequence[str]:
    return [fields["id"] for _, fields in client.xrange(key)]


async def test_nothing_is_published_twice_without_need(
    worker: Worker, redis_client: redis.Redis, stream_key: str
) -> None:
    await asyncio.gather(*(worker.tasks.create("x") for _ in range(20)))
    await worker.flush()

    assert await sweep(worker.publisher) == [0]

    assert redis_client.xlen(stream_key) == 20


async def test_task_that_is_not_due_is_left_alone(worker: Worker, database_url: str) -> None:
    await worker.create()
    query(
        database_url,
        "UPDATE task SET published_at = NULL, due_at = clock_timestamp() + interval '1 hour'",
    )

    assert await sweep(worker.publisher) == [0]

    query(database_url, "UPDATE task SET due_at = clock_timestamp()")
    assert await sweep(worker.publisher) == [1, 0]


@pytest.mark.slow
async def test_watermark_finds_an_entry_that_was_lost_after_its_publication(
    worker: Worker, redis_client: redis.Redis, stream_key: str, database_url: str
) -> None:
    await sweep(worker.publisher)  # the group is new
    lost, kept = await worker.create(), await worker.create()
    redis_client.xdel(stream_key, redis_client.xrange(stream_key)[0][0])
    query(database_url, AGE)
    # The other one waits just as long by its entry: no consumer has it.
    redis_client.delete(stream_key)
    redis_client.xgroup_create(stream_key, "tasksvc", id="0", mkstream=True)
    redis_client.xadd(stream_key, {"id": kept.id})

    assert await eventually(Relay(worker.publisher, 1.0).run_once) == 2

    assert Counter(published(redis_client, stream_key)) == {lost.id: 1, kept.id: 2}


@pytest.mark.slow
async def test_what_a_consumer_is_just_claiming_is_not_lost(
    worker: Worker, redis_client: redis.Redis, stream_key: str, database_url: str
) -> None:
    """The last of a backlog: nothing waits any more, and it is old and pending still."""
    await sweep(worker.publisher)  # the group is new
    task = await worker.create()
    grow_old(redis_client, stream_key, database_url, task.id)
    assert await worker.publish_due() == 0
    redis_client.xreadgroup("tasksvc", "somebody", {stream_key: ">"})

    assert await worker.publish_due() == 0

    assert await eventually(worker.publish_due) == 1, "it was given out, and not claimed"


async def test_long_backlog_holds_the_watermark_back(
    make_worker: MakeWorker,
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits in the stream as long as it waits in the table is not taken for lost."""
    former = make_worker()
    await sweep(former.publisher)  # the group is new
    task = await former.create()
    grow_old(redis_client, stream_key, database_url, task.id)
    monkeypatch.setattr("tasksvc.services.publisher._CLAIM_SECONDS", 0)

    worker = make_worker()
    for _ in range(3):
        assert await sweep(worker.publisher) == [0]

    assert redis_client.xlen(stream_key) == 1


@pytest.mark.parametrize("loss", ["delete", "destroy", "flush", "wrong type"])
async def test_sweep_after_the_loss_of_the_group_publishes_the_whole_backlog_once(
    worker: Worker,
    store: TaskStore,
    stream: TaskStream,
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
    loss: str,
) -> None:
    ids = await backlog(store, stream, 3000)
    query(database_url, AGE)
    match loss:
        case "delete":
            redis_client.delete(stream_key)
        case "destroy":
            redis_client.xgroup_destroy(stream_key, "tasksvc")
            redis_client.xtrim(stream_key, maxlen=0, approximate=False)
        case "flush":
            redis_client.flushall()
        case "wrong type":
            redis_client.set(stream_key, "not a stream")
    await notice_loss(stream)

    steps = await sweep(worker.publisher)

    assert sum(steps) == 3000
    assert Counter(published(redis_client, stream_key)) == dict.fromkeys(ids, 1)
    assert not stream.lost_at
    assert await sweep(worker.publisher) == [0]


async def test_group_that_is_found_missing_by_the_relay_is_swept_at_once(
    worker: Worker,
    store: TaskStore,
    stream: TaskStream,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    await backlog(store, stream, 10)
    redis_client.xgroup_destroy(stream_key, "tasksvc")
    redis_client.xtrim(stream_key, maxlen=0, approximate=False)

    assert await Relay(worker.publisher, 1.0).run_once() == 10


async def test_what_is_created_after_the_loss_is_not_swept_up(
    worker: Worker,
    store: TaskStore,
    stream: TaskStream,
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
) -> None:
    ids = await backlog(store, stream, 10)
    query(database_url, AGE)
    redis_client.delete(stream_key)
    await notice_loss(stream)
    later = [(await worker.create()).id for _ in range(5)]

    await sweep(worker.publisher)

    assert Counter(published(redis_client, stream_key)) == dict.fromkeys(ids + later, 1)


async def test_second_loss_during_a_sweep_is_swept_too(
    worker: Worker,
    store: TaskStore,
    stream: TaskStream,
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
) -> None:
    ids = await backlog(store, stream, 2500)
    query(database_url, AGE)
    redis_client.delete(stream_key)
    await notice_loss(stream)
    assert await Relay(worker.publisher, 1.0).run_once() == 1000
    query(database_url, AGE)
    redis_client.delete(stream_key)
    await notice_loss(stream)

    assert sum(await sweep(worker.publisher)) == 2500

    assert Counter(published(redis_client, stream_key)) == dict.fromkeys(ids, 1)


async def test_sweep_stops_at_a_full_stream_and_goes_on_later(
    worker: Worker,
    store: TaskStore,
    stream: TaskStream,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    ids = await backlog(store, stream, 30)
    redis_client.delete(stream_key)
    stream._max_entries = 20
    await sweep(worker.publisher)
    assert redis_client.xlen(stream_key) == 20

    entries = await stream.read(str(worker.service.id), 1, 20)
    await stream.acknowledge([entry for entry, _ in entries])
    await sweep(worker.publisher)

    again = published(redis_client, stream_key)
    assert sorted([id for _, id in entries if id] + list(again)) == sorted(ids)


async def test_publication_that_fails_is_taken_back(
    worker: Worker,
    stream: TaskStream,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    task = await worker.create()
    redis_client.xtrim(stream_key, maxlen=0, approximate=False)
    query(database_url, "UPDATE task SET published_at = NULL")

    async def refuse(ids: Sequence[str], lane: Lane) -> int:
        raise StreamUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(stream, "publish", refuse)
        await Relay(worker.publisher, 1.0).run_once()
    assert query(database_url, "SELECT published_at FROM task") == [(None,)]

    assert await sweep(worker.publisher) == [1, 0]
    assert published(redis_client, stream_key) == [task.id]


@pytest.mark.slow
async def test_publication_that_can_not_be_taken_back_is_found_by_its_age(
    make_worker: MakeWorker,
    store: TaskStore,
    stream: TaskStream,
    monkeypatch: pytest.MonkeyPatch,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    async def refuse(ids: Sequence[str], lane: Lane) -> int:
        raise StreamUnavailable

    async def be_away(ids: Sequence[str]) -> None:
        raise StoreUnavailable

    worker = make_worker(lost_margin_seconds=0.1)
    await worker.service.register()
    with monkeypatch.context() as patch:
        patch.setattr(stream, "publish", refuse)
        patch.setattr(store, "unpublish_tasks", be_away)
        task = await worker.create()
    assert redis_client.xlen(stream_key) == 0

    await eventually(lambda: Relay(worker.publisher, 1.0).run_once(), 30)

    assert published(redis_client, stream_key) == [task.id]


async def test_relays_of_many_processes_publish_each_task_once(
    make_worker: MakeWorker,
    store: TaskStore,
    redis_client: redis.Redis,
    stream_key: str,
    database_url: str,
) -> None:
    workers = [make_worker(lost_margin_seconds=60) for _ in range(4)]
    tasks = [NewTask(str(uuid_utils.uuid7()), "x", 3, None, False) for _ in range(3000)]
    await store.insert_tasks(tasks)

    while sum(await asyncio.gather(*(worker.publish_due() for worker in workers))):
        pass

    ids = [task.id for task in tasks]
    assert Counter(published(redis_client, stream_key)) == dict.fromkeys(ids, 1)


async def test_look_that_waits_for_its_statement_takes_nothing_new_for_lost(
    worker: Worker, store: TaskStore
) -> None:
    """What is lost was published before the look, however late PostgreSQL is asked."""
    await notice_loss(worker.stream, seconds_ago=0)
    session = store._sessions["duty"]
    async with session._turn:
        looking = asyncio.create_task(worker.publish_due())
        await eventually(lambda: session._turn._waiters)
        await worker.create()
        await worker.flush()
        await asyncio.sleep(0.3)  # the task is older now than the loss was at the look

    assert await looking == 0


async def test_relay_asks_for_what_is_due_only_where_something_lives_or_may_be_lost(
    worker: Worker, store: TaskStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle service asks PostgreSQL once in a step."""
    worker.stream.lost_at.clear()
    asked = []
    publish_due = store.publish_due_tasks

    async def noted(lost_before: float, limit: int, lane: Lane = DEFAULT_LANE) -> Due:
        asked.append(lane)
        return await publish_due(lost_before, limit, lane)

    monkeypatch.setattr(store, "publish_due_tasks", noted)

    assert await sweep(worker.publisher) == [0]
    assert asked == []
    await worker.create()
    await sweep(worker.publisher)
    assert asked == [DEFAULT_LANE]
    await worker.work()
    await sweep(worker.publisher)
    assert asked == [DEFAULT_LANE]
    redis_client.flushall()
    await sweep(worker.publisher)
    assert DEFAULT_LANE in asked[1:]
