"""The janitor: final tasks past their retention go, in steps, and nothing else does."""

from __future__ import annotations

import pytest

from tasksvc.domain.task import NO_OPTIONS
from tasksvc.duties.janitor import Janitor
from tasksvc.services.cleanup import Cleanup
from tasksvc.store.queue_store import QueueStore
from tasksvc.store.task_store import TaskStore
from tests.harness import query
from tests.integration.conftest import Worker

FILL = """
INSERT INTO task (id, content, max_attempts, status, created_at, updated_at, finished_at)
SELECT (lpad(to_hex((1000 * extract(epoch FROM clock_timestamp() - interval '3 hours'))::bigint),
        12, '0') || lpad(to_hex(n), 20, '0'))::uuid,
    'x', 3, 'completed', at, at, at
FROM generate_series(1, %s) AS n, (SELECT clock_timestamp() - interval '2 hours' AS at) AS long_ago
"""

COUNT = "SELECT count(*) FROM task"


async def test_old_tasks_go_a_thousand_at_a_time(
    store: TaskStore, queue_store: QueueStore, worker: Worker, database_url: str
) -> None:
    query(database_url, FILL, 2500)
    janitor = Janitor(Cleanup(store, queue_store, retention_seconds=3600, key_seconds=3600))

    steps = [await janitor.run_once() for _ in range(4)]

    assert steps == [1000, 1000, 500, 0]
    assert query(database_url, COUNT) == [(0,)]


async def test_young_and_live_tasks_stay(
    store: TaskStore, queue_store: QueueStore, worker: Worker, database_url: str
) -> None:
    query(database_url, FILL, 3)
    await worker.create()
    await worker.work()
    await worker.create()

    assert (
        await Janitor(
            Cleanup(store, queue_store, retention_seconds=3600, key_seconds=3600)
        ).run_once()
        == 3
    )

    assert query(database_url, "SELECT status FROM task ORDER BY id") == [
        ("completed",),
        ("pending",),
    ]


@pytest.mark.parametrize("retention_seconds", [0, 86_400])
async def test_retention_keeps(
    store: TaskStore,
    queue_store: QueueStore,
    worker: Worker,
    database_url: str,
    retention_seconds: float,
) -> None:
    query(database_url, FILL, 3)

    assert (
        await Janitor(
            Cleanup(store, queue_store, retention_seconds=retention_seconds, key_seconds=3600)
        ).run_once()
        == 0
    )

    assert query(database_url, COUNT) == [(3,)]


async def test_tally_is_folded_and_right(
    store: TaskStore, queue_store: QueueStore, worker: Worker, database_url: str
) -> None:
    query(database_url, FILL, 10)
    for _ in range(5):
        await worker.create()
    await worker.work()
    await worker.create()
    janitor = Janitor(Cleanup(store, queue_store, retention_seconds=3600, key_seconds=3600))

    await janitor.run_once()
    await janitor.run_once()

    tally = query(database_url, "SELECT status, tasks FROM task_tally WHERE tasks <> 0")
    counted = query(database_url, "SELECT status, sum(1)::bigint FROM task GROUP BY status")
    folded: dict[str, int] = {}
    for status, tasks in tally:
        folded[status] = folded.get(status, 0) + tasks
    assert folded == dict(counted)
    assert len(query(database_url, "SELECT status FROM task_tally")) <= 10


async def test_old_keys_are_forgotten(
    store: TaskStore, queue_store: QueueStore, worker: Worker, database_url: str
) -> None:
    for key in ("old", "new"):
        await worker.tasks.create("x", None, NO_OPTIONS, key=key, fingerprint="ab")
    query(
        database_url,
        "UPDATE idempotency_key SET created_at = created_at - interval '2 hours' WHERE key = 'old'",
    )

    assert (
        await Janitor(Cleanup(store, queue_store, retention_seconds=0, key_seconds=3600)).run_once()
        == 1
    )

    assert query(database_url, "SELECT key FROM idempotency_key") == [("new",)]


async def test_key_of_a_deleted_task_makes_a_new_one(worker: Worker, database_url: str) -> None:
    await worker.tasks.create("x", key="k", fingerprint="ab")
    query(database_url, "DELETE FROM task")

    again = await worker.tasks.create("y", key="k", fingerprint="cd")
    assert (again.task.content, again.is_new, again.is_replayed) == ("y", True, False)
