"""One consumer, step by step: what it takes, runs, writes and acknowledges, and in which order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
import uuid_utils

from tasksvc.domain import outcome
from tasksvc.domain.errors import StoreUnavailable, StreamUnavailable
from tasksvc.domain.outcome import Outcome
from tasksvc.domain.task import Claim, NewTask, Options, Priority, Status
from tasksvc.embedded import EmbeddedRedis
from tasksvc.handlers import Handler
from tasksvc.runs import Run, StopReason
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker, Row, Worker, do_nothing

Rows = Callable[[], list[Row]]

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"


async def wait(claim: Claim) -> None:
    await asyncio.Event().wait()


async def registered(make_worker: MakeWorker, handler: Handler, **options: Any) -> Worker:
    worker = make_worker(handler, **options)
    await worker.service.register()
    return worker


async def test_task_is_acknowledged_only_after_it_is_written(
    worker: Worker, store: TaskStore, stream: TaskStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for owner, name in ((store, "claim_tasks"), (store, "finish_tasks"), (stream, "acknowledge")):
        monkeypatch.setattr(owner, name, noting(steps, name, getattr(owner, name)))
    await worker.create()

    await worker.work()

    assert steps == ["claim_tasks", "finish_tasks", "acknowledge"]


def noting(steps: list[str], name: str, method: Any) -> Any:
    """The method, which notes its end."""

    async def noted(*args: Any) -> Any:
        result = await method(*args)
        steps.append(name)
        return result

    return noted


@pytest.mark.parametrize(
    ("content", "taken"),
    [("", [50, 100, 100]), ("x" * 10, [50, 100, 100]), ("x" * 200_000, [50, 10, 10])],
    ids=["empty", "small", "large"],
)
async def test_large_contents_are_claimed_a_few_at_a_time(
    make_worker: MakeWorker, store: TaskStore, content: str, taken: list[int]
) -> None:
    worker = await registered(make_worker, do_nothing, places=200)
    ids = [str(uuid_utils.uuid7()) for _ in range(sum(taken))]
    for id in ids:
        await store.insert_tasks([NewTask(id, content, 3, None, True)])
    await worker.stream.publish(ids)

    found = [await worker.take()]
    await worker.finish()
    for _ in taken[1:]:
        found.append(await worker.consumer.run_once())
        await worker.finish()
    assert found == taken


async def test_it_takes_no_more_than_it_has_places(
    make_worker: MakeWorker, rows: Rows, redis_client: redis.Redis, stream_key: str
) -> None:
    worker = await registered(make_worker, wait, places=2)
    for _ in range(5):
        await worker.create()

    assert await worker.take() == 2

    assert await worker.consumer.run_once() == 0
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 2
    assert sorted(rows()) == [("pending", 0, 0)] * 3 + [("processing", 1, 0)] * 2
    assert not worker.consumer.is_idle


async def test_duplicates_and_junk_are_acknowledged_and_do_no_harm(
    worker: Worker, rows: Rows, redis_client: redis.Redis, stream_key: str
) -> None:
    task = await worker.create()
    for fields in (
        {"id": task.id},
        {"id": task.id},
        {"id": "not a uuid"},
        {"id": task.id.upper()},
        {"id": ""},
        {"id": "x" * 1_000_000},
        {"other": task.id},
        {"id": UNKNOWN_ID},
    ):
        redis_client.xadd(stream_key, fields)

    async def is_empty() -> bool:
        await worker.work()
        return redis_client.xlen(stream_key) == 0

    await eventually(is_empty)
    assert rows() == [("completed", 1, 0)]
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 0


async def test_entry_without_fields_is_acknowledged(
    worker: Worker, redis_client: redis.Redis, stream_key: str
) -> None:
    """As the group gives back one that was deleted after its delivery."""
    await worker.create()
    assert await worker.stream.read(str(worker.service.id), 1, 1)
    redis_client.xtrim(stream_key, maxlen=0, approximate=False)

    await worker.take()

    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 0


@pytest.mark.parametrize("status", ["completed", "canceled"], ids=["completed", "canceled"])
async def test_entry_of_a_final_task_is_acknowledged(
    worker: Worker, status: str, redis_client: redis.Redis, stream_key: str
) -> None:
    task = await worker.create()
    if status == "canceled":
        await worker.tasks.cancel(task.id)
    else:
        await worker.work()
        redis_client.xadd(stream_key, {"id": task.id})

    assert await worker.take() == 0

    assert redis_client.xlen(stream_key) == 0
    assert (await worker.tasks.get(task.id)).status is Status(status)


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        StopAsyncIteration(),
        MemoryError(),
        TimeoutError(),
        ExceptionGroup("many", [ValueError("one")]),
        Untellable(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_a_failure_of_its_own(
    make_worker: MakeWorker, rows: Rows, error: BaseException
) -> None:
    async def fail(claim: Claim) -> None:
        raise error

    worker = await registered(make_worker, fail, max_attempts=2)
    task = await worker.create()

    await worker.work()

    assert rows() == [("pending", 1, 1)]
    assert worker.consumer.is_idle
    await worker.publish_due()
    await worker.work()
    assert rows() == [("failed", 2, 2)]
    described = (await worker.tasks.get(task.id)).error
    assert described is not None
    assert (described["type"], described["attempt"]) == (type(error).__name__, 2)
    assert worker.metrics.task_processing_fails.value == 2
    assert worker.metrics.task_processing_successes.value == 0


async def test_handler_that_swallows_its_cancel_loses_a_canceled_task_all_the_same(
    make_worker: MakeWorker, rows: Rows
) -> None:
    async def swallow(claim: Claim) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    worker = await registered(make_worker, swallow)
    task = await worker.create()
    await worker.take()
    await asyncio.sleep(0)  # its first step

    await worker.tasks.cancel(task.id)
    await worker.finish()

    assert rows() == [("canceled", 1, 0)]
    assert worker.consumer.is_idle
    assert worker.metrics.task_processing_successes.value == 0


async def translate(claim: Claim) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise RuntimeError("stopped") from None


@pytest.mark.parametrize("handler", [wait, translate])
async def test_stop_at_shutdown_charges_no_task(
    make_worker: MakeWorker, rows: Rows, handler: Handler
) -> None:
    worker = await registered(make_worker, handler)
    await worker.create()
    await worker.take()
    await asyncio.sleep(0)

    worker.running.stop_all()
    await worker.finish()

    assert rows() == [("pending", 1, 0)]
    assert worker.consumer.is_idle


async def test_handler_that_ends_well_though_it_was_stopped_is_believed(
    make_worker: MakeWorker, rows: Rows
) -> None:
    async def end(claim: Claim) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    worker = await registered(make_worker, end)
    await worker.create()
    await worker.take()
    await asyncio.sleep(0)

    worker.running.stop_all()
    await worker.finish()

    assert rows() == [("completed", 1, 0)]


@pytest.mark.parametrize("reason", [None, *StopReason])
async def test_run_that_is_canceled_before_its_first_step(
    make_worker: MakeWorker, rows: Rows, reason: StopReason | None
) -> None:
    worker = await registered(make_worker, wait)
    task = await worker.create()
    await worker.take()
    run = worker.running._runs[task.id]
    if reason is None:
        assert run.task is not None
        run.task.cancel()
    else:
        run.stop(reason)

    await worker.finish()

    is_lost = reason is StopReason.LOST
    # It was not asked to stop: then it is a failure, and counts.
    assert rows() == [("processing" if is_lost else "pending", 1, int(reason is None))]
    assert worker.service.held == {}
    assert worker.consumer.is_idle


async def test_first_reason_to_stop_is_the_one_that_counts(
    make_worker: MakeWorker, rows: Rows
) -> None:
    worker = await registered(make_worker, wait)
    task = await worker.create()
    await worker.take()
    await asyncio.sleep(0)
    run = worker.running._runs[task.id]

    await worker.tasks.cancel(task.id)
    worker.running.stop_all()
    await worker.finish()

    assert run.stop_reason is StopReason.LOST
    assert rows() == [("canceled", 1, 0)]


async def test_claim_without_postgres_is_made_later(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    """The entries stay this consumer's in the group, and are read again."""

    async def be_away(*args: Any) -> list[Claim]:
        raise StoreUnavailable

    await worker.create()
    await worker.consumer.run_once()
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_tasks", be_away)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await worker.consumer.run_once()

    await worker.work()

    assert rows() == [("completed", 1, 0)]


async def test_claim_whose_answer_was_lost_comes_back_with_its_attempt(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    claim = store.claim_tasks

    async def lose_answer(*args: Any) -> list[Claim]:
        await claim(*args)
        raise StoreUnavailable

    await worker.create()
    await worker.consumer.run_once()
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_tasks", lose_answer)
        with pytest.raises(StoreUnavailable):
            await worker.consumer.run_once()

    await worker.work()

    assert rows() == [("completed", 1, 0)]


async def test_results_are_kept_while_postgres_is_away(
    worker: Worker,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
    rows: Rows,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    async def be_away(*args: Any) -> list[str]:
        raise StoreUnavailable

    for _ in range(3):
        await worker.create()
    await worker.take()
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish_tasks", be_away)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await worker.finish()
    assert rows() == [("processing", 1, 0)] * 3
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 3
    assert len(worker.service.held) == 3

    assert await worker.finish() == 3

    assert rows() == [("completed", 1, 0)] * 3
    assert redis_client.xlen(stream_key) == 0
    assert worker.consumer.is_idle
    assert worker.metrics.task_processing_successes.value == 3


async def test_acknowledgement_that_was_lost_is_made_up_for(
    worker: Worker,
    stream: TaskStream,
    monkeypatch: pytest.MonkeyPatch,
    rows: Rows,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    async def be_away(entries: Any) -> None:
        raise StreamUnavailable

    await worker.create()
    with monkeypatch.context() as patch:
        patch.setattr(stream, "acknowledge", be_away)
        await worker.work()
    assert rows() == [("completed", 1, 0)]
    assert redis_client.xlen(stream_key) == 1
    assert worker.consumer.is_idle

    await worker.take()

    assert redis_client.xlen(stream_key) == 0
    assert rows() == [("completed", 1, 0)]


async def test_command_that_reaches_redis_long_after_it_was_given_up_is_made_up_for(
    worker: Worker, rows: Rows, redis_client: redis.Redis, stream_key: str
) -> None:
    """Dropped packets are sent again, also for a connection that was closed meanwhile."""
    task = await worker.create()
    worker.consumer._reread()
    await worker.work()
    assert rows() == [("completed", 1, 0)]
    redis_client.xadd(stream_key, {"id": str(task.id)})
    redis_client.xreadgroup("tasksvc", f"{worker.service.id}/1", {stream_key: ">"})
    await worker.consumer.run_once()
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 1

    assert worker.consumer._late_rereads
    worker.consumer._late_rereads = [time.monotonic()]
    await worker.consumer.run_once()

    assert redis_client.xlen(stream_key) == 0
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 0
    assert rows() == [("completed", 1, 0)]


async def test_reread_entries_of_what_runs_are_not_started_twice(
    make_worker: MakeWorker, rows: Rows, redis_client: redis.Redis, stream_key: str
) -> None:
    worker = await registered(make_worker, wait)
    await worker.create()
    await worker.take()

    worker.consumer._reread()
    await worker.take()

    assert len(worker.running) == 1
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 1
    assert rows() == [("processing", 1, 0)]


async def test_reader_that_is_killed_while_it_claims_loses_nothing(
    worker: Worker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    claim = store.claim_tasks
    has_claimed, may_answer = asyncio.Event(), asyncio.Event()

    async def claim_slowly(*args: Any) -> list[Claim]:
        claims = await claim(*args)
        has_claimed.set()
        await may_answer.wait()
        return claims

    monkeypatch.setattr(store, "claim_tasks", claim_slowly)
    await worker.create()
    reading, finishing = worker.consumer.reading, worker.consumer.finishing
    reading.start()
    finishing.start()
    try:
        await has_claimed.wait()
        assert reading._task is not None
        reading._task.cancel()
        await asyncio.wait([reading._task])
        may_answer.set()

        await eventually(lambda: rows() == [("completed", 1, 0)])
    finally:
        await reading.stop(1)
        await finishing.stop(1)


async def test_finisher_that_is_killed_while_it_acknowledges_counts_each_run_once(
    worker: Worker, stream: TaskStream, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    acknowledge = stream.acknowledge
    is_entered = asyncio.Event()

    async def hang_once(entries: Any) -> None:
        if not is_entered.is_set():
            is_entered.set()
            await asyncio.Event().wait()
        await acknowledge(entries)

    await worker.create()
    await worker.take()
    await eventually(lambda: not len(worker.running))
    monkeypatch.setattr(stream, "acknowledge", hang_once)
    finishing = worker.consumer.finishing
    finishing.start()
    try:
        await is_entered.wait()
        killed = finishing._task
        assert killed is not None
        killed.cancel()
        await eventually(lambda: finishing._task is not killed)
        await finishing._step.run_once()
    finally:
        await finishing.stop(1)

    assert worker.consumer.is_idle
    assert worker.metrics.task_processing_successes.value == 1
    assert rows() == [("completed", 1, 0)]
    await worker.take()
    assert (await stream.measure()) == (0, 0)


async def test_work_comes_from_the_store_while_redis_is_away(
    own_worker: Worker, own_redis: EmbeddedRedis, rows: Rows
) -> None:
    own_redis.kill()
    for _ in range(3):
        await own_worker.create()

    await own_worker.work()

    assert rows() == [("completed", 1, 0)] * 3
    assert own_worker.consumer.is_idle


async def test_what_was_taken_from_the_store_is_not_run_again_by_its_entry(
    own_worker: Worker, own_redis: EmbeddedRedis, own_stream: TaskStream, rows: Rows
) -> None:
    task = await own_worker.create()
    await own_worker.consumer._take_from_store()
    assert (await own_stream.measure())[0] == 1

    await own_worker.take()
    await own_worker.finish()
    await own_worker.take()

    assert rows() == [("completed", 1, 0)]
    assert (await own_worker.tasks.get(task.id)).status is Status.COMPLETED
    assert (await own_stream.measure()) == (0, 0)


async def test_claim_from_the_store_whose_answer_was_lost_is_handed_back(
    own_worker: Worker,
    own_redis: EmbeddedRedis,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
    rows: Rows,
) -> None:
    claim = store.claim_tasks

    async def lose_answer(*args: Any) -> list[Claim]:
        await claim(*args)
        raise StoreUnavailable

    own_redis.kill()
    await own_worker.create()
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_tasks", lose_answer)
        with pytest.raises(StoreUnavailable):
            await own_worker.consumer.run_once()
    assert rows() == [("processing", 1, 0)]

    await own_worker.service.renew_lease()
    await own_worker.flush()
    assert rows() == [("pending", 1, 0)]
    await own_worker.work()

    assert rows() == [("completed", 2, 0)]


async def test_claim_that_was_run_again_too_early_is_handed_back(
    make_worker: MakeWorker, store: TaskStore, monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    """The connection broke, and the second try passed over what the first had not committed yet."""
    worker = await registered(make_worker, do_nothing)
    claim = store.claim_tasks

    async def pass_over(*args: Any) -> list[Claim]:
        await claim(*args)
        store._sessions["claim"].runs_again += 1
        return []

    await worker.create()
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim_tasks", pass_over)
        await worker.take()
    assert rows() == [("processing", 1, 0)]

    await worker.service.renew_lease()
    await worker.flush()
    assert rows() == [("pending", 1, 0)]


async def test_two_consumers_of_one_process_have_pending_entries_of_their_own(
    make_worker: MakeWorker, database_url: str
) -> None:
    worker = await registered(make_worker, wait, places=1)
    for _ in range(2):
        await worker.create()
    await worker.take()
    other = await registered(make_worker, wait, places=1)

    await other.take()

    assert query(database_url, "SELECT count(DISTINCT worker_id) FROM task") == [(2,)]


async def test_more_entries_than_places_wait_for_their_turn(
    make_worker: MakeWorker,
    store: TaskStore,
    redis_client: redis.Redis,
    stream_key: str,
    rows: Rows,
) -> None:
    """A read that waited may be given an entry of each lane at once."""
    worker = await registered(make_worker, do_nothing, places=1)
    await worker.take()
    tasks = [
        NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, Options(priority=priority))
        for priority in Priority
    ]
    await store.insert_tasks_with_options(tasks)
    reading = asyncio.create_task(worker.consumer.run_once())
    await eventually(lambda: [c for c in redis_client.client_list() if "b" in c["flags"]])
    keys = [f"{stream_key}:high:default", stream_key, f"{stream_key}:low:default"]
    with redis_client.pipeline(transaction=True) as pipeline:
        for key, task in zip(keys, tasks, strict=True):
            pipeline.xadd(key, {"id": task.id})
        pipeline.execute()

    assert await reading == 1
    await worker.finish()
    for _ in range(2):
        await worker.work()
    assert rows() == [("completed", 1, 0)] * 3
    assert await worker.stream.measure() == (0, 0)


class TestOutcomeThatPostgresRefuses:
    """A NUL that a handler smuggles past all checks stands for whatever PostgreSQL refuses."""

    @pytest.fixture
    async def worker(self, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> Worker:
        async def echo(claim: Claim) -> str:
            return claim.content

        worker = await registered(make_worker, echo)

        def completed(result: Any, run: Run) -> Outcome:
            text = '"\0"' if result == "bad" else '"good"'
            return outcome.completed(text)

        monkeypatch.setattr(worker.consumer._executor, "_completed", completed)
        return worker

    async def test_it_fails_that_task_alone(self, worker: Worker, rows: Rows) -> None:
        tasks = [await worker.create(content) for content in ("good", "bad", "good")]

        await worker.work()

        assert rows() == [("completed", 1, 0), ("failed", 1, 1), ("completed", 1, 0)]
        error = (await worker.tasks.get(tasks[1].id)).error
        assert error is not None
        assert error["type"] == "OutcomeRefused"
        assert worker.consumer.is_idle
        assert worker.metrics.task_processing_fails.value == 1
        assert worker.metrics.task_processing_successes.value == 2

    async def test_the_rest_is_not_written_twice_if_the_failure_has_to_wait(
        self, worker: Worker, rows: Rows, store: TaskStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for content in ("good", "bad"):
            await worker.create(content)
        finish = store.finish_tasks

        async def away(finishes: Any) -> Any:
            if any(each.outcome.error for each in finishes):
                raise StoreUnavailable
            return await finish(finishes)

        monkeypatch.setattr(store, "finish_tasks", away)
        await worker.take()
        await eventually(lambda: not len(worker.running))
        with pytest.raises(StoreUnavailable):
            await worker.finisher.run_once()
        assert rows() == [("completed", 1, 0), ("processing", 1, 0)]
        assert worker.consumer.places.in_use == 1
        monkeypatch.setattr(store, "finish_tasks", finish)

        await worker.finisher.run_once()

        assert rows() == [("completed", 1, 0), ("failed", 1, 1)]
        assert worker.metrics.task_processing_successes.value == 1
        assert worker.consumer.is_idle
