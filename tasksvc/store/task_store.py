"""The tasks in PostgreSQL: one method, one named query; what takes tasks takes many."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
import orjson

from tasksvc.domain.attempt import Attempt, AttemptOutcome
from tasksvc.domain.errors import DuplicateKey
from tasksvc.domain.outcome import FREE_RELEASES, LONGEST_RELEASE_SECONDS, RunResult
from tasksvc.domain.task import (
    DEFAULT_KIND,
    DEFAULT_LANE,
    LIVE,
    CanceledTask,
    Claim,
    Filter,
    Hold,
    IdempotencyRecord,
    Lane,
    NewTask,
    Priority,
    Progress,
    Status,
    Task,
)
from tasksvc.store.arrays import plain_array, text_array
from tasksvc.store.database import Database
from tasksvc.store.documents import documents
from tasksvc.store.queries import SecondsSince
from tasksvc.store.store import Store


@dataclass(frozen=True, slots=True)
class Measures:
    """What only PostgreSQL knows."""

    tasks: Mapping[str, int]
    """How many tasks are in each status, over the whole table."""
    oldest_pending_seconds: float
    """How long the oldest task that could start has waited; 0 when none waits."""
    paused_queues: int


ONLY_DEFAULT: Mapping[str, int | None] = {DEFAULT_KIND: None}


class Path(StrEnum):
    """How to look for tasks: which of them are met."""

    ALL = "all"
    FAILED = "failed"
    CANCELED = "canceled"
    KIND = "kind"
    """Those of the filter's kind, which is not the default."""
    QUEUE = "queue"
    """Those of the filter's queue."""
    LIVE = "live"
    """Those that are not final."""
    PROCESSING = "processing"

    @property
    def is_ordered(self) -> bool:
        """They are met newest first."""
        return self not in (Path.LIVE, Path.PROCESSING)


class Found(NamedTuple):
    """What was met along a path."""

    ids: Sequence[str]
    """Of those that pass the filter, newest first."""
    is_last: bool
    """There are no more, unless as many were found as were wanted. If the path is not ordered, the
    ids are good for something only then."""
    last: str | None
    """The oldest of all that were met."""


class Inserted(NamedTuple):
    """What became of new tasks. One whose key is there already, or that has lost a race for its
    unique key, has no part in it."""

    tasks: list[Task]
    """Those that were made, in order; each as it was made: pending."""
    claims: list[Claim]
    """Of those that the worker holds now."""
    live_ids: dict[str, str]
    """By the ids of those that were not made: the ids of the live tasks with their unique keys."""


@dataclass(frozen=True, slots=True)
class Due:
    """What the relay has to do, and when it has to look again."""

    ids: Sequence[str]
    """To be published now, in this order."""
    expired: Sequence[str]
    """Failed just now, since they could not start in time."""
    next_seconds: float | None
    """Until the next task could be due or expire; None when none waits for its time."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The other workers, by their ids."""

    dead: Sequence[str]
    living: Sequence[str]
    next_seconds: float | None
    """Until the next lease could run out; None when no worker lives."""


_LONG = 500_000
"""Characters that take a millisecond or two."""

_SESSIONS = (
    "insert",
    "options",
    "get",
    "search",
    "step",
    "cancel",
    "claim",
    "progress",
    "finish",
    "lease",
    "duty",
    "watch",
)


class TaskStore(Store):
    """Every method raises StoreUnavailable when PostgreSQL is away or too slow. Ids are UUIDs as
    text; the caller has checked them.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database, "tasks.sql", _SESSIONS)

    @property
    def up_seconds(self) -> float:
        """How long PostgreSQL has answered without a break, as far as is known here."""
        return self._database.up_seconds

    @property
    def claims_run_again(self) -> int:
        """How many statements that may claim were sent twice: the first one's claim may still come,
        and the second knows nothing of it."""
        return sum(self._sessions[name].runs_again for name in ("claim", "insert", "options"))

    # A task's life.

    async def insert_tasks(self, tasks: Sequence[NewTask]) -> list[Task]:
        """The tasks as they were committed, in order.

        Raises DataRejected when one of them does not fit the database; none is kept then.
        """
        try:
            rows = await self._run("insert", "insert_tasks", **_new(tasks))
        except DuplicateKey:
            return await self._found(tasks)
        created: dict[str, Any] = dict(rows)
        status = Status.PENDING
        return [Task(task.id, task.content, status, created[task.id], None) for task in tasks]

    async def insert_held_tasks(
        self, tasks: Sequence[NewTask], hold: Hold
    ) -> tuple[list[Task], list[Claim]]:
        """The same, and the claims of those that the worker holds now. What a task is called is
        what it was made as: pending."""
        try:
            rows = await self._run(
                "insert",
                "insert_held_tasks",
                worker_id=hold.worker_id,
                epoch=hold.epoch,
                held=plain_array(task.id in hold.ids for task in tasks),
                **_new(tasks),
            )
        except DuplicateKey:
            return await self._found(tasks), []
        created = {id: (created_at, is_held) for id, created_at, is_held in rows}
        status = Status.PENDING
        return [Task(task.id, task.content, status, created[task.id][0], None) for task in tasks], [
            task.first_claim() for task in tasks if created[task.id][1]
        ]

    async def insert_tasks_with_options(
        self, tasks: Sequence[NewTask], hold: Hold | None = None
    ) -> Inserted:
        """Inserts tasks that have options or a key, unless something of theirs is taken.

        Raises DataRejected when one of them does not fit the database; none is kept then.
        """
        rows = await self._run(
            "options",
            "insert_tasks_with_options",
            worker_id=hold and hold.worker_id,
            epoch=hold and hold.epoch,
            tasks=await _documents(tasks, hold.ids if hold else ()),
        )
        made, held, live_ids = {}, set(), {}
        for id, live_id, created_at, run_at, is_held in rows:
            if live_id is not None:
                live_ids[id] = live_id
                continue
            made[id] = (created_at, run_at)
            if is_held:
                held.add(id)
        return Inserted(
            [_made(task, *made[task.id]) for task in tasks if task.id in made],
            [task.first_claim() for task in tasks if task.id in held],
            live_ids,
        )

    async def find_keyed_tasks(self, keys: Sequence[str]) -> list[IdempotencyRecord]:
        """The tasks that were created under these keys, in no order."""
        rows = await self._run("options", "find_keyed_tasks", keys=text_array(keys))
        return [
            IdempotencyRecord(key, fingerprint, _task(*row), is_new)
            for key, fingerprint, is_new, *row in rows
        ]

    async def forget_orphaned_keys(self, keys: Sequence[str]) -> None:
        """Those of the keys that no task was created under."""
        await self._run("options", "forget_orphaned_keys", keys=text_array(keys))

    async def unpublish_tasks(self, ids: Sequence[str]) -> None:
        await self._run("duty", "unpublish_tasks", ids=plain_array(ids))

    async def find_lanes(self) -> set[Lane]:
        """The lanes of all tasks that are not final."""
        rows = await self._run("duty", "find_lanes")
        return {Lane(kind, Priority(priority)) for kind, priority in rows}

    async def publish_due_tasks(
        self, lost_before: float, limit: int, lane: Lane = DEFAULT_LANE
    ) -> Due:
        """Publishes what is not published, or was published before `lost_before`
        (`time.monotonic`), and fails what expired. All of one lane."""
        ((ids, expired, next_seconds),) = await self._run(
            "duty",
            "publish_due_tasks",
            lost_after_seconds=SecondsSince(lost_before),
            limit=limit,
            **lane._asdict(),
        )
        return Due(ids, expired, next_seconds)

    async def find_due_tasks(
        self, limit: int, kinds: Iterable[str] = (DEFAULT_KIND,)
    ) -> list[tuple[str, str]]:
        """At most `limit` due tasks of these kinds, those of the highest priority first: the id and
        the kind of each."""
        rows = await self._run("duty", "find_due_tasks", limit=limit, kinds=text_array(kinds))
        return [(id, kind) for id, kind in rows]

    async def claim_tasks(self, worker_id: str, ids: Sequence[str], epoch: int = 0) -> list[Claim]:
        """Those of the tasks that the worker holds now; none if it has begun a later epoch."""
        rows = await self._run(
            "claim", "claim_tasks", worker_id=worker_id, ids=plain_array(ids), epoch=epoch
        )
        return [Claim(*row) for row in rows]

    async def fail_unreadable_tasks(self, worker_id: str, ids: Sequence[str]) -> None:
        """Those that the worker can't claim, or has claimed, since they can't be read."""
        await self._run("claim", "fail_unreadable_tasks", worker_id=worker_id, ids=plain_array(ids))

    async def unpublish_refused_tasks(self, worker_id: str, ids: Sequence[str]) -> int:
        """Those of kinds that the worker does not serve, or of queues; how many."""
        rows = await self._run(
            "claim", "unpublish_refused_tasks", worker_id=worker_id, ids=plain_array(ids)
        )
        return len(rows)

    async def keep_progress(self, progresses: Sequence[Progress]) -> None:
        """One for each task, at most."""
        await self._run(
            "progress",
            "keep_progress",
            ids=plain_array(each.id for each in progresses),
            attempts=plain_array(each.attempt for each in progresses),
            progresses=text_array(
                orjson.dumps({"fraction": each.fraction, "message": each.message}).decode()
                for each in progresses
            ),
        )

    async def complete_tasks(self, finishes: Sequence[RunResult]) -> list[str]:
        """The ids whose attempt was the current one, and so was written."""
        rows = await self._run(
            "finish",
            "complete_tasks",
            ids=plain_array(finish.id for finish in finishes),
            attempts=plain_array(finish.attempt for finish in finishes),
            results=text_array(finish.outcome.result for finish in finishes),
        )
        return [id for (id,) in rows]

    async def finish_tasks(self, finishes: Sequence[RunResult]) -> list[str]:
        """The same, whatever the attempts came to. Only what is no completion has a history."""
        rest = [finish for finish in finishes if finish.outcome.status is not Status.COMPLETED]
        if not rest:
            return await self.complete_tasks(finishes)
        outcomes = [finish.outcome for finish in rest]
        rows = await self._run(
            "finish",
            "finish_tasks",
            **_attempts(rest),
            charges=plain_array(int(outcome.is_charged) for outcome in outcomes),
            delays=plain_array(outcome.delay_seconds for outcome in outcomes),
            errors=text_array(
                None if outcome.error is None else orjson.dumps(outcome.error).decode()
                for outcome in outcomes
            ),
            tracebacks=text_array(outcome.traceback for outcome in outcomes),
        )
        written = [id for (id,) in rows]
        if len(rest) < len(finishes):
            completed = [each for each in finishes if each.outcome.status is Status.COMPLETED]
            written += await self.complete_tasks(completed)
        return written

    async def find_finished_tasks(self, finishes: Sequence[RunResult]) -> list[str]:
        rows = await self._run("finish", "find_finished_tasks", **_attempts(finishes))
        return [id for (id,) in rows]

    async def begin_epoch(self, worker_id: str, epoch: int) -> int | None:
        """Refuses claims of the worker's earlier epochs that may still come. Returns the epoch that
        holds now; None when the worker was declared dead."""
        # On the session of the claims: it is their line that has to be empty.
        rows = await self._run("claim", "begin_epoch", worker_id=worker_id, epoch=epoch)
        return rows[0][0] if rows else None

    async def release_tasks(self, worker_id: str, ids: Iterable[str] | None = None) -> list[str]:
        """Hands back what the worker holds, or those of the ids that it holds. Returns their ids.

        The ids are those of claims in doubt, and are handed back by the session of the claims.
        """
        rows = await self._run(
            "lease" if ids is None else "claim",
            "release_tasks",
            worker_id=worker_id,
            ids=None if ids is None else plain_array(ids),
            free=FREE_RELEASES,
            longest=LONGEST_RELEASE_SECONDS,
        )
        return [id for (id,) in rows]

    async def cancel_tasks(
        self,
        ids: Sequence[str],
        statuses: Iterable[Status] = LIVE,
        *,
        with_contents: bool = True,
        session: str = "cancel",
    ) -> list[CanceledTask]:
        """Those that were in one of the live statuses; with empty contents, if they are not
        wanted."""
        rows = await self._run(
            session,
            "cancel_tasks",
            ids=plain_array(ids),
            statuses=plain_array(statuses),
            with_contents=with_contents,
        )
        return [CanceledTask(_task(*row), worker_id) for *row, worker_id in rows]

    async def rescue_tasks(self, worker_ids: Sequence[str], limit: int) -> list[tuple[str, Status]]:
        """What the lapsed workers held, and where each went."""
        rows = await self._run(
            "duty", "rescue_tasks", worker_ids=plain_array(worker_ids), limit=limit
        )
        return [(id, Status(status)) for id, status in rows]

    async def delete_finished_tasks(self, retention_seconds: float, limit: int) -> int:
        rows = await self._run(
            "duty", "delete_finished_tasks", retention_seconds=retention_seconds, limit=limit
        )
        return len(rows)

    async def retry_tasks(
        self, new_ids: Mapping[str, str], *, is_published: bool, is_again: bool
    ) -> dict[str, Lane | None]:
        """Those of the tasks that are final, and were not retried before unless it `is_again`;
        each with the lane of the new one that was made of it: of none, while its unique key is
        taken."""
        rows = await self._run(
            "step",
            "retry_tasks",
            ids=plain_array(new_ids),
            new_ids=plain_array(new_ids.values()),
            is_published=is_published,
            is_again=is_again,
        )
        return {id: Lane(*lane) if is_made else None for id, is_made, *lane in rows}

    async def find_tasks(
        self,
        path: Path,
        filter: Filter,
        before: str,
        floor: str,
        window: int,
        limit: int,
        session: str = "search",
    ) -> Found:
        """At most `limit` of the tasks from `floor` up to `before` that pass the filter, among
        `window` that are met along the path."""
        ((ids, is_last, last),) = await self._run(
            session,
            "find_tasks",
            path=path,
            before=before,
            floor=floor,
            window=window,
            limit=limit,
            **filter._asdict() | {"statuses": plain_array(filter.statuses)},
        )
        return Found(ids, is_last, last)

    async def weigh_tasks(self, ids: Sequence[str]) -> dict[str, int]:
        """The bytes of the content of each that is there, as it is kept."""
        return dict(await self._run("step", "weigh_tasks", ids=plain_array(ids)))

    async def forget_keys(self, seconds: float, limit: int) -> int:
        """Forgets some of the keys that are older than that; how many."""
        return len(await self._run("duty", "forget_keys", seconds=seconds, limit=limit))

    async def get_tasks(self, ids: Sequence[str], session: str = "get") -> list[Task]:
        """Those that are there, in no order."""
        return [_task(*row) for row in await self._run(session, "get_tasks", ids=plain_array(ids))]

    async def get_secret(self) -> bytes:
        """32 random bytes, the same for all processes of this database."""
        ((value,),) = await self._run("get", "get_secret")
        return bytes(value)

    async def get_attempts(self, id: str, limit: int) -> list[Attempt]:
        """The newest runs of a task, in their order."""
        rows = await self._run("search", "get_attempts", id=id, limit=limit)
        return [_attempt(*row) for row in rows]

    async def _found(self, tasks: Sequence[NewTask]) -> list[Task]:
        """What a first try has inserted, all of them, whose answer was lost."""
        found = {task.id: task for task in await self.get_tasks([task.id for task in tasks])}
        return [found[task.id] for task in tasks]

    # The holders of tasks.

    async def register_worker(
        self,
        worker_id: str,
        name: str,
        lease_seconds: float,
        kinds: Mapping[str, int | None] = ONLY_DEFAULT,
    ) -> None:
        """`kinds` are those that it serves, each with its max_attempts."""
        await self._run(
            "lease",
            "register_worker",
            worker_id=worker_id,
            name=name,
            lease_seconds=lease_seconds,
            kinds=text_array(kinds),
            max_attempts=text_array(None if most is None else str(most) for most in kinds.values()),
        )

    async def find_kinds(self, kinds: Sequence[str]) -> dict[str, int | None]:
        """Those of the kinds that some worker serves, or has served, each with its max_attempts."""
        return dict(await self._run("watch", "find_kinds", kinds=text_array(kinds)))

    async def forget_kinds(self, seconds: float) -> None:
        """Those that no worker has served for so long, and of which no task is live."""
        await self._run("duty", "forget_kinds", seconds=seconds)

    async def renew_lease(
        self, worker_id: str, attempts: Mapping[str, int], lease_seconds: float
    ) -> tuple[bool, list[str]]:
        """Whether the worker still is one, and which of its running tasks are no longer its own."""
        renewed = await self._run(
            "lease", "renew_lease", worker_id=worker_id, lease_seconds=lease_seconds
        )
        if not renewed or not attempts:
            return bool(renewed), []
        return True, await self.find_lost_tasks(worker_id, attempts)

    async def find_lost_tasks(self, worker_id: str, attempts: Mapping[str, int]) -> list[str]:
        rows = await self._run(
            "watch",
            "find_lost_tasks",
            worker_id=worker_id,
            ids=plain_array(attempts),
            attempts=plain_array(attempts.values()),
        )
        return [id for (id,) in rows]

    async def lapse_workers(self, worker_id: str | None) -> Workers:
        """Declares workers dead whose lease ran out, and returns all, as seen by `worker_id`."""
        ((dead, living, next_seconds),) = await self._run(
            "duty", "lapse_workers", worker_id=worker_id
        )
        return Workers(dead, living, next_seconds)

    async def retire_worker(self, worker_id: str) -> None:
        await self._run("lease", "retire_worker", worker_id=worker_id)

    async def forget_workers(self, worker_ids: Sequence[str]) -> None:
        await self._run("lease", "forget_workers", worker_ids=plain_array(worker_ids))

    # What operators see.

    async def measure(self) -> Measures:
        ((tasks, age, paused_queues),) = await self._run("search", "measure")
        return Measures(
            {status: tasks.get(status, 0) for status in Status}, age or 0.0, paused_queues
        )

    async def fold_tally(self) -> None:
        await self._run("duty", "fold_tally")

    async def ping(self) -> None:
        await self._run("watch", "ping")


_STATUS = {status.value: status for status in Status}
"""Status(word) takes five times as long."""


def _task(
    id: str,
    content: str,
    status: str,
    created_at: datetime,
    updated_at: datetime | None,
    error: dict[str, Any] | None,
    kind: str | None,
    priority: str | None,
    queue: str | None,
    progress: dict[str, Any] | None,
    result: str | None,
    *others: Any,
) -> Task:
    return Task(
        id,
        content,
        _STATUS[status],
        created_at,
        updated_at,
        error,
        kind,
        priority,
        queue,
        progress,
        # As it was written: no code here has to understand the JSON that a handler returned.
        None if result is None else msgspec.Raw(result.encode()),
        *others,
    )


async def _documents(tasks: Sequence[NewTask], held: Collection[str] = ()) -> str:
    """As JSON. To write a long one takes as long as to send it: the loop goes round between."""
    text = documents(tasks, held)
    if len(text) > _LONG:
        await asyncio.sleep(0)
    return text


def _attempt(
    attempt: int,
    started_at: datetime,
    ended_at: datetime | None,
    worker: str | None,
    outcome: str | None,
    *others: Any,
) -> Attempt:
    ended = None if outcome is None else AttemptOutcome(outcome)
    return Attempt(attempt, started_at, ended_at, worker, ended, *others)


def _made(task: NewTask, created_at: datetime, run_at: datetime | None) -> Task:
    """The task as it was made. In the order of the fields, which is three times as fast."""
    options = task.options
    return Task(
        task.id,
        task.content,
        Status.PENDING,
        created_at,
        None,
        None,
        None if options.kind == DEFAULT_KIND else options.kind,
        None if options.priority == Priority.NORMAL else options.priority,
        options.queue,
        None,
        None,
        run_at,
        options.timeout_seconds,
        options.expires_at,
        None,
        None,
        None,
        None,
        options.unique_key,
    )


def _new(tasks: Sequence[NewTask]) -> dict[str, str]:
    """The columns of plain tasks."""
    return {
        "ids": plain_array(task.id for task in tasks),
        "contents": text_array(task.content for task in tasks),
        "max_attempts": plain_array(task.max_attempts for task in tasks),
        "traceparents": text_array(task.traceparent for task in tasks),
        "published": plain_array(task.is_published for task in tasks),
    }


def _attempts(finishes: Sequence[RunResult]) -> dict[str, str]:
    return {
        "ids": plain_array(finish.id for finish in finishes),
        "attempts": plain_array(finish.attempt for finish in finishes),
        "statuses": plain_array(finish.outcome.status for finish in finishes),
    }
