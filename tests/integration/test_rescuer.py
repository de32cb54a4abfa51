"""The rescuer: the tasks of dead workers go on elsewhere, and no living worker is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
import redis

from tasksvc.domain.errors import LeaseLost, StoreUnavailable
from tasksvc.domain.outcome import COMPLETED, RunResult
from tasksvc.domain.task import Claim, Status
from tasksvc.duties.rescuer import Rescuer
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker, Row, Worker, lapse

pytestmark = pytest.mark.slow

Rows = Callable[[], list[Row]]

LEASE_SECONDS = 0.2


async def wait(claim: Claim) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def doomed(make_worker: MakeWorker) -> Worker:
    """A worker that holds two tasks, and is to die."""
    doomed = make_worker(wait, lease_seconds=3600)
    await doomed.service.register()
    for _ in range(2):
        await doomed.create()
    await doomed.take()
    return doomed


@pytest.fixture
async def rescuer(make_worker: MakeWorker, store: TaskStore) -> Worker:
    """A worker that may rescue at once: PostgreSQL has been there for long enough."""
    worker = make_worker(lease_seconds=3600)
    await worker.service.register()
    await eventually(lambda: store.up_seconds > LEASE_SECONDS)
    return worker


async def rescue(worker: Worker) -> float | None:
    """A look of one whose lease is short; what it does after that takes as long as it likes."""
    worker.rescue._lease_seconds = LEASE_SECONDS
    try:
        return await worker.rescue.run()
    finally:
        worker.rescue._lease_seconds = 3600.0


async def test_tasks_of_the_dead_are_charged_and_run_elsewhere(
    doomed: Worker,
    rescuer: Worker,
    rows: Rows,
    database_url: str,
    redis_client: redis.Redis,
    stream_key: str,
) -> None:
    lapse(database_url, doomed.service.id)

    await rescue(rescuer)

    assert rows() == [("pending", 1, 1)] * 2
    assert redis_client.xlen(stream_key) == 2, "the old entries are gone, the new ones are there"
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 0
    consumers = redis_client.xinfo_consumers(stream_key, "tasksvc")
    assert not [each for each in consumers if str(doomed.service.id) in each["name"]]
    assert query(database_url, "SELECT id FROM worker") == [(rescuer.service.id,)]
    assert rescuer.metrics.tasks_rescued.value == 2

    await rescuer.work()

    assert rows() == [("completed", 2, 1)] * 2
    assert redis_client.xlen(stream_key) == 0


async def test_living_workers_keep_their_tasks(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    seconds = await rescue(rescuer)

    assert seconds is not None
    assert 3000 < seconds < 3600
    assert rows() == [("processing", 1, 0)] * 2


async def test_next_look_comes_when_the_next_lease_could_run_out(
    make_worker: MakeWorker, rescuer: Worker, database_url: str
) -> None:
    other = make_worker()
    await other.service.register()
    query(
        database_url,
        "UPDATE worker SET expires_at = clock_timestamp() + interval '2 seconds' WHERE id = %s",
        other.service.id,
    )
    step = Rescuer(rescuer.rescue, 10.0)
    rescuer.rescue._lease_seconds = LEASE_SECONDS

    await step.run_once()

    assert 1.0 < step.pause_seconds <= 2.1


async def test_rescuer_does_not_declare_itself_dead(rescuer: Worker, database_url: str) -> None:
    lapse(database_url, rescuer.service.id)

    await rescue(rescuer)

    assert len(query(database_url, "SELECT 1 FROM worker WHERE lapsed_at IS NULL")) == 1


async def test_task_whose_attempts_are_spent_ends_as_failed(
    make_worker: MakeWorker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    doomed = make_worker(wait, max_attempts=1)
    await doomed.service.register()
    task = await doomed.create()
    await doomed.take()
    lapse(database_url, doomed.service.id)

    await rescue(rescuer)

    assert rows() == [("failed", 1, 1)]
    error = (await rescuer.tasks.get(task.id)).error
    assert error is not None
    assert error["type"] == "WorkerLost"


async def test_zombie_changes_nothing_and_registers_again(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    held = doomed.service.held
    before = doomed.service.id
    lapse(database_url, before)
    await rescue(rescuer)

    await doomed.service.finish([RunResult(id, held[id], COMPLETED) for id in held])
    assert rows() == [("pending", 1, 1)] * 2
    with pytest.raises(LeaseLost):
        await doomed.service.claim(list(held))
    assert rows() == [("pending", 1, 1)] * 2

    await rescuer.work()
    assert rows() == [("completed", 2, 1)] * 2


async def test_no_task_is_charged_before_living_workers_could_renew(
    doomed: Worker, rescuer: Worker, store: TaskStore, rows: Rows, database_url: str
) -> None:
    """PostgreSQL was away for longer than a lease: everybody's has run out."""
    lapse(database_url, doomed.service.id)
    store._database.is_up = False
    assert (await rescue(rescuer)) == LEASE_SECONDS
    assert rows() == [("processing", 1, 0)] * 2

    await doomed.service.renew_lease()
    await eventually(lambda: store.up_seconds > LEASE_SECONDS)
    await rescue(rescuer)

    assert rows() == [("processing", 1, 0)] * 2


@pytest.mark.slow
async def test_rescuer_that_waits_for_a_lock_declares_no_worker_dead(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    """The living workers wait for the same lock, to renew their leases."""
    await rescue(rescuer)  # it has looked before, and its statement is prepared
    lapse(database_url, doomed.service.id)
    locking = psycopg2.connect(database_url)
    try:
        locking.cursor().execute("LOCK TABLE worker")
        rescuing = asyncio.create_task(rescue(rescuer))
        await asyncio.sleep(1.2)  # longer than the statement lets itself be kept waiting
        assert not rescuing.done()
    finally:
        locking.close()
    await rescuing
    assert rows() == [("processing", 1, 0)] * 2

    await rescue(rescuer)

    assert rows() == [("pending", 1, 1)] * 2


async def test_no_worker_is_declared_dead_soon_after_the_workers_could_not_be_read(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    lapse(database_url, doomed.service.id)
    query(database_url, "ALTER TABLE worker RENAME TO elsewhere")
    with pytest.raises(StoreUnavailable):
        await rescue(rescuer)
    query(database_url, "ALTER TABLE elsewhere RENAME TO worker")

    assert 0 < (await rescue(rescuer) or 0) <= LEASE_SECONDS
    assert rows() == [("processing", 1, 0)] * 2

    await asyncio.sleep(LEASE_SECONDS)
    await rescue(rescuer)

    assert rows() == [("pending", 1, 1)] * 2


async def test_half_done_rescue_is_ended_by_the_next(
    doomed: Worker,
    rescuer: Worker,
    store: TaskStore,
    monkeypatch: pytest.MonkeyPatch,
    rows: Rows,
    database_url: str,
) -> None:
    async def be_away(*args: Any) -> Any:
        raise StoreUnavailable

    lapse(database_url, doomed.service.id)
    with monkeypatch.context() as patch:
        patch.setattr(store, "rescue_tasks", be_away)
        with pytest.raises(StoreUnavailable):
            await rescue(rescuer)
    assert rows() == [("processing", 1, 0)] * 2

    await rescue(rescuer)

    assert rows() == [("pending", 1, 1)] * 2
    assert query(database_url, "SELECT id FROM worker") == [(rescuer.service.id,)]


async def test_two_rescuers_charge_once(
    doomed: Worker, rescuer: Worker, make_worker: MakeWorker, rows: Rows, database_url: str
) -> None:
    other = make_worker(lease_seconds=3600)
    lapse(database_url, doomed.service.id)

    await asyncio.gather(rescue(rescuer), rescue(other))

    assert rows() == [("pending", 1, 1)] * 2


async def test_worker_that_was_killed_before_it_registered_leaves_no_consumer(
    rescuer: Worker, stream: TaskStream, redis_client: redis.Redis, stream_key: str
) -> None:
    """And the tasks that it was given are published again."""
    await rescuer.create()
    stranger = "00000000-0000-7000-8000-000000000000"
    assert await stream.read(stranger, 1, 10)

    await rescue(rescuer)
    await rescuer.publish_due()
    await rescuer.work()

    assert redis_client.xlen(stream_key) == 0
    consumers = redis_client.xinfo_consumers(stream_key, "tasksvc")
    assert not [each for each in consumers if stranger in each["name"]]


async def test_consumers_of_the_living_stay(
    doomed: Worker, rescuer: Worker, redis_client: redis.Redis, stream_key: str
) -> None:
    await rescuer.take()

    await rescue(rescuer)

    names = {each["name"] for each in redis_client.xinfo_consumers(stream_key, "tasksvc")}
    assert names == {f"{doomed.service.id}/1", f"{rescuer.service.id}/1"}
    assert redis_client.xpending(stream_key, "tasksvc")["pending"] == 2


async def test_canceled_task_is_not_rescued(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str
) -> None:
    canceled = next(iter(doomed.service.held))
    await rescuer.tasks.cancel(canceled)
    lapse(database_url, doomed.service.id)

    await rescue(rescuer)

    assert set(rows()) == {("canceled", 1, 0), ("pending", 1, 1)}
    assert (await rescuer.tasks.get(canceled)).status is Status.CANCELED


async def test_worker_whose_own_renewals_fail_declares_no_worker_dead(
    doomed: Worker, rescuer: Worker, rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While commits hang for all, the others cannot renew their leases either."""

    async def hang(*args: Any) -> Any:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(rescuer.service._store, "renew_lease", hang)
        with pytest.raises(StoreUnavailable):
            await rescuer.service.renew_lease()
    lapse(database_url, doomed.service.id)
    rescuer.rescue._lease_seconds = 3600.0

    assert await rescuer.rescue.run() is not None

    assert {status for status, *_ in rows()} == {"processing"}
