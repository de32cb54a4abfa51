"""Queues on a real PostgreSQL: their limits hold, whoever claims, and their figures are true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uuid_utils

from tasksvc.consumers.relay import Relay
from tasksvc.domain.outcome import COMPLETED, Finish
from tasksvc.domain.queue import Queue
from tasksvc.domain.task import NewTask, Options, Status
from tasksvc.queues import QueueService
from tasksvc.store.database import Database
from tasksvc.store.queue_store import QueueStore
from tasksvc.store.task_store import TaskStore
from tests.harness import ago, query
from tests.integration.conftest import Worker

HOUR = 3600.0

RUNNING = "FROM task WHERE status = 'processing'"


def tasks(count: int, queue: str = "mail", *, is_published: bool = True) -> list[NewTask]:
    options = Options(queue=queue)
    return [
        NewTask(str(uuid_utils.uuid7()), "x", 3, None, is_published, options) for _ in range(count)
    ]


async def insert(store: TaskStore, *tasks: NewTask) -> list[str]:
    await store.insert_special_tasks(tasks)
    return [task.id for task in tasks]


async def register(store: TaskStore) -> str:
    worker_id = str(uuid_utils.uuid7())
    await store.register_worker(worker_id, "w", 60)
    return worker_id


@pytest.fixture
async def make_store(database_url: str) -> AsyncIterator[Callable[[], TaskStore]]:
    stores: list[TaskStore] = []

    def make() -> TaskStore:
        stores.append(TaskStore(Database(database_url)))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


async def only(store: QueueStore, name: str = "mail") -> Queue:
    (queue,) = await store.find_queues("", 1, name)
    return queue


class TestLimit:
    async def test_no_more_run_than_may(self, store: TaskStore, queue_store: QueueStore) -> None:
        await queue_store.put_queue("mail", 2)
        worker_id = await register(store)
        ids = await insert(store, *tasks(5))
        (other,) = await insert(store, *tasks(1, "other"))

        claims = await store.claim_tasks(worker_id, [*ids, other])
        assert {claim.id for claim in claims} == {*ids[:2], other}
        assert {claim.id for claim in claims if claim.is_limited} == set(ids[:2])
        assert await store.claim_tasks(worker_id, ids[2:]) == []

        await store.finish_tasks([Finish(ids[0], 1, COMPLETED)])
        assert [claim.id for claim in await store.claim_tasks(worker_id, ids[2:])] == [ids[2]]

    async def test_no_more_run_than_may_whoever_claims(
        self, make_store: Callable[[], TaskStore], queue_store: QueueStore, database_url: str
    ) -> None:
        """Claims of the same moment count what the others have just claimed."""
        await queue_store.put_queue("a", 3)
        await queue_store.put_queue("b", 3)
        stores = [make_store() for _ in range(6)]
        workers = [await register(store) for store in stores]
        for _ in range(5):
            batches = [await insert(store, *tasks(2, "a"), *tasks(2, "b")) for store in stores]
            await asyncio.gather(
                *(
                    store.claim_tasks(worker_id, ids)
                    for store, worker_id, ids in zip(stores, workers, batches, strict=True)
                )
            )
            running = query(
                database_url,
                f"SELECT queue, count(*) {RUNNING} GROUP BY 1 ORDER BY 1",
            )
            assert running == [("a", 3), ("b", 3)]
            released = [
                await store.release_tasks(id) for store, id in zip(stores, workers, strict=True)
            ]
            assert sum(map(len, released)) == 6

    async def test_claim_whose_answer_was_lost_finds_its_own(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        await queue_store.put_queue("mail", 1)
        worker_id = await register(store)
        ids = await insert(store, *tasks(2))
        first = await store.claim_tasks(worker_id, ids)

        again = await store.claim_tasks(worker_id, ids)
        assert again[0][:2] == first[0][:2]
        assert again[0].is_limited

    @pytest.mark.parametrize("end", ["cancel", "rescue", "release"])
    async def test_whatever_ends_a_run_makes_room(
        self, store: TaskStore, queue_store: QueueStore, end: str
    ) -> None:
        await queue_store.put_queue("mail", 1)
        worker_id = await register(store)
        ids = await insert(store, *tasks(2))
        await store.claim_tasks(worker_id, ids[:1])
        match end:
            case "cancel":
                await store.cancel_tasks(ids[:1])
            case "rescue":
                await store.rescue_tasks([worker_id], 10)
            case "release":
                await store.release_tasks(worker_id)

        assert [claim.id for claim in await store.claim_tasks(worker_id, ids[1:])] == ids[1:]

    async def test_it_holds_for_what_started_before_it(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        worker_id = await register(store)
        ids = await insert(store, *tasks(5))
        assert len(await store.claim_tasks(worker_id, ids[:3])) == 3
        await queue_store.put_queue("mail", 2)

        await store.finish_tasks([Finish(ids[0], 1, COMPLETED)])
        assert await store.claim_tasks(worker_id, ids[3:]) == []
        await store.finish_tasks([Finish(ids[1], 1, COMPLETED)])
        assert [claim.id for claim in await store.claim_tasks(worker_id, ids[3:])] == [ids[3]]

    async def test_what_is_counted_stays_little(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        """Each claim and each end adds to the tally; the janitor comes once a minute."""
        await queue_store.put_queue("mail", 1)
        worker_id = await register(store)
        ids = await insert(store, *tasks(150))
        for id in ids:
            assert len(await store.claim_tasks(worker_id, [id])) == 1
            await store.finish_tasks([Finish(id, 1, COMPLETED)])

        running = "FROM task_tally WHERE queue = 'mail' AND status = 'processing'"
        assert query(database_url, f"SELECT sum(tasks), count(*) <= 102 {running}") == [(0, True)]

    async def test_relay_publishes_what_there_is_room_for(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        await queue_store.put_queue("mail", 2)
        worker_id = await register(store)
        ids = await insert(store, *tasks(5, is_published=False))
        (plain,) = await insert(store, *tasks(1, "", is_published=False))

        due = await store.publish_due_tasks(ago(HOUR), 10)
        assert sorted(due.ids) == sorted([plain, *ids[:2]])
        await store.claim_tasks(worker_id, ids[:2])
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == []
        assert await store.find_due_tasks(10) == [plain]
        await store.finish_tasks([Finish(ids[0], 1, COMPLETED)])
        assert sorted(await store.find_due_tasks(10)) == sorted([plain, ids[2]])
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [ids[2]]


class TestPause:
    async def test_none_starts_until_it_is_resumed(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        worker_id = await register(store)
        ids = await insert(store, *tasks(3, is_published=False))
        assert await queue_store.pause_queue("mail", is_paused=True)

        assert await store.claim_tasks(worker_id, ids) == []
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == []
        assert await store.find_due_tasks(10) == []
        measures = await store.measure()
        assert (measures.oldest_pending_seconds, measures.paused_queues) == (0, 1)

        await queue_store.pause_queue("mail", is_paused=False)
        assert sorted((await store.publish_due_tasks(ago(HOUR), 10)).ids) == ids
        assert len(await store.claim_tasks(worker_id, ids)) == 3

    async def test_unknown_queue(self, queue_store: QueueStore) -> None:
        assert not await queue_store.pause_queue("mail", is_paused=True)

    async def test_it_does_not_hold_others_back(
        self, worker: Worker, queues: QueueService, database_url: str
    ) -> None:
        """With many tasks of a paused queue before it, in the same lane."""
        await worker.tasks.create("x", options=Options(queue="mail"))
        await queues.pause("mail", is_paused=True)
        for _ in range(3):
            await worker.tasks.create("x", options=Options(queue="mail"))
        await worker.create()
        for _ in range(2):
            await worker.work()

        assert query(
            database_url, "SELECT queue, count(*) FROM task WHERE status = 'completed' GROUP BY 1"
        ) == [("", 1)]

        await queues.pause("mail", is_paused=False)
        await Relay(worker.publisher, 1.0).run_once()
        for _ in range(2):
            await worker.work()
        assert query(database_url, "SELECT count(*) FROM task WHERE status = 'completed'") == [(5,)]


class TestFigures:
    async def test_queue_is_there_from_its_first_task_on(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        assert await queue_store.find_queues("", 10) == []
        await insert(store, *tasks(1, "b"), *tasks(1, "a"), *tasks(1, "b"))

        assert [queue.name for queue in await queue_store.find_queues("", 10)] == ["a", "b"]
        assert [queue.name for queue in await queue_store.find_queues("a", 10)] == ["b"]
        assert [queue.name for queue in await queue_store.find_queues("", 1)] == ["a"]

    async def test_depth_and_age(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        assert await queue_store.put_queue("mail", None)
        assert await only(queue_store) == Queue("mail", None, False, 0, 0, 0.0, 0.0)
        worker_id = await register(store)
        ids = await insert(store, *tasks(4), *tasks(2, "other"))
        query(
            database_url,
            "UPDATE task SET due_at = due_at - interval '1 hour' WHERE id = %s",
            ids[3],
        )
        await store.claim_tasks(worker_id, ids[:1])
        assert not await queue_store.put_queue("mail", 7)

        queue = await only(queue_store)
        assert (queue.concurrency, queue.pending, queue.processing) == (7, 3, 1)
        assert queue.oldest_seconds == pytest.approx(HOUR, abs=60)
        assert queue.empty_seconds is None

    async def test_rate_is_of_the_last_minutes(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        ids = await insert(store, *tasks(8))
        await store.cancel_tasks(ids[:2])
        query(database_url, "UPDATE queue SET sampled_at = sampled_at - interval '1 minute'")
        await queue_store.sample_queues()
        await queue_store.sample_queues()  # one in a minute is enough
        query(
            database_url,
            "UPDATE queue SET earlier_at = clock_timestamp() - interval '4 s', earlier_ended = 2",
        )
        await store.cancel_tasks(ids[2:6])

        queue = await only(queue_store)
        assert queue.rate == pytest.approx(1, rel=0.5)
        assert queue.empty_seconds == pytest.approx(2 / queue.rate)
        ((ended,),) = query(database_url, "SELECT sampled_ended FROM queue")
        assert ended == 2

    async def test_figures_are_those_of_the_table_whatever_happens(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        worker_id = await register(store)
        ids = await insert(store, *tasks(9))
        await store.claim_tasks(worker_id, ids[:6])
        await store.finish_tasks([Finish(id, 1, COMPLETED) for id in ids[:2]])
        await store.cancel_tasks([ids[2], ids[8]])
        await store.fold_tally()
        await store.delete_finished_tasks(0, 1)

        queue = await only(queue_store)
        assert (queue.pending, queue.processing) == (2, 3)
        counted = query(
            database_url,
            "SELECT queue, status, sum(tasks) FROM task_tally GROUP BY 1, 2 HAVING sum(tasks) <> 0",
        )
        assert sorted(counted) == sorted(
            query(database_url, "SELECT queue, status, count(*) FROM task GROUP BY 1, 2")
        )
        assert (await store.measure()).tasks[Status.PROCESSING] == 3
