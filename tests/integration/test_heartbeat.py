"""The heartbeat: keeps the lease, and stops what is no longer this worker's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg2
import pytest

from tasksvc.domain.errors import StoreUnavailable
from tasksvc.domain.task import Claim
from tasksvc.duties.heartbeat import Heartbeat
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker, Row, Worker

Rows = Callable[[], list[Row]]

EXPIRES_IN = "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM worker"


async def wait(claim: Claim) -> None:
    await asyncio.Event().wait()


async def holding(make_worker: MakeWorker, tasks: int) -> Worker:
    worker = make_worker(wait, places=tasks)
    await worker.service.register()
    for _ in range(tasks):
        await worker.create()
    await worker.take()
    await asyncio.sleep(0)
    return worker


async def test_first_beat_registers(make_worker: MakeWorker, database_url: str) -> None:
    service = make_worker().service

    await Heartbeat(service, 1.0).run_once()

    assert query(database_url, "SELECT id FROM worker") == [(service.id,)]


async def test_beat_renews_the_lease_and_nothing_else(
    make_worker: MakeWorker, rows: Rows, database_url: str
) -> None:
    worker = await holding(make_worker, 2)
    before = query(database_url, "SELECT xmin FROM task ORDER BY id")
    query(database_url, "UPDATE worker SET expires_at = clock_timestamp()")

    await Heartbeat(worker.service, 1.0).run_once()

    ((seconds,),) = query(database_url, EXPIRES_IN)
    assert 4 < seconds <= 5
    assert query(database_url, "SELECT xmin FROM task ORDER BY id") == before
    assert len(worker.running) == 2


async def test_handler_of_a_task_that_was_canceled_elsewhere_is_stopped(
    make_worker: MakeWorker, rows: Rows, database_url: str
) -> None:
    """Although it got no message: the other process had no Redis."""
    worker = await holding(make_worker, 3)
    first = next(iter(worker.service.held))
    query(
        database_url,
        "UPDATE task SET status = 'canceled', worker_id = NULL, updated_at = clock_timestamp(),"
        " finished_at = clock_timestamp() WHERE id = %s",
        first,
    )

    await Heartbeat(worker.service, 1.0).run_once()

    await eventually(lambda: len(worker.running) == 2)
    await worker.finisher.run_once()
    assert sorted(rows(), key=str) == [("canceled", 1, 0)] + [("processing", 1, 0)] * 2
    assert first not in worker.service.held


@pytest.mark.slow
async def test_beat_that_hangs_is_given_up_while_there_is_time_for_another(
    make_worker: MakeWorker, database_url: str
) -> None:
    worker = make_worker(lease_seconds=3)
    await worker.service.register()
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM worker FOR UPDATE")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await Heartbeat(worker.service, 1.0).run_once()
        assert 0.9 < time.monotonic() - started < 1.5
    finally:
        connection.close()

    query(database_url, "UPDATE worker SET expires_at = clock_timestamp()")
    await Heartbeat(worker.service, 1.0).run_once()

    ((seconds,),) = query(database_url, EXPIRES_IN)
    assert 2 < seconds <= 3


@pytest.mark.slow
async def test_lock_on_the_tasks_does_not_keep_the_lease_from_being_renewed(
    make_worker: MakeWorker, database_url: str
) -> None:
    worker = await holding(make_worker, 1)
    query(database_url, "UPDATE worker SET expires_at = clock_timestamp()")
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE task")
        with pytest.raises(StoreUnavailable):
            await Heartbeat(worker.service, 1.0).run_once()
        ((seconds,),) = query(database_url, EXPIRES_IN)
        assert seconds > 2
    finally:
        connection.close()


async def test_lost_lease_stops_every_handler_and_registers_again(
    make_worker: MakeWorker, rows: Rows, database_url: str
) -> None:
    worker = await holding(make_worker, 3)
    before = worker.service.id
    query(database_url, "UPDATE worker SET lapsed_at = clock_timestamp()")

    await Heartbeat(worker.service, 1.0).run_once()

    await worker.finish()
    assert worker.consumer.is_idle
    assert worker.service.held == {}
    assert rows() == [("processing", 1, 0)] * 3, "they are a rescuer's now"
    after = worker.service.id
    assert after not in (None, before)
    assert query(database_url, "SELECT id FROM worker WHERE lapsed_at IS NULL") == [(after,)]
    await worker.create()
    assert await worker.take() == 1


async def test_lost_lease_whose_worker_is_forgotten_already(
    make_worker: MakeWorker, database_url: str
) -> None:
    worker = await holding(make_worker, 1)
    query(database_url, "UPDATE worker SET lapsed_at = clock_timestamp()")
    query(
        database_url,
        "UPDATE task SET status = 'pending', worker_id = NULL, failures = 1, published_at = NULL",
    )
    query(database_url, "DELETE FROM worker")

    await Heartbeat(worker.service, 1.0).run_once()

    await worker.finish()
    assert worker.consumer.is_idle
    assert len(query(database_url, "SELECT id FROM worker")) == 1


async def test_task_that_has_just_been_finished_is_not_taken_for_lost(
    make_worker: MakeWorker, rows: Rows
) -> None:
    stopped: list[str] = []
    worker = make_worker(stop_runs=stopped.extend)
    await worker.service.register()
    await worker.create()
    await worker.take()

    await asyncio.gather(worker.finish(), worker.service.renew_lease())

    assert rows() == [("completed", 1, 0)]
    assert stopped == []
