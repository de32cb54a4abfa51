"""One live task for a unique key."""

from __future__ import annotations

from typing import Any

import pytest

from tasksvc.domain.outcome import COMPLETED
from tasksvc.domain.task import IdempotencyRecord, NewTask, Status, Task
from tasksvc.store.task_store import TaskStore
from tests.contract.test_steps import retry
from tests.contract.test_task_store import claim, finish, get, new_id, register, with_options
from tests.contract.test_task_store import failure as failed


def unique(unique_key: str = "u", key: str | None = None, **options: Any) -> NewTask:
    fingerprint = None if key is None else "ab"
    return with_options(unique_key=unique_key, **options)._replace(key=key, fingerprint=fingerprint)


async def make(store: TaskStore, task: NewTask) -> Task:
    made, _, live_ids = await store.insert_tasks_with_options([task])
    assert ([each.id for each in made], live_ids) == ([task.id], {})
    return made[0]


async def end(store: TaskStore, id: str, status: Status) -> None:
    if status is Status.CANCELED:
        await store.cancel_tasks([id])
        return
    attempt = (await claim(store, await register(store), id)).attempt
    await finish(store, id, attempt, COMPLETED if status is Status.COMPLETED else failed())


async def test_task_shows_its_key(store: TaskStore) -> None:
    made = await make(store, unique('odd "{key}, \\'))

    assert made.unique_key == 'odd "{key}, \\'
    assert await get(store, made.id) == made
    (canceled,) = await store.cancel_tasks([made.id])
    assert canceled.task.unique_key == made.unique_key


async def test_live_task_stands_for_all_others_with_its_key(store: TaskStore) -> None:
    first = await make(store, unique())
    other, more = unique("other"), [unique(), unique()]

    made, _, live_ids = await store.insert_tasks_with_options([more[0], other, more[1]])

    assert [task.id for task in made] == [other.id]
    assert live_ids == {task.id: first.id for task in more}
    assert await store.get_tasks([task.id for task in more]) == []


async def test_running_task_stands_for_others_too(store: TaskStore) -> None:
    first, second = await make(store, unique()), unique()
    await claim(store, await register(store), first.id)

    assert await store.insert_tasks_with_options([second]) == ([], [], {second.id: first.id})


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
async def test_final_task_leaves_its_key_to_another(store: TaskStore, status: Status) -> None:
    first = await make(store, unique())
    await end(store, first.id, status)

    second = await make(store, unique())

    assert (await get(store, first.id)).unique_key == (await get(store, second.id)).unique_key


async def test_of_two_in_one_group_the_first_is_made(store: TaskStore) -> None:
    tasks = [unique(), unique()]

    made, _, live_ids = await store.insert_tasks_with_options(tasks)

    assert [task.id for task in made] == [tasks[0].id]
    assert live_ids == {}


async def test_second_try_finds_the_task_of_the_first(store: TaskStore) -> None:
    task = unique()
    await make(store, task)

    assert await store.insert_tasks_with_options([task]) == ([], [], {task.id: task.id})


async def test_idempotency_key_remembers_the_live_task(store: TaskStore) -> None:
    first, second, third = await make(store, unique()), unique(key="k"), unique(key="k")

    assert await store.insert_tasks_with_options([second]) == ([], [], {second.id: first.id})
    assert await store.find_keyed_tasks(["k"]) == [
        IdempotencyRecord("k", "ab", first, is_new=False)
    ]
    await end(store, first.id, Status.COMPLETED)
    assert await store.insert_tasks_with_options([third]) == ([], [], {})
    ((_, _, task, _),) = await store.find_keyed_tasks(["k"])
    assert (task.id, task.status) == (first.id, Status.COMPLETED)


async def test_key_that_was_used_takes_no_unique_key(store: TaskStore) -> None:
    first = await make(store, unique("one", key="k"))

    assert await store.insert_tasks_with_options([unique("two", key="k")]) == ([], [], {})
    await make(store, unique("two"))
    assert await store.find_keyed_tasks(["k"]) == [IdempotencyRecord("k", "ab", first)]


async def test_key_of_a_create_that_lost_is_orphaned_and_can_be_forgotten(store: TaskStore) -> None:
    first, second = unique(key="first"), unique(key="second")
    made, _, live_ids = await store.insert_tasks_with_options([first, second])
    assert ([task.id for task in made], live_ids) == ([first.id], {})

    await store.forget_orphaned_keys(["first", "second", "third"])

    assert await store.find_keyed_tasks(["first", "second"]) == [
        IdempotencyRecord("first", "ab", made[0])
    ]
    assert await store.insert_tasks_with_options([first, second]) == ([], [], {second.id: first.id})
    keyed = await store.find_keyed_tasks(["second"])
    assert keyed == [IdempotencyRecord("second", "ab", made[0], is_new=False)]


async def test_retry_waits_for_its_unique_key(store: TaskStore) -> None:
    old = await make(store, unique())
    await end(store, old.id, Status.FAILED)
    other = await make(store, unique())

    new = new_id()
    assert await retry(store, {old.id: new}) == {old.id: False}
    assert (await get(store, old.id)).retried_as is None
    await end(store, other.id, Status.CANCELED)
    assert await retry(store, {old.id: new}) == {old.id: True}
    assert (await get(store, new)).unique_key == "u"


async def test_of_two_retries_with_one_unique_key_one_is_made(store: TaskStore) -> None:
    ids = []
    for _ in range(2):
        task = await make(store, unique())
        await end(store, task.id, Status.FAILED)
        ids.append(task.id)

    made = await retry(store, {id: new_id() for id in ids})

    assert sorted(made) == sorted(ids)
    assert sorted(made.values()) == [False, True]
