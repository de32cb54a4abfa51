"""The counts of tasks are exact, whatever writes at the same time, and cheap to read."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import uuid
from collections.abc import Iterable

import psycopg2
import pytest

from tasksvc.domain import outcome
from tasksvc.domain.outcome import COMPLETED, RELEASED, RunResult
from tasksvc.domain.task import NewTask, Status
from tasksvc.store import queries
from tasksvc.store.database import Database
from tasksvc.store.task_store import TaskStore
from tests.harness import eventually, query


def counted(url: str) -> dict[str, int]:
    rows = query(url, "SELECT status::text, count(*) FROM task GROUP BY status")
    return {str(status): 0 for status in Status} | dict(rows)


def tallied(url: str) -> dict[str, int]:
    rows = query(url, "SELECT status::text, sum(tasks)::int FROM task_tally GROUP BY status")
    return {str(status): 0 for status in Status} | dict(rows)


def new_ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


async def insert(store: TaskStore, ids: Iterable[str]) -> None:
    await store.insert_tasks([NewTask(id, "x", 3, None, True) for id in ids])


async def live(store: TaskStore, chance: random.Random, ids: list[str]) -> None:
    """Does what services do, with tasks that others do it to as well."""
    error = {"type": "E", "message": "", "attempt": 1}
    worker_id = str(uuid.UUID(int=chance.getrandbits(128)))
    await store.register_worker(worker_id, "w", 60)
    for _ in range(15):
        some = chance.sample(ids, 8)
        match chance.randrange(6):
            case 0:
                await insert(store, new_ids(3))
            case 1 | 2:
                outcomes = [COMPLETED, RELEASED, outcome.failed(error), outcome.retried(error, 0)]
                claims = await store.claim_tasks(worker_id, some)
                await store.finish_tasks(
                    [
                        RunResult(each.id, each.attempt, chance.choice(outcomes))
                        for each in claims[1:]
                    ]
                )
            case 3:
                await store.cancel_tasks(some[:2])
            case 4:
                await store.fold_tally()
            case 5:
                await store.delete_finished_tasks(0, 2)
    await store.rescue_tasks([worker_id], 100)


@pytest.mark.parametrize("seed", [1, 2])
async def test_tally_is_exact_after_a_mix_by_many(database_url: str, seed: int) -> None:
    stores = [TaskStore(Database(database_url)) for _ in range(5)]
    ids = new_ids(60)
    await insert(stores[0], ids)
    await asyncio.gather(
        *(live(store, random.Random(100 * seed + n), ids) for n, store in enumerate(stores))
    )
    assert sum(counted(database_url).values()) > 0
    assert tallied(database_url) == counted(database_url)

    assert (await stores[0].measure()).tasks == counted(database_url)
    await stores[0].fold_tally()
    assert tallied(database_url) == counted(database_url)
    assert query(database_url, "SELECT count(*) <= 5 FROM task_tally") == [(True,)]
    for store in stores:
        await store.close()


async def test_change_that_was_rolled_back_is_not_counted(
    database_url: str, store: TaskStore
) -> None:
    await insert(store, new_ids(2))
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM task")
        connection.rollback()
    connection.close()

    assert (await store.measure()).tasks["pending"] == 2


async def test_fold_waits_for_no_lock(database_url: str, store: TaskStore) -> None:
    await insert(store, new_ids(2))
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute(queries.load("tasks.sql")["fold_tally"])
        await insert(store, new_ids(3))
        await store.fold_tally()
        connection.commit()
    connection.close()

    assert tallied(database_url)["pending"] == 5


async def test_truncation_during_a_fold_counts_nothing(database_url: str, store: TaskStore) -> None:
    await insert(store, new_ids(2))
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute(queries.load("tasks.sql")["fold_tally"])
        truncating = threading.Thread(target=query, args=(database_url, "TRUNCATE task"))
        truncating.start()
        await eventually(lambda: query(database_url, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        connection.commit()
        truncating.join()
    connection.close()

    assert tallied(database_url) == counted(database_url)
    assert not any(tallied(database_url).values())
    await insert(store, new_ids(1))
    assert tallied(database_url)["pending"] == 1


def test_cost_of_measure_does_not_grow_with_the_table(database_url: str) -> None:
    few, many = (cost_with(database_url, count) for count in (10, 20_000))

    assert many <= few + 5


def cost_with(url: str, count: int) -> int:
    """The pages that `measure` reads, with so many more final tasks."""
    query(
        url,
        """INSERT INTO task (id, status, finished_at, max_attempts, content)
        SELECT gen_random_uuid(), 'completed', now(), 3, 'x' FROM generate_series(1, %s)""",
        count,
    )
    loaded = queries.load("tasks.sql")
    query(url, loaded["fold_tally"])
    query(url, "VACUUM task_tally")
    ((plan,),) = query(url, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {loaded['measure']}")
    top = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
    return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])
