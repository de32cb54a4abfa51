"""Every statement finds its rows by an index, in a young table that was never analyzed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uuid_utils

from tasksvc.domain.outcome import COMPLETED, RELEASED, RunResult
from tasksvc.domain.task import DEFAULT_LANE, Filter, Hold, NewTask, Options, Progress, Status
from tasksvc.store import queries
from tasksvc.store.arrays import plain_array
from tasksvc.store.database import Database, Row
from tasksvc.store.documents import documents
from tasksvc.store.task_store import Path, TaskStore
from tests.harness import ago, eventually, query

pytestmark = pytest.mark.slow

FINISHED = 50_000

# Each id begins with the time at which its task was created, as the service makes them.
FILL = """
INSERT INTO task (id, created_at, due_at, published_at, finished_at, status, max_attempts, content)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
        || substr(md5(n::text), 1, 19))::uuid, at, at, at, at, 'completed', 3, 'x'
FROM generate_series(1, %s) AS n, LATERAL (
    SELECT clock_timestamp() - %s * interval '1 day' - n * interval '1 ms' AS at) AS moment
"""


class ExplainingStore(TaskStore):
    """Keeps the plan of everything that it runs, with the session's own settings."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.plans: dict[str, str] = {}

    async def _run(self, session: str, query: str, **parameters: Any) -> list[Row]:
        rows = await super()._run(session, query, **parameters)
        explain = "EXPLAIN " + self._prepared[query].execute
        plan = await self._sessions[session].run(explain, parameters)
        self.plans[query] = "\n".join(line for (line,) in plan)
        return rows

    async def pages(self, query: str, *, is_planned: bool = False, **parameters: Any) -> int:
        """How many pages the statement reads; with the plan that it has, or a new one."""
        statement = self._prepared[query].execute if is_planned else self._queries[query]
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {statement}"
        ((plan,),) = await self._sessions["duty"].run(explain, parameters)
        top = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
        return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[ExplainingStore]:
    query(database_url, "ALTER TABLE task SET (autovacuum_enabled = off)")
    store = ExplainingStore(Database(database_url))
    yield store
    await store.close()


async def live(store: TaskStore) -> None:
    """Everything that a store can do, with some tasks that are live."""
    worker_id = str(uuid.uuid4())
    ids = [str(uuid_utils.uuid7()) for _ in range(200)]
    await store.register_worker(worker_id, "w", 60)
    await store.insert_tasks([NewTask(id, "x", 3, None, True) for id in ids])
    hold = Hold(worker_id, frozenset(str(uuid_utils.uuid7()) for _ in range(200)))
    await store.insert_held_tasks([NewTask(id, "x", 3, None, True) for id in hold.ids], hold)
    expires_at = datetime.now(UTC) + timedelta(seconds=0.01)
    options = Options(timeout_seconds=1, expires_at=expires_at)
    await store.insert_tasks_with_options(
        [NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, options) for _ in range(200)]
    )
    keyed = [
        NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, key=f"{n}", fingerprint="ab")
        for n in range(200)
    ]
    await store.insert_tasks_with_options(
        keyed, Hold(worker_id, frozenset(each.id for each in keyed))
    )
    unique = Options(unique_key="u")
    await store.insert_tasks_with_options(
        [NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, unique) for _ in range(2)]
    )
    await store.find_keyed_tasks(["1", "2"])
    await store.forget_orphaned_keys(["1", "2"])
    await store.forget_keys(60, 100)
    await store.unpublish_tasks(ids[:20])
    await store.find_lanes()
    await store.publish_due_tasks(ago(60), 100)
    await store.find_due_tasks(10)
    await store.claim_tasks(worker_id, ids[:100])
    await store.fail_unreadable_tasks(worker_id, ids[190:])
    await store.unpublish_refused_tasks(worker_id, ids[100:150])
    await store.keep_progress([Progress(id, 1, 0.5, "half") for id in ids[:50]])
    await store.find_kinds(["default"])
    await store.forget_kinds(60)
    finishes = [RunResult(id, 1, COMPLETED if id < ids[40] else RELEASED) for id in ids[:50]]
    await store.finish_tasks(finishes)
    await store.find_finished_tasks(finishes)
    await store.cancel_tasks(ids[50:55])
    await store.begin_epoch(worker_id, 0)
    await store.renew_lease(worker_id, dict.fromkeys(ids, 1), 60)
    await store.release_tasks(worker_id, ids[60:100])
    await store.lapse_workers(None)
    await store.rescue_tasks([worker_id], 100)
    await store.get_tasks(ids)
    await store.get_secret()
    await store.get_attempts(ids[0], 10)
    new_ids = {id: str(uuid_utils.uuid7()) for id in ids[:10]}
    await store.retry_tasks(new_ids, is_published=True, is_again=True)
    await store.weigh_tasks(ids)
    for path in Path:
        await store.find_tasks(path, Filter((Status.COMPLETED,)), max(ids), min(ids), 100, 10)
    await store.delete_finished_tasks(60, 100)
    await store.measure()
    await store.fold_tally()
    await store.retire_worker(worker_id)
    await store.forget_workers([worker_id])
    await store.ping()


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_no_statement_reads_the_whole_table(
    database_url: str, store: ExplainingStore, is_analyzed: bool
) -> None:
    query(database_url, FILL, FINISHED, 0)
    if is_analyzed:
        query(database_url, "ANALYZE task")
    await live(store)

    assert store.plans.keys() == queries.load("tasks.sql").keys()
    tally = r"Seq Scan on task_tally.*\n\s*(Filter.*\n\s*)?Disabled: true"
    scanning = {
        name: plan
        for name, plan in store.plans.items()
        if re.search(
            r"Seq Scan on (task|attempt)\b(?!_)|Disabled: true|Hash Join|Merge Join",
            re.sub(tally, "", plan),
        )
        and name not in ("measure", "fold_tally", "lapse_workers", "find_kinds", "ping")
    }
    assert not scanning, "\n\n".join(f"{name}\n{plan}" for name, plan in scanning.items())
    assert not re.search(r"Seq Scan on task\b(?!_)", store.plans["measure"])


@pytest.mark.parametrize("content", ["", "x" * 100, "x" * 1000])
async def test_claims_stay_on_their_page(database_url: str, store: TaskStore, content: str) -> None:
    """A claim that changed an indexed column, or had to move, would write into an index. All of a
    page are claimed at once here: none can take the place that another leaves."""
    worker_id = str(uuid.uuid4())
    ids = [str(uuid_utils.uuid7()) for _ in range(500)]
    await store.register_worker(worker_id, "w", 60)
    await store.insert_tasks([NewTask(id, content, 3, None, True) for id in ids])
    await store.claim_tasks(worker_id, ids)
    await store.close()  # a session reports its numbers when it ends

    def updates() -> tuple[int, int] | None:
        statement = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s"
        ((updated, hot),) = query(database_url, statement, "task")
        return (updated, hot) if updated else None

    assert await eventually(updates) == (500, 500)


async def test_nothing_old_enough_to_delete_costs_nothing(
    database_url: str, store: ExplainingStore
) -> None:
    query(database_url, FILL, FINISHED, 1)

    for seconds in (7 * 86400.0, 1e10):
        step = {"retention_seconds": seconds, "limit": 1000}
        assert await store.pages("delete_finished_tasks", **step) < 20


@pytest.mark.parametrize(("hours_fast", "is_deleted"), [(-24, True), (0.9, True), (1.1, False)])
async def test_clock_that_made_an_id_may_be_an_hour_fast(
    database_url: str, store: TaskStore, hours_fast: float, is_deleted: bool
) -> None:
    query(database_url, FILL, 1, 3)
    query(
        database_url,
        """INSERT INTO task (id, finished_at, status, max_attempts, content)
        SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
            || '70008000000000000000')::uuid,
            clock_timestamp() - interval '2 days', 'completed', 3, 'x'
        FROM (
            SELECT clock_timestamp() - interval '2 days' + %s * interval '1 hour' AS at
        ) AS moment""",
        hours_fast,
    )

    assert await store.delete_finished_tasks(2 * 86400.0, 10) == 1 + is_deleted


WAITING = """
INSERT INTO task (id, due_at, queue, published_at, max_attempts, content)
SELECT (lpad(to_hex((1000 * extract(epoch FROM clock_timestamp()))::bigint), 12, '0') || '7'
        || substr(md5(%s || n), 1, 19))::uuid,
    clock_timestamp() + %s * interval '1 s', %s, %s, 3, 'x'
FROM generate_series(1, 50000) AS n
"""


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_what_waits_long_costs_the_relay_nothing(
    database_url: str, store: ExplainingStore, is_analyzed: bool
) -> None:
    """Neither tasks that are not due for long, nor those of a paused queue, nor those that wait in
    the stream; whenever the statements were planned: before there was a task, or with statistics of
    a moment at which all were final, or now."""
    if is_analyzed:
        query(database_url, FILL, FINISHED, 0)
        query(database_url, "VACUUM ANALYZE task")
    worker_id = str(uuid.uuid4())
    await store.register_worker(worker_id, "w", 60)
    task = NewTask(str(uuid_utils.uuid7()), "x", 3, None, True)
    calls: dict[str, dict[str, Any]] = {
        "find_lanes": {},
        "claim_tasks": {"worker_id": worker_id, "ids": plain_array([task.id]), "epoch": 0},
        "publish_due_tasks": {"lost_after_seconds": 3600, "limit": 1000, **DEFAULT_LANE._asdict()},
        "find_due_tasks": {"limit": 100, "kinds": "{default}"},
        "measure": {},
    }
    for query_name, parameters in calls.items():
        await store._run("duty", query_name, **parameters)
    query(database_url, WAITING, "later", 3600, "", None)
    query(database_url, WAITING, "paused", 0, "mail", None)
    query(database_url, WAITING, "streamed", 0, "", datetime.now(UTC))
    query(database_url, "UPDATE queue SET is_paused = true")
    await store.insert_tasks([task])

    for query_name, parameters in calls.items():
        assert await store.pages(query_name, **parameters) < 200, query_name
        assert await store.pages(query_name, is_planned=True, **parameters) < 200, query_name
    query(database_url, "ANALYZE task")
    for query_name, parameters in calls.items():
        assert await store.pages(query_name, **parameters) < 200, query_name


KEYED = """
INSERT INTO task (id, unique_key, max_attempts, content)
SELECT gen_random_uuid(), 'key-' || n, 3, 'x' FROM generate_series(1, 20000) AS n
"""


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_unique_key_is_looked_up_whatever_the_planner_believes(
    database_url: str, store: ExplainingStore, is_analyzed: bool
) -> None:
    """A young table has no statistics, and all of its tasks may be live and have keys. Statistics
    may be of a moment at which none was."""
    if is_analyzed:
        query(database_url, FILL, FINISHED, 0)
        query(database_url, "VACUUM ANALYZE task")
    query(database_url, KEYED)
    taken = NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, Options(unique_key="key-7"))
    plain = NewTask(str(uuid_utils.uuid7()), "x", 3, None, True, Options(max_attempts=5))
    tasks = documents([taken, plain])

    worker = {"worker_id": None, "epoch": None}
    assert await store.pages("insert_tasks_with_options", tasks=tasks, **worker) < 100


RARE = """
INSERT INTO task (id, created_at, due_at, finished_at, canceled_at, error, status, kind, queue,
    worker_id, attempt, max_attempts, content)
SELECT (lpad(to_hex(n), 12, '0') || '70008000000000000000')::uuid, at, at,
    CASE WHEN status IN ('failed', 'canceled') THEN at END,
    CASE WHEN status = 'canceled' THEN at END, CASE WHEN status = 'failed' THEN '{}'::jsonb END,
    status::task_status, kind, queue, CASE WHEN status = 'processing' THEN gen_random_uuid() END,
    1, 3, 'x'
FROM (VALUES (1, 'failed', 'default', ''), (2, 'canceled', 'default', ''),
             (3, 'pending', 'rare', ''), (4, 'pending', 'default', 'rare'),
             (5, 'processing', 'default', '')) AS task (n, status, kind, queue),
    LATERAL (SELECT clock_timestamp() - interval '9 days' AS at) AS moment
"""

RARELY = {
    Path.FAILED: Filter((Status.FAILED,)),
    Path.CANCELED: Filter((Status.CANCELED,)),
    Path.KIND: Filter(kind="rare"),
    Path.QUEUE: Filter(queue="rare"),
    Path.LIVE: Filter((Status.PENDING,)),
    Path.PROCESSING: Filter((Status.PROCESSING,)),
}


def looked(path: Path, filter: Filter) -> dict[str, Any]:
    ids = {"before": "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12, "floor": str(uuid.UUID(int=0))}
    statuses = {"statuses": plain_array(filter.statuses)}
    return {"path": path, **ids, "window": 1000, "limit": 21, **filter._asdict(), **statuses}


@pytest.mark.parametrize("is_common", [False, True])
@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_rare_tasks_are_found_behind_any_number_of_others(
    database_url: str, store: ExplainingStore, is_analyzed: bool, is_common: bool
) -> None:
    """Whenever the statement was planned: before there was a task, or with statistics of a moment
    at which nothing was rare. Either no task has a kind and a queue, or all the others have."""
    if is_analyzed:
        query(database_url, FILL, 1000, 5)
        if is_common:
            query(database_url, "UPDATE task SET kind = 'common', queue = 'common'")
        query(database_url, "VACUUM ANALYZE task")
    await store._run("duty", "find_tasks", **looked(Path.ALL, Filter()))
    query(database_url, RARE)
    query(database_url, FILL, FINISHED, 0)
    if is_common:
        query(
            database_url,
            "UPDATE task SET kind = 'common', queue = 'common' WHERE content = 'x'"
            " AND status = 'completed'",
        )

    for path, filter in RARELY.items():
        found = looked(path, filter)
        assert await store.pages("find_tasks", is_planned=True, **found) < 100, path
        assert await store.pages("find_tasks", **found) < 100, path
    query(database_url, "ANALYZE task")
    for path, filter in RARELY.items():
        assert await store.pages("find_tasks", **looked(path, filter)) < 100, path


NAMES = """
INSERT INTO task (id, due_at, queue, published_at, max_attempts, content)
SELECT (lpad(to_hex((1000 * extract(epoch FROM clock_timestamp()))::bigint), 12, '0') || '7'
        || substr(md5('names' || n), 1, 19))::uuid,
    clock_timestamp() + %s * interval '1 s', 'q' || n, %s, 3, 'x'
FROM generate_series(1, 20000) AS n
"""


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("seconds", [-60, 3600])
async def test_names_of_queues_cost_the_relay_nothing(
    database_url: str, store: ExplainingStore, seconds: float, is_published: bool
) -> None:
    """However many there are, whether their tasks are due or not."""
    calls: dict[str, dict[str, Any]] = {
        "find_lanes": {},
        "publish_due_tasks": {"lost_after_seconds": 3600, "limit": 10, **DEFAULT_LANE._asdict()},
        "find_due_tasks": {"limit": 10, "kinds": "{default}"},
    }
    for query_name, parameters in calls.items():
        await store._run("duty", query_name, **parameters)
    query(database_url, NAMES, seconds, datetime.now(UTC) if is_published else None)

    for query_name, parameters in calls.items():
        pages = await store.pages(query_name, is_planned=True, **parameters)
        assert pages < 2000, query_name  # each queue's room is looked up, of the first ones
    query(database_url, "ANALYZE task")
    for query_name, parameters in calls.items():
        assert await store.pages(query_name, **parameters) < 2000, query_name
