"""One live task for a unique key, however many creates race for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from tasksvc.domain.errors import (
    IdempotencyKeyConflict,
    StoreUnavailable,
    TaskIsFinal,
    TaskIsNotFinal,
    UniqueKeyTaken,
)
from tasksvc.domain.task import CreateResult, Options, Status
from tasksvc.embedded import EmbeddedPostgres
from tasksvc.metrics import Metrics
from tasksvc.services.tasks import TaskService
from tasksvc.store.database import Database
from tasksvc.store.task_store import Inserted, TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually, query
from tests.services import Services

UNIQUE = Options(unique_key="u")

OTHER = "00000000-0000-7000-8000-000000000000"

WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.fixture
async def processes(
    database_url: str, stream: TaskStream, metrics: Metrics
) -> AsyncIterator[list[TaskService]]:
    """Services with connections of their own."""
    stores = [TaskStore(Database(database_url)) for _ in range(4)]
    services = [Services.over(store, stream, metrics).tasks for store in stores]
    yield services
    for service, store in zip(services, stores, strict=True):
        await service.flush()
        await store.close()


@contextmanager
def other_create(database_url: str) -> Iterator[Callable[[str], Any]]:
    """Another create with the unique key is under way; it ends with the statement."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO task (id, content, max_attempts, unique_key) VALUES (%s, '', 1, 'u')",
                [OTHER],
            )
            yield cursor.execute
    finally:
        connection.close()


async def waits(database_url: str) -> None:
    await eventually(lambda: query(database_url, WAITING) == [(1,)])


def create(service: TaskService, key: str | None = None) -> asyncio.Future[CreateResult]:
    fingerprint = None if key is None else "ab"
    creating = service.create("x", None, UNIQUE, key=key, fingerprint=fingerprint)
    return asyncio.ensure_future(creating)


@pytest.mark.parametrize("key", [None, "k"])
async def test_create_that_loses_a_race_gets_the_task_of_the_winner(
    task_service: TaskService, database_url: str, key: str | None
) -> None:
    with other_create(database_url) as execute:
        creating = create(task_service, key)
        await waits(database_url)
        execute("COMMIT")

    task, is_replayed, is_new = await creating

    assert (task.id, is_replayed, is_new) == (OTHER, False, False)
    assert query(database_url, "SELECT count(*) FROM task") == [(1,)]
    if key is not None:
        await task_service.cancel(OTHER)
        again = await create(task_service, key)
        assert (again.task.id, again.task.status) == (OTHER, Status.CANCELED)
        assert (again.is_replayed, again.is_new) == (True, False)


@pytest.mark.parametrize("key", [None, "k"])
async def test_create_that_waited_for_one_which_failed_makes_its_own(
    task_service: TaskService, database_url: str, key: str | None
) -> None:
    with other_create(database_url) as execute:
        creating = create(task_service, key)
        await waits(database_url)
        execute("ROLLBACK")

    created = await creating

    assert created.is_new
    assert created.task.id != OTHER


@pytest.mark.parametrize("key", [None, "k"])
async def test_create_that_lost_to_a_task_which_is_final_by_now_makes_its_own(
    task_service: TaskService, database_url: str, key: str | None
) -> None:
    with other_create(database_url) as execute:
        creating = create(task_service, key)
        await waits(database_url)
        execute("UPDATE task SET status = 'canceled', finished_at = clock_timestamp()")
        execute("COMMIT")

    created = await creating

    assert created.is_new
    assert created.task.id != OTHER
    assert query(database_url, "SELECT count(*) FROM task") == [(2,)]


async def test_creates_in_many_processes_make_one_task(
    processes: list[TaskService], database_url: str
) -> None:
    created = await asyncio.gather(
        *(create(service, f"{number}") for number, service in enumerate(processes * 2)),
        *(create(service) for service in processes * 5),
    )

    assert len({each.task.id for each in created}) == 1
    assert sum(each.is_new for each in created) == 1
    assert query(database_url, "SELECT count(DISTINCT task_id) FROM idempotency_key") == [(1,)]


async def test_creates_that_race_with_ends_all_get_a_task(
    processes: list[TaskService], database_url: str
) -> None:
    async def live(service: TaskService, number: int) -> list[CreateResult]:
        results = []
        for step in range(20):
            results.append(await create(service, f"{number}-{step}" if step % 2 else None))
            with suppress(TaskIsFinal):
                await service.cancel(results[-1].task.id)
        return results

    lives = await asyncio.gather(
        *(live(service, number) for number, service in enumerate(processes * 2))
    )

    created = [each for results in lives for each in results]
    assert {each.task.unique_key for each in created} == {"u"}
    new = {each.task.id for each in created if each.is_new}
    assert query(database_url, "SELECT count(*) FROM task") == [(len(new),)]
    assert {each.task.id for each in created} == new
    keyed = query(
        database_url, "SELECT count(*) FROM idempotency_key JOIN task ON task.id = task_id"
    )
    assert keyed == query(database_url, "SELECT count(*) FROM idempotency_key") == [(80,)]


async def test_groups_with_keys_in_any_order_do_not_block_each_other(
    processes: list[TaskService],
) -> None:
    orders = [("x", Options(unique_key=f"{number}")) for number in range(50)]

    one, other = await asyncio.gather(
        processes[0].create_many(orders), processes[1].create_many(orders[::-1])
    )

    assert [task.id for task in one] == [task.id for task in other[::-1]]


async def test_create_that_always_loses_gets_503(
    task_service: TaskService, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(tasks: Any, hold: Any) -> Inserted:
        return Inserted([], [], {})

    with monkeypatch.context() as patch:
        patch.setattr(store, "insert_tasks_with_options", lose)
        with pytest.raises(StoreUnavailable):
            await create(task_service)
        with pytest.raises(StoreUnavailable):
            await task_service.create_many([("x", UNIQUE)])

    assert (await create(task_service)).is_new


@pytest.mark.parametrize("key", [None, "k"])
async def test_answer_to_a_create_that_was_lost_is_found_by_the_second_try(
    task_service: TaskService,
    store: TaskStore,
    key: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    insert, tries = store.insert_tasks_with_options, []

    async def insert_twice(*args: Any) -> Any:
        tries.append(await insert(*args))
        return await insert(*args)

    monkeypatch.setattr(store, "insert_tasks_with_options", insert_twice)

    created = await create(task_service, key)
    assert (created.is_new, created.is_replayed) == (True, False)
    assert len(tries) == 1


async def test_key_of_another_request_is_refused_though_the_unique_key_is_the_same(
    task_service: TaskService,
) -> None:
    await create(task_service, "k")

    with pytest.raises(IdempotencyKeyConflict):
        await task_service.create("y", None, UNIQUE, key="k", fingerprint="cd")


async def test_retry_keeps_the_unique_key_and_waits_for_it(task_service: TaskService) -> None:
    old = (await create(task_service)).task
    with pytest.raises(TaskIsNotFinal):
        await task_service.retry(old.id)
    await task_service.cancel(old.id)
    other = (await create(task_service)).task

    with pytest.raises(UniqueKeyTaken):
        await task_service.retry(old.id)
    await task_service.cancel(other.id)

    new = await task_service.retry(old.id)
    assert (new.unique_key, new.retry_of) == ("u", old.id)
    assert (await create(task_service)).task.id == new.id


async def test_key_that_is_taken_leaves_no_content_in_the_log(
    task_service: TaskService, postgres: EmbeddedPostgres
) -> None:
    canary = f"canary-{uuid4()}"
    for key in (None, "k", "k"):
        for _ in range(2):
            await task_service.create(canary, None, UNIQUE, key=key, fingerprint="ab")
    query(postgres.url, "DO $$ BEGIN RAISE LOG 'after the creates'; END $$")

    await eventually(lambda: "after the creates" in postgres.log.path.read_text())
    assert canary not in postgres.log.path.read_text()
