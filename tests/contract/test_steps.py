"""Many tasks found, canceled and retried at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from tasksvc.domain.task import Filter, Priority, Status
from tasksvc.services.search import paths
from tasksvc.store.task_store import TaskStore
from tests.contract.test_task_store import (
    claim,
    finished,
    get,
    insert,
    new_id,
    register,
    soon,
    with_options,
)

FIRST, LAST = "0" * 8 + "-0000-0000-0000-" + "0" * 12, "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12


async def find(store: TaskStore, filter: Filter) -> list[str]:
    """The same along each path that meets them."""
    found = [
        await store.find_tasks(path, filter, LAST, FIRST, 1000, 1000) for path in paths(filter)
    ]
    assert {each.is_last for each in found} == {True}
    ids = [list(each.ids) for each in found]
    assert all(each == ids[0] for each in ids)
    return ids[0]


async def retry(
    store: TaskStore, new_ids: Mapping[str, str], *, is_again: bool = False
) -> dict[str, bool]:
    """Of which of them another was made, or not."""
    made = await store.retry_tasks(new_ids, is_published=True, is_again=is_again)
    return {id: lane is not None for id, lane in made.items()}


class TestFind:
    async def test_by_one_of_several_statuses(self, store: TaskStore) -> None:
        waiting, running = await insert(store, 2)
        await claim(store, await register(store), running)
        done = await finished(store, Status.COMPLETED)

        assert await find(store, Filter()) == [done, running, waiting]
        assert await find(store, Filter((Status.PENDING,))) == [waiting]
        live = Filter((Status.PENDING, Status.PROCESSING))
        assert await find(store, live) == [running, waiting]

    async def test_between_two_moments(self, store: TaskStore) -> None:
        ids = [(await insert(store))[0] for _ in range(3)]
        moments = [(await get(store, id)).created_at for id in ids]

        assert await find(store, Filter(created_before=moments[1])) == ids[:1]
        assert await find(store, Filter(created_after=moments[1])) == ids[2:]
        later = moments[1] + timedelta(microseconds=1)
        between = Filter(created_after=moments[0], created_before=later)
        assert await find(store, between) == ids[1:2]

    async def test_only_those_of_which_no_other_was_made(self, store: TaskStore) -> None:
        retried, left = [await finished(store, Status.FAILED) for _ in range(2)]
        await retry(store, {retried: new_id()})

        assert await find(store, Filter((Status.FAILED,), is_unretried=True)) == [left]


class TestCancel:
    async def test_of_one_status(self, store: TaskStore) -> None:
        waiting, running = ids = await insert(store, 2)
        await claim(store, await register(store), running)

        canceled = await store.cancel_tasks(ids, [Status.PENDING], with_contents=False)

        assert [(each.task.id, each.task.content) for each in canceled] == [(waiting, "")]
        assert (await get(store, waiting)).content == "x"
        assert (await get(store, running)).status is Status.PROCESSING

    @pytest.mark.parametrize("statuses", [[], list(Status)])
    async def test_final_tasks_stay_whatever_is_asked_for(
        self, store: TaskStore, statuses: list[Status]
    ) -> None:
        id = await finished(store, Status.COMPLETED)

        assert await store.cancel_tasks([id], statuses) == []
        assert (await get(store, id)).status is Status.COMPLETED


class TestRetry:
    async def test_keeps_what_a_task_was_created_with(self, store: TaskStore) -> None:
        task = with_options(
            kind="greet",
            timeout_seconds=1.5,
            unique_key="u",
            retry_base_seconds=2.5,
            retry_max_seconds=3.5,
        )._replace(content="hello", max_attempts=7, traceparent="00-a-b-01")
        await store.insert_tasks_with_options([task])
        worker_id = new_id()
        await store.register_worker(worker_id, "host:1", 60.0, {"greet": None})
        first = await claim(store, worker_id, task.id)
        await store.cancel_tasks([task.id])

        new = new_id()
        assert await retry(store, {task.id: new}) == {task.id: True}

        assert (await get(store, new)).retry_of == task.id
        assert (await get(store, task.id)).retried_as == new
        second = await claim(store, worker_id, new)
        waited = {"waited_seconds": 0.0}
        assert second._replace(**waited) == first._replace(id=new, **waited)
        assert (second.retry_base_seconds, second.retry_max_seconds) == (2.5, 3.5)

    async def test_tells_the_lanes(self, store: TaskStore) -> None:
        tasks = [with_options(priority=Priority.HIGH), with_options(kind="greet")]
        await store.insert_tasks_with_options(tasks)
        await store.cancel_tasks([task.id for task in tasks])

        new_ids = {task.id: new_id() for task in tasks}
        made = await store.retry_tasks(new_ids, is_published=True, is_again=False)

        assert made == {task.id: task.options.lane for task in tasks}

    async def test_each_of_many(self, store: TaskStore) -> None:
        final = [await finished(store, status) for status in list(Status)[2:]]
        (waiting,) = await insert(store)
        new_ids = {id: new_id() for id in [*final, waiting, new_id()]}

        assert await retry(store, new_ids) == dict.fromkeys(final, True)
        for id in final:
            assert (await get(store, new_ids[id])).status is Status.PENDING

    async def test_second_try_makes_nothing_and_says_the_same(self, store: TaskStore) -> None:
        new_ids = {await finished(store, Status.FAILED): new_id()}
        await retry(store, new_ids)

        assert set((await retry(store, new_ids)).values()) == {True}
        assert set((await retry(store, new_ids, is_again=True)).values()) == {True}
        assert len(await find(store, Filter())) == 2

    async def test_once_unless_it_may_be_again(self, store: TaskStore) -> None:
        id, second = await finished(store, Status.FAILED), new_id()
        await retry(store, {id: new_id()})

        assert await retry(store, {id: second}) == {}
        assert await retry(store, {id: second}, is_again=True) == {id: True}
        assert (await get(store, id)).retried_as == second


async def test_claim_tells_the_bounds_of_the_backoff(store: TaskStore) -> None:
    tasks = [
        with_options(retry_base_seconds=0.0, delay_seconds=0),
        with_options(retry_max_seconds=2.5),
        with_options(expires_at=soon(60)),
    ]
    await store.insert_tasks_with_options(tasks)
    worker_id = await register(store)

    claims = [await claim(store, worker_id, task.id) for task in tasks]

    bounds = [(each.retry_base_seconds, each.retry_max_seconds) for each in claims]
    assert bounds == [(0.0, None), (None, 2.5), (None, None)]
