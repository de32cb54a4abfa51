"""The store under many hands at the same moment, and every one of its queries."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import uuid_utils

from tasksvc.domain import outcome
from tasksvc.domain.outcome import COMPLETED, RELEASED, RunResult
from tasksvc.domain.task import Filter, Hold, NewTask, Status
from tasksvc.store import database as database_module
from tasksvc.store.database import Database
from tasksvc.store.task_store import Path, TaskStore
from tests.harness import ago, eventually, query

WORKERS = 20


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[TaskStore]]:
    """As many processes would have."""
    stores = [TaskStore(Database(database_url)) for _ in range(WORKERS)]
    yield stores
    for store in stores:
        await store.close()


@contextmanager
def locked(url: str, id: str) -> Iterator[None]:
    """Another session is changing the row."""
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM task WHERE id = %s FOR UPDATE", [id])
        yield
    connection.close()


async def waits_for_lock(url: str) -> None:
    await eventually(lambda: query(url, "SELECT 1 FROM pg_locks WHERE NOT granted"))


async def insert(store: TaskStore, count: int = 1, *, max_attempts: int = 3) -> list[str]:
    ids = [str(uuid_utils.uuid7()) for _ in range(count)]
    await store.insert_tasks([NewTask(id, "x", max_attempts, None, True) for id in ids])
    return ids


async def register(store: TaskStore, lease_seconds: float = 3600) -> str:
    worker_id = str(uuid.uuid4())
    await store.register_worker(worker_id, "w", lease_seconds)
    return worker_id


def row(url: str, id: str) -> dict[str, Any]:
    ((found,),) = query(url, "SELECT to_json(task) FROM task WHERE id = %s", id)
    return found


async def test_claim_has_one_winner(stores: list[TaskStore]) -> None:
    workers = [await register(store) for store in stores]
    ids = await insert(stores[0], 50)
    claims = await asyncio.gather(
        *(
            store.claim_tasks(worker_id, ids[n:] + ids[:n])
            for n, (store, worker_id) in enumerate(zip(stores, workers, strict=True))
        )
    )

    won = [claim for each in claims for claim in each]
    assert sorted(claim.id for claim in won) == ids
    assert {claim.attempt for claim in won} == {1}


async def test_single_task_has_one_winner_over_many_rounds(stores: list[TaskStore]) -> None:
    workers = [await register(store) for store in stores]
    for _ in range(10):
        (id,) = await insert(stores[0])
        claims = await asyncio.gather(
            *(
                store.claim_tasks(worker_id, [id])
                for store, worker_id in zip(stores, workers, strict=True)
            )
        )
        assert sum(map(len, claims)) == 1


async def test_cancel_and_finish_have_one_winner(
    database_url: str, stores: list[TaskStore]
) -> None:
    worker_id = await register(stores[0])
    results: list[Callable[[str], Awaitable[Any]]] = [
        lambda id: stores[0].finish_tasks([RunResult(id, 1, COMPLETED)]),
        lambda id: stores[1].cancel_tasks([id]),
        lambda id: stores[2].rescue_tasks([worker_id], 10),
        lambda id: stores[3].finish_tasks([RunResult(id, 1, outcome.failed({"type": "E"}))]),
        lambda id: stores[4].cancel_tasks([id]),
    ]
    for round in range(40):
        (id,) = await insert(stores[0], max_attempts=1)
        await stores[0].claim_tasks(worker_id, [id])
        order = results[round % 5 :] + results[: round % 5]
        changed = await asyncio.gather(*(result(id) for result in order))

        assert [bool(each) for each in changed].count(True) == 1
        status = row(database_url, id)["status"]
        assert status in ("completed", "canceled", "failed")
        (attempt,) = await stores[0].get_attempts(id, 10)
        assert attempt.outcome == status or (attempt.outcome, status) == ("lost", "failed")
        assert (attempt.worker is None) == (status == "completed")


async def test_claim_skips_what_is_locked(database_url: str, store: TaskStore) -> None:
    worker_id = await register(store)
    locked_id, free_id = await insert(store, 2)
    with locked(database_url, locked_id):
        async with asyncio.timeout(5):
            claims = await store.claim_tasks(worker_id, [locked_id, free_id])

    assert [claim.id for claim in claims] == [free_id]


async def test_retirement_waits_for_a_claim_under_way(
    database_url: str, stores: list[TaskStore]
) -> None:
    """Otherwise the claim could commit after its worker was cleaned up, and be held for ever."""
    store, other = stores[:2]
    worker_id = await register(store)
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM worker WHERE id = %s FOR SHARE", [worker_id])  # a claim
        retiring = asyncio.create_task(other.retire_worker(worker_id))
        await waits_for_lock(database_url)
        assert not retiring.done()
    connection.close()
    await retiring

    assert await store.claim_tasks(worker_id, await insert(store)) == []


async def test_claim_waits_for_a_retirement_under_way(database_url: str, store: TaskStore) -> None:
    worker_id = await register(store)
    ids = await insert(store)
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE worker SET lapsed_at = now() WHERE id = %s", [worker_id])
        claiming = asyncio.create_task(store.claim_tasks(worker_id, ids))
        await waits_for_lock(database_url)
        connection.commit()
    connection.close()

    assert await claiming == []


@pytest.mark.parametrize(
    "change", ["lapsed_at = now()", "epoch = epoch + 1"], ids=["dead", "epoch"]
)
async def test_claim_with_an_older_snapshot_sees_that_its_worker_has_changed(
    database_url: str, store: TaskStore, change: str
) -> None:
    """A lock FOR KEY SHARE would be given on the old row, were it no change of the key."""
    worker_id = await register(store)
    claim = psycopg2.connect(database_url)
    claim.set_session(isolation_level="READ COMMITTED")
    lock = "SELECT id FROM worker WHERE epoch = 0 AND lapsed_at IS NULL"
    with claim.cursor() as cursor:
        # The snapshot is taken before the sleep, and the lock after it.
        claiming = asyncio.create_task(
            asyncio.to_thread(
                cursor.execute,
                f"WITH late AS MATERIALIZED (SELECT pg_sleep(0.5)) {lock}"  # noqa: S608
                " AND (SELECT count(*) FROM late) = 1 FOR KEY SHARE",
            )
        )
        await asyncio.sleep(0.2)
        query(database_url, f"UPDATE worker SET {change} WHERE id = %s", worker_id)  # noqa: S608
        await claiming
        assert cursor.fetchall() == []
    claim.close()


async def test_renewal_waits_for_no_claim(database_url: str, store: TaskStore) -> None:
    """The commit of a claim may wait for a standby for longer than the lease."""
    worker_id = await register(store)
    claim = psycopg2.connect(database_url)
    with claim.cursor() as cursor:
        cursor.execute("SELECT id FROM worker WHERE id = %s FOR KEY SHARE", [worker_id])

        async with asyncio.timeout(2):
            assert await store.renew_lease(worker_id, {}, 60) == (True, [])
    claim.close()


async def test_lease_renewed_at_the_last_moment_is_not_lapsed(
    database_url: str, store: TaskStore
) -> None:
    worker_id = await register(store, lease_seconds=-1)
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE worker SET expires_at = now() + interval '1 hour'")
        lapsing = asyncio.create_task(store.lapse_workers(None))
        await waits_for_lock(database_url)
        connection.commit()
    connection.close()
    workers = await lapsing

    assert (workers.dead, workers.living) == ([], [worker_id])
    assert await store.renew_lease(worker_id, {}, 60) == (True, [])


async def test_groups_in_opposite_orders_do_not_deadlock(
    stores: list[TaskStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_TRIES", 1)  # a deadlock is not run again
    workers = [await register(store) for store in stores[:4]]
    for _ in range(5):
        ids = await insert(stores[0], 100)
        await stores[0].claim_tasks(workers[0], ids[::-1])
        finishes = [RunResult(id, 1, COMPLETED) for id in ids]
        await asyncio.gather(
            stores[0].finish_tasks(finishes),
            stores[1].finish_tasks(finishes[::-1]),
            stores[2].cancel_tasks(ids[::-1]),
            stores[3].release_tasks(workers[0]),
            stores[4].unpublish_tasks(ids[::-1]),
        )

        assert all(task.status != "processing" for task in await stores[0].get_tasks(ids))


async def test_two_relays_publish_each_task_once(stores: list[TaskStore]) -> None:
    ids = await insert(stores[0], 50)
    await stores[0].unpublish_tasks(ids)
    published = await asyncio.gather(*(store.publish_due_tasks(ago(3600), 20) for store in stores))

    told = [id for each in published for id in each.ids]
    assert len(told) == len(set(told))
    while more := (await stores[0].publish_due_tasks(ago(3600), 20)).ids:
        told += more
    assert sorted(told) == ids


async def test_two_rescuers_charge_each_task_once(
    database_url: str, stores: list[TaskStore]
) -> None:
    worker_id = await register(stores[0])
    ids = await insert(stores[0], 30)
    await stores[0].claim_tasks(worker_id, ids)
    rescued = await asyncio.gather(*(store.rescue_tasks([worker_id], 100) for store in stores[:5]))

    assert sorted(id for each in rescued for id, _ in each) == ids
    assert {row(database_url, id)["failures"] for id in ids} == {1}


async def test_poison_task_ends_with_all_its_attempts_charged(
    database_url: str, store: TaskStore
) -> None:
    (id,) = await insert(store, max_attempts=2)
    for _ in range(2):
        worker_id = await register(store)
        await store.claim_tasks(worker_id, [id])
        await store.rescue_tasks([worker_id], 10)

    found = row(database_url, id)
    assert (found["status"], found["failures"], found["attempt"]) == (Status.FAILED, 2, 2)
    assert found["finished_at"] is not None


async def test_row_of_a_whole_life(database_url: str, store: TaskStore) -> None:
    worker_id = await register(store)
    (id,) = await insert(store)
    assert row(database_url, id)["published_at"] is not None
    await store.claim_tasks(worker_id, [id])
    held = row(database_url, id)
    assert (held["worker_id"], held["attempt"], held["finished_at"]) == (worker_id, 1, None)
    await store.finish_tasks([RunResult(id, 1, outcome.retried({"type": "E"}, 100))])
    waiting = row(database_url, id)

    assert (waiting["worker_id"], waiting["published_at"], waiting["failures"]) == (None, None, 1)
    ((delay,),) = query(
        database_url, "SELECT extract(epoch FROM due_at - updated_at)::float8 FROM task"
    )
    assert delay == pytest.approx(100, abs=1)


async def test_lost_and_unpublished_are_distinguished_from_the_backlog(
    database_url: str, store: TaskStore
) -> None:
    lost, young, unpublished, early, again = await insert(store, 5)
    query(
        database_url, "UPDATE task SET published_at = NULL WHERE id IN (%s, %s)", unpublished, early
    )
    query(database_url, "UPDATE task SET due_at = now() + interval '1 hour' WHERE id = %s", early)
    query(
        database_url,
        "UPDATE task SET published_at = now() - interval '1 min', due_at = now() - interval '1 min'"
        " WHERE id = %s",
        lost,
    )
    # It has been due for long, and was published again only just now.
    query(database_url, "UPDATE task SET due_at = now() - interval '1 min' WHERE id = %s", again)
    # It was put off after its publication, and has only just become due.
    query(
        database_url,
        "UPDATE task SET published_at = now() - interval '1 min' WHERE id = %s",
        young,
    )

    assert set((await store.publish_due_tasks(ago(30), 10)).ids) == {lost, unpublished}


async def test_only_what_waits_is_unpublished(database_url: str, store: TaskStore) -> None:
    worker_id = await register(store)
    running, final, waiting = ids = await insert(store, 3)
    await store.claim_tasks(worker_id, [running])
    await store.cancel_tasks([final])
    await store.unpublish_tasks(ids)

    assert row(database_url, running)["published_at"] is not None
    assert row(database_url, final)["published_at"] is not None
    assert row(database_url, waiting)["published_at"] is None


async def test_each_method_has_a_query_and_each_query_a_method(store: TaskStore) -> None:
    """Whether each is also run on a real PostgreSQL is for the planner's tests."""
    asked: dict[str, set[str]] = {}

    async def run(session: str, query: str, **parameters: Any) -> Any:
        asked.setdefault(query, set()).add(method)
        wanted = set(re.findall(r"%\((\w+)\)s", store._queries[query]))
        assert parameters.keys() == wanted
        assert session in store._sessions
        three = ("lapse_workers", "publish_due_tasks", "find_tasks", "measure")
        width = 3 if query in three else int(query == "get_secret")
        return [({},) * width] if width else []

    store._run = run  # type: ignore[method-assign]
    calls: dict[str, tuple[Any, ...]] = {
        "insert_tasks": ([],),
        "insert_held_tasks": ([], Hold("w", frozenset())),
        "insert_tasks_with_options": ([],),
        "find_keyed_tasks": ([],),
        "forget_orphaned_keys": ([],),
        "find_tasks": (Path.ALL, Filter(), "b", "a", 1, 1),
        "weigh_tasks": ([],),
        "forget_keys": (1, 1),
        "unpublish_tasks": ([],),
        "publish_due_tasks": (0, 1),
        "find_due_tasks": (1,),
        "unpublish_refused_tasks": ("w", []),
        "keep_progress": ([],),
        "find_kinds": ([],),
        "fail_unreadable_tasks": ("w", []),
        "get_secret": (),
        "forget_kinds": (1,),
        "claim_tasks": ("w", []),
        "complete_tasks": ([],),
        "finish_tasks": ([RunResult("a", 1, RELEASED)],),
        "find_finished_tasks": ([],),
        "release_tasks": ("w",),
        "begin_epoch": ("w", 1),
        "cancel_tasks": ([],),
        "rescue_tasks": ([], 1),
        "delete_finished_tasks": (0, 1),
        "get_tasks": ([],),
        "get_attempts": ("a", 1),
        "register_worker": ("w", "n", 1),
        "renew_lease": ("w", {}, 1),
        "find_lost_tasks": ("w", {}),
        "lapse_workers": ("w",),
        "retire_worker": ("w",),
        "forget_workers": ([],),
        "measure": (),
        "fold_tally": (),
        "find_lanes": (),
        "ping": (),
    }
    for method, arguments in calls.items():
        await getattr(store, method)(*arguments)
    method = "retry_tasks"
    await store.retry_tasks({"a": "b"}, is_published=True, is_again=True)
    calls[method] = ()

    assert asked == {name: {name} for name in store._queries}
    methods = {name for name in vars(TaskStore) if not name.startswith("_")}
    assert methods - {"close", "up_seconds", "claims_run_again"} == calls.keys()
