"""What a store promises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import uuid_utils

from tasksvc.domain import outcome
from tasksvc.domain.errors import DataRejected
from tasksvc.domain.outcome import COMPLETED, RELEASED, Outcome, RunResult
from tasksvc.domain.task import (
    DEFAULT_LANE,
    Claim,
    Hold,
    IdempotencyRecord,
    Lane,
    NewTask,
    Options,
    Priority,
    Progress,
    Status,
    Task,
)
from tasksvc.store.task_store import TaskStore
from tests.harness import ago, eventually, query

HOUR = 3600.0

ERROR = {"type": "ValueError", "message": "no", "attempt": 1}


def new_id() -> str:
    return str(uuid_utils.uuid7())


def new_task(content: str = "x", *, max_attempts: int = 3, is_published: bool = True) -> NewTask:
    return NewTask(new_id(), content, max_attempts, None, is_published)


async def insert(store: TaskStore, count: int = 1, **overrides: Any) -> list[str]:
    tasks = [new_task(**overrides) for _ in range(count)]
    await store.insert_tasks(tasks)
    return [task.id for task in tasks]


async def register(store: TaskStore, lease_seconds: float = HOUR) -> str:
    worker_id = new_id()
    await store.register_worker(worker_id, "host:1", lease_seconds)
    return worker_id


async def claim(store: TaskStore, worker_id: str, id: str) -> Claim:
    (claimed,) = await store.claim_tasks(worker_id, [id])
    return claimed


async def finish(store: TaskStore, id: str, attempt: int, result: Outcome) -> list[str]:
    return await store.finish_tasks([RunResult(id, attempt, result)])


async def due_tasks(store: TaskStore, limit: int, kinds: Sequence[str] = ("default",)) -> list[str]:
    return [id for id, _ in await store.find_due_tasks(limit, kinds)]


async def get(store: TaskStore, id: str) -> Task:
    (task,) = await store.get_tasks([id])
    return task


async def finished(store: TaskStore, status: Status) -> str:
    """The id of a task that ended so."""
    worker_id = await register(store)
    (id,) = await insert(store)
    await claim(store, worker_id, id)
    if status is Status.CANCELED:
        await store.cancel_tasks([id])
    else:
        await finish(store, id, 1, COMPLETED if status is Status.COMPLETED else failure())
    return id


def failure() -> Outcome:
    return outcome.failed(ERROR)


class TestInsert:
    async def test_task_is_pending_and_new(self, store: TaskStore) -> None:
        task = NewTask(new_id(), "hello", 3, "00-a-b-01", True)
        (inserted,) = await store.insert_tasks([task])

        assert (inserted.id, inserted.content, inserted.status) == (
            task.id,
            "hello",
            Status.PENDING,
        )
        assert (inserted.updated_at, inserted.error) == (None, None)
        assert inserted.created_at.tzinfo is not None
        assert inserted.created_at.utcoffset() == UTC.utcoffset(None)
        assert await store.get_tasks([task.id]) == [inserted]

    async def test_second_try_changes_nothing(self, store: TaskStore) -> None:
        tasks = [new_task("first"), new_task("second")]
        inserted = await store.insert_tasks(tasks)
        again = await store.insert_tasks(tasks)

        assert again == inserted
        assert [await get(store, task.id) for task in tasks] == inserted

    @pytest.mark.parametrize(
        "content",
        [
            "",
            '"quotes"',
            "back\\slash \\n",
            "{a,b}",
            "NULL",
            "%s %%",
            "'; --",
            "😀 ü\n\t",
            "x" * 99,
        ],
    )
    async def test_content_comes_back_as_it_was(self, store: TaskStore, content: str) -> None:
        (id,) = await insert(store, content=content)

        assert (await get(store, id)).content == content

    @pytest.mark.parametrize("content", ["nul \0", "half a pair \ud83d"])
    async def test_refused_content_keeps_nothing_of_its_group(
        self, store: TaskStore, content: str
    ) -> None:
        good = new_task()
        with pytest.raises(DataRejected):
            await store.insert_tasks([good, new_task(content)])

        assert await store.get_tasks([good.id]) == []

    async def test_unknown_ids_are_missing(self, store: TaskStore) -> None:
        (id,) = await insert(store)

        assert [task.id for task in await store.get_tasks([new_id(), id])] == [id]


def with_options(**options: Any) -> NewTask:
    is_published = not ({"delay_seconds", "run_at"} & options.keys())
    return new_task()._replace(options=Options(**options), is_published=is_published)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


class TestInsertHeld:
    async def test_worker_holds_them_from_the_beginning(self, store: TaskStore) -> None:
        worker_id = await register(store)
        held, left = new_task(max_attempts=7), new_task("y", is_published=False)
        made, claims = await store.insert_held_tasks(
            [held, left], Hold(worker_id, frozenset([held.id]))
        )

        assert [(task.id, task.content, task.status) for task in made] == [
            (held.id, "x", Status.PENDING),
            (left.id, "y", Status.PENDING),
        ]
        assert claims == [Claim(held.id, 1, 0, 7, "x", None, 0.0)]
        running, waiting = [await get(store, task.id) for task in (held, left)]
        assert (running.status, running.created_at) == (Status.PROCESSING, made[0].created_at)
        assert running.updated_at is not None
        assert running.updated_at >= running.created_at
        assert (waiting.status, waiting.updated_at) == (Status.PENDING, None)
        assert await store.renew_lease(worker_id, {held.id: 1}, HOUR) == (True, [])
        assert await finish(store, held.id, 1, COMPLETED) == [held.id]

    async def test_worker_that_was_declared_dead_holds_nothing(self, store: TaskStore) -> None:
        worker_id = await register(store, lease_seconds=-1)
        await store.lapse_workers(None)
        task = new_task()
        made, claims = await store.insert_held_tasks([task], Hold(worker_id, frozenset([task.id])))

        assert claims == []
        assert made == [await get(store, task.id)]

    async def test_refused_content(self, store: TaskStore) -> None:
        task = new_task("nul \0")
        with pytest.raises(DataRejected):
            await store.insert_held_tasks([task], Hold(await register(store), frozenset([task.id])))


class TestInsertWithOptions:
    async def test_task_keeps_its_options(self, store: TaskStore) -> None:
        moment = soon(HOUR)
        task = with_options(
            run_at=moment,
            timeout_seconds=1.5,
            expires_at=moment,
            priority=Priority.LOW,
            queue="q",
            unique_key="u",
        )
        made, claims, _ = await store.insert_tasks_with_options([task])

        assert claims == []
        assert (made[0].run_at, made[0].timeout_seconds, made[0].expires_at) == (
            moment,
            1.5,
            moment,
        )
        assert await store.get_tasks([task.id]) == made

    async def test_worker_holds_what_it_is_to_hold(self, store: TaskStore) -> None:
        worker_id = await register(store)
        options = {"priority": Priority.HIGH, "timeout_seconds": 2.0, "retry_base_seconds": 3.0}
        held, left = with_options(**options), with_options(**options)
        made, claims, _ = await store.insert_tasks_with_options(
            [held, left], Hold(worker_id, frozenset([held.id]))
        )

        assert [task.status for task in made] == [Status.PENDING] * 2
        (claimed,) = claims
        assert claimed == held.first_claim()
        assert (claimed.priority, claimed.timeout_seconds) == (Priority.HIGH, 2.0)
        assert claimed.retry_base_seconds == 3.0
        # A claim whose answer was lost returns the same, except for the time that it has waited.
        (again,) = await store.claim_tasks(worker_id, [held.id])
        assert again._replace(waited_seconds=0.0) == claimed
        assert (await get(store, left.id)).status is Status.PENDING

    async def test_expired_task_is_not_held(self, store: TaskStore) -> None:
        worker_id = await register(store)
        task = with_options(expires_at=soon(-1))
        made, claims, _ = await store.insert_tasks_with_options(
            [task], Hold(worker_id, frozenset([task.id]))
        )

        assert (made[0].status, claims) == (Status.PENDING, [])
        assert (await get(store, task.id)).status is Status.PENDING

    async def test_key_finds_its_task(self, store: TaskStore) -> None:
        task = with_options(timeout_seconds=1)._replace(key="k", fingerprint="ab")
        made, *_ = await store.insert_tasks_with_options([task])

        assert await store.find_keyed_tasks(["k"]) == [
            IdempotencyRecord("k", "ab", made[0], is_new=True)
        ]

    async def test_second_try_changes_nothing(self, store: TaskStore) -> None:
        task = with_options(timeout_seconds=1)
        await store.insert_tasks_with_options([task])

        assert await store.insert_tasks_with_options([task]) == ([], [], {})

    @pytest.mark.parametrize("content", ["nul \0", "half a pair \ud83d"])
    async def test_refused_content(self, store: TaskStore, content: str) -> None:
        with pytest.raises(DataRejected):
            await store.insert_tasks_with_options(
                [with_options(timeout_seconds=1)._replace(content=content)]
            )

    async def test_content_comes_back_as_it_was(self, store: TaskStore) -> None:
        content = '"\\u0041 \\\\ {}\n😀'
        task = with_options(timeout_seconds=1)._replace(content=content)
        await store.insert_tasks_with_options([task])

        assert (await get(store, task.id)).content == content

    async def test_claim_tells_the_time_limit(self, store: TaskStore) -> None:
        task = with_options(timeout_seconds=1.5)
        await store.insert_tasks_with_options([task])

        assert (await claim(store, await register(store), task.id)).timeout_seconds == 1.5

    async def test_delayed_task_is_left_until_it_is_due(self, store: TaskStore) -> None:
        task = with_options(delay_seconds=HOUR)
        ((inserted,), *_) = await store.insert_tasks_with_options([task])
        assert inserted.run_at is not None
        delay = (inserted.run_at - inserted.created_at).total_seconds()
        assert delay == pytest.approx(HOUR, abs=0.1)

        due = await store.publish_due_tasks(ago(HOUR), 10)
        assert due.ids == []
        assert due.next_seconds == pytest.approx(HOUR, abs=60)
        assert await store.claim_tasks(await register(store), [task.id]) == []

    async def test_delayed_task_is_published_when_it_is_due(self, store: TaskStore) -> None:
        task = with_options(delay_seconds=0.1)
        await store.insert_tasks_with_options([task])

        async def published() -> list[str]:
            return list((await store.publish_due_tasks(ago(HOUR), 10)).ids)

        assert await eventually(published) == [task.id]
        assert (await get(store, task.id)).run_at is None

    async def test_task_that_waits_for_nothing_tells_no_next_moment(self, store: TaskStore) -> None:
        await store.insert_tasks_with_options([with_options(timeout_seconds=1)])

        assert (await store.publish_due_tasks(ago(HOUR), 10)).next_seconds is None

    async def test_expired_task_fails_and_is_not_claimed(self, store: TaskStore) -> None:
        task, other = with_options(expires_at=soon(-1)), with_options(expires_at=soon(HOUR))
        await store.insert_tasks_with_options([task, other])
        assert await due_tasks(store, 10) == [other.id]
        assert await store.claim_tasks(await register(store), [task.id]) == []

        due = await store.publish_due_tasks(ago(0), 10)

        assert due.expired == [task.id]
        assert due.ids == [other.id]
        assert due.next_seconds == pytest.approx(HOUR, abs=60)
        failed = await get(store, task.id)
        assert failed.status is Status.FAILED
        assert failed.error == {
            "type": "Expired",
            "message": "It could not start in time.",
            "attempt": 0,
        }

    async def test_running_task_does_not_expire(self, store: TaskStore) -> None:
        task = with_options(expires_at=soon(0.2))
        await store.insert_tasks_with_options([task])
        await claim(store, await register(store), task.id)
        await asyncio.sleep(0.3)

        assert (await store.publish_due_tasks(ago(HOUR), 10)).expired == []
        assert await finish(store, task.id, 1, COMPLETED) == [task.id]


class TestClaim:
    async def test_claim_tells_all_about_the_task(self, store: TaskStore) -> None:
        worker_id = await register(store)
        task = NewTask(new_id(), "hello", 5, "00-a-b-01", True)
        await store.insert_tasks([task])
        claimed = await claim(store, worker_id, task.id)

        assert (claimed.id, claimed.content, claimed.traceparent) == (
            task.id,
            "hello",
            "00-a-b-01",
        )
        assert (claimed.attempt, claimed.failures, claimed.max_attempts) == (1, 0, 5)
        assert 0 <= claimed.waited_seconds < 10
        found = await get(store, task.id)
        assert found.status is Status.PROCESSING
        assert found.updated_at is not None

    async def test_claim_whose_answer_was_lost_comes_back(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        first = await claim(store, worker_id, id)

        assert (await claim(store, worker_id, id)).attempt == first.attempt == 1

    async def test_held_task_is_not_claimed_by_another(self, store: TaskStore) -> None:
        (id,) = await insert(store)
        await claim(store, await register(store), id)

        assert await store.claim_tasks(await register(store), [id]) == []

    async def test_unknown_or_retired_worker_claims_nothing(self, store: TaskStore) -> None:
        retired = await register(store)
        (id,) = await insert(store)
        await store.retire_worker(retired)

        assert await store.claim_tasks(retired, [id]) == []
        assert await store.claim_tasks(new_id(), [id]) == []
        assert (await get(store, id)).status is Status.PENDING

    async def test_lapsed_worker_does_not_even_get_its_own_again(self, store: TaskStore) -> None:
        lapsed = await register(store, lease_seconds=-1)
        (id,) = await insert(store)
        await claim(store, lapsed, id)
        await store.lapse_workers(None)

        assert await store.claim_tasks(lapsed, [id]) == []

    async def test_task_is_not_claimed_before_it_is_due(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await finish(store, id, 1, outcome.retried(ERROR, HOUR))

        assert await store.claim_tasks(worker_id, [id]) == []
        assert await due_tasks(store, 10) == []

    @pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
    async def test_final_task_is_not_claimed(self, store: TaskStore, status: Status) -> None:
        id = await finished(store, status)

        assert await store.claim_tasks(await register(store), [id]) == []
        assert await due_tasks(store, 10) == []

    async def test_oldest_due_tasks_are_found_first(self, store: TaskStore) -> None:
        ids = [(await insert(store))[0] for _ in range(3)]

        assert await due_tasks(store, 2) == ids[:2]


class TestKeys:
    async def test_first_create_with_a_key_makes_the_task(self, store: TaskStore) -> None:
        first = new_task("first")._replace(key="k", fingerprint="ab")
        ((inserted,), *_) = await store.insert_tasks_with_options([first])

        second = new_task("second")._replace(key="k", fingerprint="cd")
        assert await store.insert_tasks_with_options([second]) == ([], [], {})
        assert await store.get_tasks([second.id]) == []
        assert await store.find_keyed_tasks(["k", "other"]) == [
            IdempotencyRecord("k", "ab", inserted)
        ]

    async def test_of_two_in_one_group_the_first_makes_the_task(self, store: TaskStore) -> None:
        tasks = [new_task()._replace(key="k", fingerprint="ab") for _ in range(2)]

        inserted, *_ = await store.insert_tasks_with_options(
            [*tasks, with_options(timeout_seconds=1)]
        )

        assert len(inserted) == 2
        ((_, _, task, _),) = await store.find_keyed_tasks(["k"])
        assert task.id in {task.id for task in tasks}

    async def test_key_of_a_deleted_task_is_orphaned(self, store: TaskStore) -> None:
        task = new_task()._replace(key="k", fingerprint="ab")
        await store.insert_tasks_with_options([task])
        await store.cancel_tasks([task.id])
        assert await store.delete_finished_tasks(-1, 10) == 1

        again = new_task()._replace(key="k", fingerprint="cd")
        assert await store.insert_tasks_with_options([again]) == ([], [], {})
        assert await store.find_keyed_tasks(["k"]) == []
        await store.forget_orphaned_keys(["k"])
        ((inserted,), *_) = await store.insert_tasks_with_options([again])
        assert inserted.id == again.id

    async def test_old_keys_are_forgotten_and_their_tasks_kept(self, store: TaskStore) -> None:
        tasks = [new_task()._replace(key=f"{n}", fingerprint="ab") for n in range(3)]
        await store.insert_tasks_with_options(tasks)

        assert await store.forget_keys(HOUR, 10) == 0
        assert await store.forget_keys(-1, 2) == 2
        assert await store.forget_keys(-1, 2) == 1
        assert len(await store.get_tasks([task.id for task in tasks])) == 3


class TestLanes:
    async def test_priority_stays_with_the_task(self, store: TaskStore) -> None:
        worker_id = await register(store)
        task = with_options(priority=Priority.HIGH)
        ((created,), *_) = await store.insert_tasks_with_options([task])
        (claim,) = await store.claim_tasks(worker_id, [task.id])
        (read,) = await store.get_tasks([task.id])
        (canceled,) = await store.cancel_tasks([task.id])
        await store.retry_tasks({task.id: (new := new_id())}, is_published=True, is_again=False)
        (retried,) = await store.get_tasks([new])

        found = [created, claim, read, canceled.task, retried]
        assert [each.priority for each in found] == ["high"] * 5

    async def test_lanes_are_those_of_tasks_that_are_not_final(self, store: TaskStore) -> None:
        assert await store.find_lanes() == set()
        await insert(store)
        tasks = [
            with_options(kind=kind, priority=priority)
            for kind in ("a", "default", "z")
            for priority in (Priority.LOW, Priority.HIGH)
        ]
        await store.insert_tasks_with_options(tasks)
        await store.cancel_tasks([tasks[0].id])

        lanes = {task.options.lane for task in tasks[1:]}
        assert await store.find_lanes() == {DEFAULT_LANE} | lanes

    async def test_lanes_are_published_apart(self, store: TaskStore) -> None:
        (normal,) = await insert(store, is_published=False)
        low, expiring = (
            with_options(priority=Priority.LOW),
            with_options(priority=Priority.LOW, expires_at=datetime.now(UTC)),
        )
        later = with_options(kind="a", delay_seconds=HOUR)
        await store.insert_tasks_with_options([low, expiring, later])
        await store.unpublish_tasks([low.id, later.id])

        due = await store.publish_due_tasks(ago(HOUR), 10, low.options.lane)
        assert (due.ids, due.expired, due.next_seconds) == ([low.id], [expiring.id], None)
        due = await store.publish_due_tasks(ago(HOUR), 10, later.options.lane)
        assert (due.ids, due.next_seconds) == ([], pytest.approx(HOUR, abs=60))
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [normal]

    async def test_due_tasks_of_high_priority_come_first(self, store: TaskStore) -> None:
        ids = await insert(store, 2)
        low, high = with_options(priority=Priority.LOW), with_options(priority=Priority.HIGH)
        await store.insert_tasks_with_options([low])
        await store.insert_tasks_with_options([high])

        assert await due_tasks(store, 10) == [high.id, *ids, low.id]
        assert await due_tasks(store, 2) == [high.id, ids[0]]


class TestKinds:
    async def test_worker_claims_and_finds_only_kinds_that_it_serves(
        self, store: TaskStore
    ) -> None:
        plain, greeter = await register(store), new_id()
        await store.register_worker(
            greeter, "host:2", HOUR, dict.fromkeys(["greet", 'odd "{kind}, \\'])
        )
        (other,) = await insert(store)
        task, odd = with_options(kind="greet"), with_options(kind='odd "{kind}, \\')
        await store.insert_tasks_with_options([task, odd])

        assert await store.claim_tasks(plain, [task.id, odd.id]) == []
        assert await store.claim_tasks(greeter, [other]) == []
        assert await due_tasks(store, 10) == [other]
        assert await due_tasks(store, 10, ["greet"]) == [task.id]
        assert (await claim(store, greeter, task.id)).kind == "greet"
        assert (await claim(store, greeter, odd.id)).kind == odd.options.kind
        assert (await get(store, task.id)).kind == "greet"

    async def test_kinds_are_remembered_with_their_attempts(self, store: TaskStore) -> None:
        odd = 'odd "{kind}, \\'
        assert await store.find_kinds(["gone", "greet", odd]) == {}
        lapsed = new_id()
        await store.register_worker(lapsed, "host:1", HOUR, {"gone": 3, odd: None})
        await store.retire_worker(lapsed)
        await store.forget_workers([lapsed])
        await store.register_worker(new_id(), "host:1", HOUR, {"greet": 3, "default": None})
        await store.register_worker(new_id(), "host:1", HOUR, {"greet": 4})

        assert await store.find_kinds(["gone", "greet", odd, "never"]) == {
            "gone": 3,
            odd: None,
            "greet": 4,
        }

    async def test_unused_kinds_are_forgotten(self, store: TaskStore) -> None:
        await store.register_worker(new_id(), "host:1", HOUR, {"served": None})
        lapsed = new_id()
        await store.register_worker(lapsed, "host:1", HOUR, {"live": None, "gone": None})
        await store.retire_worker(lapsed)
        task = with_options(kind="live")
        await store.insert_tasks_with_options([task])
        kinds = ["served", "live", "gone"]
        await store.forget_kinds(60)
        assert (await store.find_kinds(kinds)).keys() == set(kinds)

        await store.forget_kinds(-4000)  # as if it were later
        assert (await store.find_kinds(kinds)).keys() == {"live"}
        await store.cancel_tasks([task.id])
        await store.forget_kinds(-4000)
        assert await store.find_kinds(kinds) == {}

    async def test_foreign_tasks_go_back_to_the_relay(self, store: TaskStore) -> None:
        worker_id = await register(store)
        task = with_options(kind="greet")
        await store.insert_tasks_with_options([task])
        (own,) = await insert(store)

        await store.unpublish_refused_tasks(worker_id, [task.id, own])

        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == []
        assert (await store.publish_due_tasks(ago(HOUR), 10, Lane("greet"))).ids == [task.id]


class TestProgress:
    async def test_progress_of_the_current_attempt_is_kept(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)

        await store.keep_progress([Progress(id, 1, 0.5, 'half "way" \0')])

        task = await get(store, id)
        assert task.progress == {"fraction": 0.5, "message": 'half "way" \0'}
        assert task.status is Status.PROCESSING

    async def test_progress_of_an_attempt_that_is_over_is_not(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await store.keep_progress([Progress(id, 2, 0.5, "")])
        await finish(store, id, 1, COMPLETED)
        await store.keep_progress([Progress(id, 1, 0.5, ""), Progress(new_id(), 1, 0.5, "")])

        assert (await get(store, id)).progress is None


class TestFinish:
    async def test_completed(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)

        assert await finish(store, id, 1, COMPLETED) == [id]
        task = await get(store, id)
        assert (task.status, task.error, task.result) == (Status.COMPLETED, None, None)

    @pytest.mark.parametrize(
        "text",
        [
            "0",
            '""',
            "9" * 5000,
            "[" * 1100 + "]" * 1100,
            '"\\ud800"',
            '"nul \\u0000, {quotes} \\" and \\\\"',
            '{"b": 1, "a": [null, "ü😀"]}',
        ],
        ids=range(7),
    )
    async def test_result_comes_back_as_it_was(self, store: TaskStore, text: str) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await finish(store, id, 1, outcome.completed(text))

        assert (await get(store, id)).result == msgspec.Raw(text.encode())

    async def test_retried_is_charged_and_due_again(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await finish(store, id, 1, outcome.retried(ERROR, 0.0))

        assert (await get(store, id)).error == ERROR
        again = await claim(store, worker_id, id)
        assert (again.attempt, again.failures) == (2, 1)

    async def test_released_is_not_charged(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await finish(store, id, 1, RELEASED)

        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [id]
        again = await claim(store, worker_id, id)
        assert (again.attempt, again.failures) == (2, 0)

    @pytest.mark.parametrize(
        "late", [COMPLETED, failure(), outcome.retried(ERROR, 0.0), RELEASED], ids=str
    )
    async def test_late_result_of_an_attempt_that_is_over_changes_nothing(
        self, store: TaskStore, late: Outcome
    ) -> None:
        zombie, other = await register(store), await register(store)
        (id,) = await insert(store)
        await claim(store, zombie, id)
        await store.release_tasks(zombie)
        await claim(store, other, id)
        before = await get(store, id)

        assert await finish(store, id, 1, late) == []
        assert await get(store, id) == before
        assert await store.renew_lease(other, {id: 2}, HOUR) == (True, [])
        assert await finish(store, id, 2, COMPLETED) == [id]

    async def test_second_try_writes_nothing_and_finds_the_first(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        done, other = RunResult(id, 1, COMPLETED), RunResult(id, 1, failure())
        await store.finish_tasks([done])
        before = await get(store, id)

        assert await store.finish_tasks([done]) == []
        assert await get(store, id) == before
        assert await store.find_finished_tasks([done]) == [id]
        assert await store.find_finished_tasks([other]) == []
        assert await store.find_finished_tasks([RunResult(id, 2, COMPLETED)]) == []

    @pytest.mark.parametrize(
        "message", ['a "quoted" word', "back\\slash", "{a,b}", "NULL", "😀 ü\n", "%s", "", "'"]
    )
    async def test_error_comes_back_as_it_was(self, store: TaskStore, message: str) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        error = ERROR | {"message": message, "deep": {"list": [1, None, message]}}
        await finish(store, id, 1, outcome.failed(error))

        assert (await get(store, id)).error == error
        assert json.dumps((await get(store, id)).error, sort_keys=True)

    async def test_each_of_a_group_gets_its_own_outcome(self, store: TaskStore) -> None:
        worker_id = await register(store)
        ids = await insert(store, 4)
        await store.claim_tasks(worker_id, ids)
        outcomes = [COMPLETED, failure(), outcome.retried(ERROR, 0.0), RELEASED]
        written = await store.finish_tasks(
            [RunResult(id, 1, each) for id, each in zip(ids, outcomes, strict=True)]
        )

        assert sorted(written) == sorted(ids)
        tasks = [await get(store, id) for id in ids]
        assert [task.status for task in tasks] == [each.status for each in outcomes]
        assert [task.error for task in tasks] == [each.error for each in outcomes]


class TestCancel:
    async def test_waiting_task(self, store: TaskStore) -> None:
        (id,) = await insert(store)
        (canceled,) = await store.cancel_tasks([id])

        assert canceled.worker_id is None
        assert canceled.task == await get(store, id)
        assert canceled.task.status is Status.CANCELED

    async def test_running_task_names_its_worker(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        (canceled,) = await store.cancel_tasks([id])

        assert canceled.worker_id == worker_id
        assert await store.renew_lease(worker_id, {id: 1}, HOUR) == (True, [id])
        assert await finish(store, id, 1, COMPLETED) == []
        assert (await get(store, id)).status is Status.CANCELED

    @pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
    async def test_final_task_stays_as_it_is(self, store: TaskStore, status: Status) -> None:
        id = await finished(store, status)
        before = await get(store, id)

        assert await store.cancel_tasks([id]) == []
        assert await get(store, id) == before

    async def test_same_id_twice_is_canceled_once(self, store: TaskStore) -> None:
        (id,) = await insert(store)

        assert len(await store.cancel_tasks([id, id, new_id()])) == 1


class TestRelease:
    async def test_all_but_what_is_kept(self, store: TaskStore) -> None:
        worker_id, other = await register(store), await register(store)
        kept, given_back, others = await insert(store, 3)
        await store.claim_tasks(worker_id, [kept, given_back])
        await claim(store, other, others)

        assert await store.release_tasks(worker_id, [given_back]) == [given_back]
        assert (await get(store, kept)).status is Status.PROCESSING
        assert (await get(store, others)).status is Status.PROCESSING
        again = await claim(store, other, given_back)
        assert (again.attempt, again.failures) == (2, 0)

    async def test_released_are_published_again(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await store.release_tasks(worker_id)

        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [id]

    async def test_task_that_is_handed_back_again_and_again_waits_for_longer(
        self, store: TaskStore, contract_database_url: str
    ) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        waits = []
        for number in range(1, 7):
            claimed = await claim(store, worker_id, id)
            await store.release_tasks(worker_id)
            run_at = (await get(store, id)).run_at
            seconds = 0.0 if run_at is None else (run_at - datetime.now(UTC)).total_seconds()
            assert seconds == pytest.approx(
                outcome.released(claimed.attempt).delay_seconds, abs=0.5
            )
            waits.append(round(seconds))
            assert claimed.attempt == number
            query(contract_database_url, "UPDATE task SET due_at = clock_timestamp()")

        assert waits == [0, 0, 0, 2, 4, 8]


class TestEpoch:
    async def test_claim_of_an_earlier_epoch_takes_nothing(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)

        assert await store.begin_epoch(worker_id, 2) == 2

        assert await store.claim_tasks(worker_id, [id], 1) == []
        task = new_task()
        _, claims = await store.insert_held_tasks([task], Hold(worker_id, frozenset([task.id]), 1))
        assert claims == []
        assert len(await store.claim_tasks(worker_id, [id, task.id], 2)) == 2

    async def test_late_repetition_changes_nothing(self, store: TaskStore) -> None:
        worker_id = await register(store)
        assert await store.begin_epoch(worker_id, 2) == 2

        assert await store.begin_epoch(worker_id, 1) == 2

    async def test_worker_that_is_dead_begins_none(self, store: TaskStore) -> None:
        worker_id = await register(store)
        await store.retire_worker(worker_id)

        assert await store.begin_epoch(worker_id, 1) is None


class TestRescue:
    async def test_held_tasks_of_the_dead_go_back_and_are_charged(self, store: TaskStore) -> None:
        dead, living = await register(store), await register(store)
        ids = await insert(store, 2)
        await claim(store, dead, ids[0])
        await claim(store, living, ids[1])

        assert await store.rescue_tasks([dead], 10) == [(ids[0], Status.PENDING)]
        assert await store.rescue_tasks([dead], 10) == []
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [ids[0]]
        again = await claim(store, living, ids[0])
        assert (again.attempt, again.failures) == (2, 1)
        task = await get(store, ids[0])
        assert task.error is not None
        assert (task.error["type"], task.error["attempt"]) == ("WorkerLost", 1)

    async def test_task_that_kills_its_workers_fails_for_good(self, store: TaskStore) -> None:
        (id,) = await insert(store, max_attempts=3)
        went = []
        for _ in range(3):
            worker_id = await register(store)
            await claim(store, worker_id, id)
            went += await store.rescue_tasks([worker_id], 10)

        assert went == [(id, Status.PENDING), (id, Status.PENDING), (id, Status.FAILED)]
        assert await store.claim_tasks(await register(store), [id]) == []
        error = (await get(store, id)).error
        assert error is not None
        assert error["attempt"] == 3

    async def test_rescue_goes_in_steps(self, store: TaskStore) -> None:
        dead = await register(store)
        ids = await insert(store, 5)
        await store.claim_tasks(dead, ids)
        steps = [len(await store.rescue_tasks([dead], 2)) for _ in range(4)]

        assert steps == [2, 2, 1, 0]


class TestAttempts:
    async def attempts(self, store: TaskStore, id: str) -> list[tuple[Any, ...]]:
        """Without their times, which are in order."""
        found = await store.get_attempts(id, 100)
        times = [time for each in found for time in each[1:3] if time is not None]
        assert times == sorted(times)
        assert all(time.utcoffset() == UTC.utcoffset(None) for time in times)
        assert all(each.ended_at for each in found if each.outcome)
        return [(each.attempt, *each[3:]) for each in found]

    async def test_waiting_and_unknown_tasks_have_none(self, store: TaskStore) -> None:
        (waiting, canceled) = await insert(store, 2)
        await store.cancel_tasks([canceled])

        for id in (waiting, canceled, new_id()):
            assert await store.get_attempts(id, 100) == []

    async def test_run_that_goes_on_started_with_its_claim(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        claimed = await get(store, id)

        (before,) = await store.get_attempts(id, 100)
        await store.keep_progress([Progress(id, 1, 0.5, "")])
        await store.keep_progress([Progress(id, 1, 0.6, "")])

        assert await store.get_attempts(id, 100) == [before]
        assert before == (1, claimed.updated_at, None, "host:1", None, None, None)
        updated_at = (await get(store, id)).updated_at
        assert updated_at is not None
        assert updated_at > before.started_at

    @pytest.mark.parametrize("reports", [0, 2])
    async def test_completed(self, store: TaskStore, reports: int) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        (before,) = await store.get_attempts(id, 100)
        for _ in range(reports):
            await store.keep_progress([Progress(id, 1, 0.5, "")])
        await finish(store, id, 1, COMPLETED)

        (attempt,) = await store.get_attempts(id, 100)
        ended_at = (await get(store, id)).updated_at
        assert attempt == (1, before.started_at, ended_at, None, "completed", None, None)
        assert ended_at is not None
        assert ended_at > before.started_at

    async def test_every_way_to_end(self, store: TaskStore) -> None:
        worker_id, other = await register(store), await register(store)
        (id,) = await insert(store, max_attempts=4)
        lost = {
            "type": "WorkerLost",
            "message": "The worker stopped answering.",
            "attempt": 2,
        }

        await claim(store, worker_id, id)
        await store.keep_progress([Progress(id, 1, 0.5, "")])
        await finish(store, id, 1, outcome.retried(ERROR, 0.0, 'File "x\\y", {\n'))
        await claim(store, other, id)
        await store.rescue_tasks([other], 10)
        await claim(store, worker_id, id)
        await finish(store, id, 3, RELEASED)
        await claim(store, worker_id, id)
        await store.keep_progress([Progress(id, 4, 0.5, "")])
        await store.release_tasks(worker_id)
        await claim(store, worker_id, id)
        await finish(store, id, 5, outcome.failed(ERROR))

        assert await self.attempts(store, id) == [
            (1, "host:1", "retried", ERROR, 'File "x\\y", {\n'),
            (2, "host:1", "lost", lost, None),
            (3, "host:1", "released", None, None),
            (4, "host:1", "released", None, None),
            (5, "host:1", "failed", ERROR, None),
        ]

    async def test_lost_for_the_last_time(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store, max_attempts=1)
        await claim(store, worker_id, id)
        await store.rescue_tasks([worker_id], 10)

        assert (await get(store, id)).status is Status.FAILED
        assert [each[2] for each in await self.attempts(store, id)] == ["lost"]

    async def test_canceled_and_the_late_result(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await store.cancel_tasks([id])
        await finish(store, id, 1, failure())

        assert await self.attempts(store, id) == [(1, "host:1", "canceled", None, None)]

    async def test_completed_in_the_end(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await store.keep_progress([Progress(id, 1, 0.5, "")])
        await finish(store, id, 1, outcome.retried(ERROR, 0.0))
        await claim(store, worker_id, id)
        await finish(store, id, 2, COMPLETED)

        assert [each[2] for each in await self.attempts(store, id)] == ["retried", "completed"]

    async def test_name_of_a_worker_outlives_it(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await store.release_tasks(worker_id)
        await store.forget_workers([worker_id])

        assert [each[1] for each in await self.attempts(store, id)] == ["host:1"]

    async def test_newest_of_very_many(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        for _ in range(3):
            await claim(store, worker_id, id)
            await store.release_tasks(worker_id)
        await claim(store, worker_id, id)

        assert [each.attempt for each in await store.get_attempts(id, 3)] == [2, 3, 4]

    async def test_deleted_with_the_task(self, store: TaskStore) -> None:
        failed, completed = await finished(store, Status.FAILED), new_task()
        assert len(await store.get_attempts(failed, 100)) == 1
        assert await store.delete_finished_tasks(-1, 10) == 1

        await store.insert_tasks([completed._replace(id=failed)])
        assert await store.get_attempts(failed, 100) == []


class TestWorkers:
    async def test_lease_that_ran_out_is_lapsed_and_can_not_be_renewed(
        self, store: TaskStore
    ) -> None:
        dead, living = await register(store, lease_seconds=-1), await register(store, 100.0)
        (id,) = await insert(store)
        await claim(store, dead, id)
        workers = await store.lapse_workers(None)

        assert (workers.dead, workers.living) == ([dead], [living])
        assert workers.next_seconds == pytest.approx(100, abs=15)
        assert await store.renew_lease(dead, {id: 1}, HOUR) == (False, [])
        assert (await store.lapse_workers(None)).dead == [dead]

    async def test_worker_that_asks_is_alive(self, store: TaskStore) -> None:
        worker_id = await register(store, lease_seconds=-1)
        workers = await store.lapse_workers(worker_id)

        assert (workers.dead, workers.living, workers.next_seconds) == ([], [], None)
        assert await store.renew_lease(worker_id, {}, HOUR) == (True, [])
        assert (await store.lapse_workers(None)).living == [worker_id]

    async def test_renewal_tells_what_is_lost(self, store: TaskStore) -> None:
        worker_id, other = await register(store), await register(store)
        kept, canceled, rescued, taken, again = ids = await insert(store, 5)
        await store.claim_tasks(worker_id, ids)
        await store.cancel_tasks([canceled])
        await store.release_tasks(worker_id, [rescued, taken, again])
        await claim(store, other, taken)
        await claim(store, worker_id, again)
        attempts = {**dict.fromkeys(ids, 1), new_id(): 1}
        is_renewed, lost = await store.renew_lease(worker_id, attempts, HOUR)

        assert is_renewed
        assert set(lost) == set(attempts) - {kept}
        assert rescued in lost

    async def test_retired_worker_keeps_nothing_alive(self, store: TaskStore) -> None:
        worker_id = await register(store)
        await store.retire_worker(worker_id)

        assert await store.renew_lease(worker_id, {}, HOUR) == (False, [])
        assert (await store.lapse_workers(None)).dead == [worker_id]

    async def test_forgotten_worker_is_gone(self, store: TaskStore) -> None:
        worker_id = await register(store)
        await store.forget_workers([worker_id, new_id()])
        workers = await store.lapse_workers(None)

        assert (workers.dead, workers.living) == ([], [])
        assert await store.renew_lease(worker_id, {}, HOUR) == (False, [])

    async def test_second_registration_does_not_raise_the_dead(self, store: TaskStore) -> None:
        worker_id = await register(store)
        await store.retire_worker(worker_id)
        await store.register_worker(worker_id, "host:1", HOUR)

        assert await store.renew_lease(worker_id, {}, HOUR) == (False, [])


class TestPublish:
    async def test_unpublished_tasks_are_published_once(self, store: TaskStore) -> None:
        ids = await insert(store, 3, is_published=False)

        assert sorted((await store.publish_due_tasks(ago(HOUR), 10)).ids) == ids
        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == []

    async def test_backlog_is_left_and_what_is_older_was_lost(self, store: TaskStore) -> None:
        (id,) = await insert(store)

        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == []
        assert (await store.publish_due_tasks(ago(0), 10)).ids == [id]

    async def test_scheduled_task_is_left_until_it_is_due(self, store: TaskStore) -> None:
        worker_id = await register(store)
        (id,) = await insert(store)
        await claim(store, worker_id, id)
        await finish(store, id, 1, outcome.retried(ERROR, HOUR))

        assert (await store.publish_due_tasks(ago(0), 10)).ids == []

    async def test_running_and_final_tasks_are_left(self, store: TaskStore) -> None:
        worker_id = await register(store)
        running, canceled = await insert(store, 2, is_published=False)
        await claim(store, worker_id, running)
        await store.cancel_tasks([canceled])
        await store.unpublish_tasks([running, canceled])

        assert (await store.publish_due_tasks(ago(0), 10)).ids == []

    async def test_unpublished_again(self, store: TaskStore) -> None:
        (id,) = await insert(store)
        await store.unpublish_tasks([id])

        assert (await store.publish_due_tasks(ago(HOUR), 10)).ids == [id]

    async def test_step_is_bounded(self, store: TaskStore) -> None:
        await insert(store, 3, is_published=False)

        assert len((await store.publish_due_tasks(ago(HOUR), 2)).ids) == 2
        assert len((await store.publish_due_tasks(ago(HOUR), 2)).ids) == 1


class TestDelete:
    async def test_oldest_final_tasks_go_in_steps(self, store: TaskStore) -> None:
        ids = [
            await finished(store, status)
            for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED)
        ]
        (waiting,) = await insert(store)

        assert await store.delete_finished_tasks(0, 2) == 2
        assert [task.id for task in await store.get_tasks([*ids, waiting])] == [ids[2], waiting]
        assert await store.delete_finished_tasks(0, 2) == 1
        assert await store.delete_finished_tasks(0, 2) == 0
        assert [task.id for task in await store.get_tasks([*ids, waiting])] == [waiting]

    async def test_young_ones_stay(self, store: TaskStore) -> None:
        id = await finished(store, Status.COMPLETED)

        assert await store.delete_finished_tasks(HOUR, 10) == 0
        assert await store.delete_finished_tasks(1e10, 10) == 0
        assert [task.id for task in await store.get_tasks([id])] == [id]


class TestMeasure:
    async def test_statuses_are_counted(self, store: TaskStore) -> None:
        assert (await store.measure()).tasks == dict.fromkeys(Status, 0)
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED):
            await finished(store, status)
        ids = await insert(store, 2)
        await claim(store, await register(store), ids[0])
        await store.fold_tally()

        assert (await store.measure()).tasks == dict.fromkeys(Status, 1)
        await store.delete_finished_tasks(0, 10)
        found = (await store.measure()).tasks
        assert {status for status in Status if found[status]} == {"pending", "processing"}

    async def test_oldest_due_task_has_an_age(self, store: TaskStore) -> None:
        assert (await store.measure()).oldest_pending_seconds == 0
        await insert(store)
        age = (await store.measure()).oldest_pending_seconds

        assert 0 <= age < 10
        assert (await store.measure()).oldest_pending_seconds > age


async def test_ping(store: TaskStore) -> None:
    await store.ping()


async def test_nothing_to_do_is_nothing_done(store: TaskStore) -> None:
    worker_id = await register(store)

    assert await store.insert_tasks([]) == []
    assert await store.claim_tasks(worker_id, []) == []
    assert await store.complete_tasks([]) == []
    assert await store.finish_tasks([]) == []
    assert await store.find_finished_tasks([]) == []
    assert await store.cancel_tasks([]) == []
    assert await store.rescue_tasks([], 10) == []
    assert await store.release_tasks(worker_id) == []
    assert await store.get_tasks([]) == []
    await store.unpublish_tasks([])
    await store.forget_workers([])
