"""Queues on a real PostgreSQL: their limits hold for every worker, and their figures are true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uuid_utils

from tasksvc.domain.errors import QueueInUse, QueueNotFound
from tasksvc.domain.outcome import COMPLETED, RunResult
from tasksvc.domain.queue import Queue
from tasksvc.domain.task import NewTask, Options, Status
from tasksvc.duties.janitor import Janitor
from tasksvc.duties.relay import Relay
from tasksvc.services.cleanup import Cleanup
from tasksvc.services.queues import QueueService
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
    await store.insert_tasks_with_options(tasks)
    return [task.id for task in tasks]


async def due_tasks(store: TaskStore) -> list[str]:
    return [id for id, _ in await store.find_due_tasks(10)]


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

        await store.finish_tasks([RunResult(ids[0], 1, COMPLETED)])
        assert [claim.id for claim in await store.claim_tasks(worker_id, ids[2:])] == [ids[2]]

    async def test_limit_holds_for_all_workers(
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

        await store.finish_tasks([RunResult(ids[0], 1, COMPLETED)])
        assert await store.claim_tasks(worker_id, ids[3:]) == []
        await store.finish_tasks([RunResult(ids[1], 1, COMPLETED)])
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
            await store.finish_tasks([RunResult(id, 1, COMPLETED)])

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
        assert await due_tasks(store) == [plain]
        await store.finish_tasks([RunResult(ids[0], 1, COMPLETED)])
        assert sorted(await due_tasks(store)) == sorted([plain, ids[2]])
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
        assert await due_tasks(store) == []
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


HOGS = """
INSERT INTO task (id, created_at, due_at, published_at, queue, max_attempts, content)
SELECT gen_random_uuid(), at, at, CASE WHEN %s THEN at END, 'hog', 3, 'x'
FROM generate_series(1, 600) AS n, LATERAL (
    SELECT now() - interval '2 h' + n * interval '1 s' AS at) AS moment
"""


class TestBehindManyThatMayNotStart:
    """More of them than are looked at, in the same lane, and due before all others."""

    @pytest.fixture(params=["paused", "full"])
    async def stopped(
        self, request: pytest.FixtureRequest, queue_store: QueueStore, store: TaskStore
    ) -> str:
        await queue_store.put_queue("hog", 1)
        if request.param == "paused":
            await queue_store.pause_queue("hog", is_paused=True)
        else:
            worker_id = await register(store)
            ids = await insert(store, *tasks(1, "hog"))
            await store.claim_tasks(worker_id, ids)
        return str(request.param)

    async def test_others_are_published(
        self, stopped: str, store: TaskStore, database_url: str
    ) -> None:
        query(database_url, HOGS, False)
        others = [*tasks(2, "a", is_published=False), *tasks(1, "b", is_published=False)]
        ids = await insert(store, *others, *tasks(1, "", is_published=False))

        assert sorted((await store.publish_due_tasks(ago(HOUR), 10)).ids) == sorted(ids)

    async def test_others_are_found_without_a_stream(
        self, stopped: str, store: TaskStore, database_url: str
    ) -> None:
        query(database_url, HOGS, True)
        ids = await insert(store, *tasks(2, "a"), *tasks(1, "b"), *tasks(1, ""))

        assert sorted(await due_tasks(store)) == sorted(ids)

    async def test_others_that_were_lost_are_published_again(
        self, queue_store: QueueStore, store: TaskStore, database_url: str
    ) -> None:
        await queue_store.put_queue("hog", None)
        await queue_store.pause_queue("hog", is_paused=True)
        query(database_url, HOGS, True)
        ids = await insert(store, *tasks(2, "a"), *tasks(1, "b"), *tasks(1, ""))
        query(
            database_url,
            "UPDATE task SET due_at = now() - interval '1 h', published_at = now() - interval '1 h'"
            " WHERE queue <> 'hog'",
        )

        assert sorted((await store.publish_due_tasks(ago(60), 10)).ids) == sorted(ids)

    async def test_age_is_that_of_the_oldest_that_may_start(
        self, queue_store: QueueStore, store: TaskStore, database_url: str
    ) -> None:
        await queue_store.put_queue("hog", None)
        await queue_store.pause_queue("hog", is_paused=True)
        query(database_url, HOGS, True)
        assert (await store.measure()).oldest_pending_seconds == 0
        await insert(store, *tasks(1, "a"))
        query(database_url, "UPDATE task SET due_at = now() - interval '9 s' WHERE queue = 'a'")

        assert (await store.measure()).oldest_pending_seconds == pytest.approx(9, abs=5)

    async def test_relay_comes_when_the_next_is_due(
        self, queue_store: QueueStore, store: TaskStore, database_url: str
    ) -> None:
        """Though it is behind others that may not start even then."""
        await queue_store.put_queue("hog", None)
        await queue_store.pause_queue("hog", is_paused=True)
        query(database_url, HOGS, False)
        query(database_url, "UPDATE task SET due_at = due_at + interval '3 h'")
        assert ((await store.publish_due_tasks(ago(HOUR), 10)).next_seconds or 0) > HOUR - 60
        await insert(store, *tasks(1, "a", is_published=False))
        query(database_url, "UPDATE task SET due_at = now() + interval '9 s' WHERE queue = 'a'")

        due = await store.publish_due_tasks(ago(HOUR), 10)
        assert due.next_seconds == pytest.approx(9, abs=5)


class TestNames:
    async def test_unused_ones_are_deleted(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        """Those without a limit, a pause and tasks; and not at once."""
        await queue_store.put_queue("limited", 1)
        for name in ("paused", "unused", "final", "live"):
            await queue_store.put_queue(name, None)
        await queue_store.pause_queue("paused", is_paused=True)
        final, _ = await insert(store, *tasks(1, "final"), *tasks(1, "live"))
        await store.cancel_tasks([final])
        assert await queue_store.forget_queues(60, "", 10) == (0, "unused")

        assert await queue_store.forget_queues(-60, "", 3) == (0, "live")
        assert await queue_store.forget_queues(-60, "live", 3) == (1, "unused")
        assert await queue_store.forget_queues(-60, "unused", 3) == (0, None)
        left = [queue.name for queue in await queue_store.find_queues("", 10)]
        assert left == ["final", "limited", "live", "paused"]
        await store.delete_finished_tasks(0, 10)
        await queue_store.forget_queues(-60, "", 10)
        assert len(await queue_store.find_queues("", 10)) == 3

    async def test_queue_that_went_comes_with_its_next_task(
        self, store: TaskStore, queue_store: QueueStore
    ) -> None:
        await queue_store.put_queue("mail", None)
        await queue_store.forget_queues(-60, "", 10)
        (id,) = await insert(store, *tasks(1))

        assert (await only(queue_store)).pending == 1
        assert len(await store.claim_tasks(await register(store), [id])) == 1

    async def test_janitor_looks_at_all_of_them(
        self, store: TaskStore, queue_store: QueueStore, database_url: str, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("tasksvc.services.cleanup._QUEUE_BATCH", 4)
        query(
            database_url,
            "INSERT INTO queue (name, concurrency, sampled_at) SELECT n, nullif(n %% 2, 0),"
            " now() - interval '2 h' FROM generate_series(1, %s) AS n",
            10,
        )
        janitor = Janitor(Cleanup(store, queue_store, retention_seconds=0, key_seconds=3600))
        for _ in range(4):
            await janitor.run_once()

        assert query(database_url, "SELECT count(*) FROM queue") == [(5,)]

    async def test_one_with_live_tasks_is_not_deleted(
        self, store: TaskStore, queues: QueueService
    ) -> None:
        (id,) = await insert(store, *tasks(1))
        with pytest.raises(QueueInUse):
            await queues.delete("mail")
        await store.cancel_tasks([id])

        await queues.delete("mail")
        for name in ("mail", "other"):
            with pytest.raises(QueueNotFound):
                await queues.delete(name)

    async def test_names_cost_little(
        self, store: TaskStore, queue_store: QueueStore, database_url: str
    ) -> None:
        """A page of them, and each duty, whatever their number: none is a matter of seconds."""
        query(
            database_url,
            "INSERT INTO task (id, due_at, queue, max_attempts, content)"
            " SELECT gen_random_uuid(), now() + interval '1 day', 'q' || n, 3, 'x'"
            " FROM generate_series(1, %s) AS n",
            20_000,
        )
        async with asyncio.timeout(5):
            await store.fold_tally()
            await queue_store.sample_queues()
            await store.measure()
            await store.find_lanes()
            await store.publish_due_tasks(ago(HOUR), 10)
            assert len(await queue_store.find_queues("", 1000)) == 1000
            assert await queue_store.forget_queues(60, "", 5000) == (0, "q14498")


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
        await store.finish_tasks([RunResult(id, 1, COMPLETED) for id in ids[:2]])
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
