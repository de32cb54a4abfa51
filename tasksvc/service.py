"""What the service can do with a task. Every change of a status passes here.

The only place that uses store and stream together: the store is the truth and is written first, the
stream is a doorbell and may fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
import uuid_utils

from tasksvc.domain.attempt import Attempt, AttemptOutcome
from tasksvc.domain.errors import (
    KeyReused,
    LeaseLost,
    StoreUnavailable,
    StreamUnavailable,
    TaskIsFinal,
    TaskIsNotFinal,
    TaskNotFound,
    TaskServiceError,
    Unavailable,
    UniqueKeyTaken,
    UnknownKind,
)
from tasksvc.domain.outcome import Finish
from tasksvc.domain.task import (
    DEFAULT_KIND,
    LIVE,
    NO_OPTIONS,
    Canceled,
    Claim,
    Created,
    Filter,
    Keyed,
    Lane,
    NewTask,
    Options,
    Page,
    Progress,
    Status,
    Step,
    Task,
)
from tasksvc.metrics import Metrics
from tasksvc.publisher import Publisher
from tasksvc.store.group import Group
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_BATCH = 1000
"""Tasks in one step of what is not bounded by a group: a rescue, a clean-up."""

_WINDOW = 10_000
"""Tasks that a page, or a step, with filters looks at."""

_CREATE_TRIES = 10
"""Each but the last lost a race for a unique key, to a task that was final before the next."""

_FIRST_ID = str(UUID(int=0))
_LAST_ID = str(UUID(int=(1 << 128) - 1))

_KINDS_SECONDS = 1.0
"""However often an unknown kind is asked for, PostgreSQL is not asked more often."""

_ATTEMPTS = 1000
"""Of one task, in one read: there is no bound to how often it may be handed back."""

_AFTER_FAILURE = {
    Status.PENDING: AttemptOutcome.RETRIED,
    Status.FAILED: AttemptOutcome.FAILED,
}
"""What a failed run is called, by what became of its task."""

_READ_SIZE = 100
"""Tasks in one read, at most: each may be as large as a request may be."""


def _seconds(since: datetime, until: datetime | None) -> float:
    """0 for a moment that has passed, or is none."""
    return 0.0 if until is None else max(0.0, (until - since).total_seconds())


def _floor(created_after: datetime | None) -> str:
    """The first id that a task could have which was created after that moment. Whoever made it may
    have had a clock that is an hour slow."""
    return _FIRST_ID if created_after is None else _id_at(created_after.timestamp() - 3600)


def _ceiling(created_before: datetime | None) -> str:
    """And one that no task has which was created before, if no clock is an hour fast."""
    return _LAST_ID if created_before is None else _id_at(created_before.timestamp() + 3600)


def _id_at(timestamp: float) -> str:
    """The first id of that moment."""
    return str(UUID(int=max(0, int(timestamp * 1000)) << 80))


def _replayed(new: NewTask, first: Keyed) -> Created | KeyReused:
    """What comes of a create whose key was used before."""
    if first.fingerprint != new.fingerprint:
        return KeyReused()
    return Created(first.task, is_replayed=True, is_new=first.is_new)


def _made(created: Created | TaskServiceError) -> Created:
    """Raises what a create came to instead."""
    if isinstance(created, TaskServiceError):
        raise created
    return created


def _weight(task: NewTask) -> int:
    """Large contents count for many, so that a group and the waiting line are bounded in bytes."""
    return 1 + len(task.content) // 4096


class TaskService:
    """create, get, cancel for people and programs; claim, finish and the duties for work.

    Every method raises Unavailable when PostgreSQL is away or the waiting line is full, and what it
    names beside that.
    """

    def __init__(
        self,
        store: TaskStore,
        stream: TaskStream,
        metrics: Metrics,
        *,
        max_attempts: int,
        lease_seconds: float,
        lost_margin_seconds: float,
        group_size: int,
        max_waiting: int,
        kinds: Mapping[str, int | None] | None = None,
    ) -> None:
        """`kinds` are those that this process serves, each with its `max_attempts`."""
        self._kinds: Mapping[str, int | None] = kinds or {DEFAULT_KIND: None}
        self._others_kinds: set[str] = set()
        self._kinds_asked_at = float("-inf")
        self._store = store
        self._stream = stream
        self._metrics = metrics
        self._attempts_failed = {
            (kind, status): metrics.attempts_failed(kind, then)
            for kind in self._kinds
            for status, then in _AFTER_FAILURE.items()
        }
        self._max_attempts = max_attempts
        self._default_attempts = self._kinds.get(DEFAULT_KIND) or max_attempts
        self._lease_seconds = lease_seconds
        self._publisher = Publisher(store, stream, metrics, lost_margin_seconds=lost_margin_seconds)

        self.worker_id: str | None = None
        """Who this process is while it holds a lease."""
        self._held: dict[str, int] = {}  # id -> attempt; 0 while the claim is under way
        self._doubtful_until = 0.0
        self._must_settle = False
        self._unasked_at = float("-inf")  # when the workers could not be asked for
        self.next_due_seconds: float | None = None
        self.on_lost: Callable[[Sequence[str]], object] = lambda ids: None
        """Told of held tasks that are this worker's no longer: canceled, or rescued."""
        self.on_due_in: Callable[[float], object] = lambda seconds: None
        """Told that a task will have to be published after so many seconds."""

        self._background: set[asyncio.Task[None]] = set()

        bounds: dict[str, Any] = {"max_size": group_size, "max_waiting": max_waiting}
        self._creates: Group[NewTask, Task] = Group(
            "create", self._insert, observe=metrics.group_size("create"), weigh=_weight, **bounds
        )
        self._special_creates: Group[NewTask, Created | TaskServiceError] = Group(
            "special",
            self._insert_special,
            observe=metrics.group_size("special"),
            weigh=_weight,
            **bounds,
        )
        self._gets: Group[str, Task | None] = Group(
            "get",
            self._get,
            observe=metrics.group_size("get"),
            max_size=min(group_size, _READ_SIZE),
            max_waiting=max_waiting,
        )
        self._cancels: Group[str, Canceled | Task | None] = Group(
            "cancel", self._cancel, observe=metrics.group_size("cancel"), **bounds
        )
        self._claims: Group[str, Claim | None] = Group(
            "claim", self._claim, observe=metrics.group_size("claim"), **bounds
        )
        self._progresses: Group[Progress, None] = Group(
            "progress", self._keep_progress, observe=metrics.group_size("progress"), **bounds
        )
        self._finishes: Group[Finish, bool] = Group(
            "finish", self._finish, observe=metrics.group_size("finish"), **bounds
        )

        self._groups: tuple[Group[Any, Any], ...] = (
            self._creates,
            self._special_creates,
            self._gets,
            self._cancels,
            self._claims,
            self._progresses,
            self._finishes,
        )

    # For people and programs.

    async def check_kind(self, kind: str) -> None:
        """Raises UnknownKind when nobody serves it."""
        if kind in self._kinds:
            return
        if time.monotonic() - self._kinds_asked_at >= _KINDS_SECONDS:
            self._others_kinds = await self._store.find_kinds()
            self._kinds_asked_at = time.monotonic()
        if kind not in self._others_kinds:
            raise UnknownKind

    def create(
        self, content: str, traceparent: str | None = None, options: Options = NO_OPTIONS
    ) -> Awaitable[Task]:
        """The task, committed. The stream is told afterwards, and need not be there. With a unique
        key it may be the live task that had it already; `create_once` says so.

        Raises ContentRefused when the database does not take the content.
        """
        if options == NO_OPTIONS:
            is_published = self._stream.is_open()
            id = str(uuid_utils.uuid7())
            return self._creates.join(
                NewTask(id, content, self._default_attempts, traceparent, is_published)
            )
        return self._create_special(content, traceparent, options)

    async def create_once(
        self,
        content: str,
        traceparent: str | None,
        options: Options,
        *,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> Created:
        """The same, and once for a key: a later create with it gets the task of the first.

        Raises KeyReused too: the first had another fingerprint.
        """
        task = self.new_task(content, traceparent, options)
        return _made(
            await self._special_creates.join(task._replace(key=key, fingerprint=fingerprint))
        )

    async def create_many(self, orders: Sequence[tuple[str, Options]]) -> list[Task]:
        """All of the tasks, in order, or none of them.

        Raises ContentRefused when the database does not take one of the contents.
        """
        tasks = [self.new_task(content, None, options) for content, options in orders]
        self._special_creates.check_room()
        return [_made(each).task for each in await self._special_creates.join_all(tasks)]

    async def retry(self, id: str) -> Task:
        """A new task with the content and the settings of a final one; each names the other.

        Raises TaskNotFound, TaskIsNotFinal, and UniqueKeyTaken.
        """
        new_id = str(uuid_utils.uuid7())
        made = await self._retry({id: new_id}, is_again=True)
        found = {task.id: task for task in await self._store.get_tasks([id, new_id])}
        if new_id in found:
            return found[new_id]
        if id not in found:
            raise TaskNotFound
        if id in made:
            raise UniqueKeyTaken
        raise TaskIsNotFinal(found[id].status)

    async def retry_many(
        self, filter: Filter, before: str | None, limit: int, *, is_dry: bool
    ) -> Step:
        """The same for a step of the tasks that pass the filter, all of it or nothing: failed ones,
        unless it says which. Left out are those of which another was made before, or whose unique
        key is taken."""
        filter = filter._replace(statuses=filter.statuses or (Status.FAILED,), is_unretried=True)
        ids, next_before = await self._find(filter, before, limit)
        matched = len(ids)
        if ids and not is_dry:
            # The oldest first, as they were created.
            new_ids = {id: str(uuid_utils.uuid7()) for id in reversed(ids)}
            made = await self._retry(new_ids, is_again=False)
            ids = [id for id in ids if made.get(id)]
        return Step(matched, ids, next_before)

    async def find(self, filter: Filter, before: str | None, limit: int) -> Page:
        """A page of the tasks that pass the filter, newest first, before an id."""
        ids, next_before = await self._find(filter, before, limit)
        found = {task.id: task for task in await self._store.get_tasks(ids)}
        # One that was deleted in between is no longer there.
        return Page([found[id] for id in ids if id in found], next_before)

    async def get(self, id: str) -> Task:
        """Raises TaskNotFound."""
        task = await self._gets.join(id)
        if task is None:
            raise TaskNotFound
        return task

    async def get_attempts(self, id: str) -> list[Attempt]:
        """The runs of a task, in their order; of very many the newest.

        Raises TaskNotFound.
        """
        attempts = await self._store.get_attempts(id, _ATTEMPTS)
        if not attempts:
            await self.get(id)  # is it there at all?
        return attempts

    async def cancel(self, id: str) -> Task:
        """The task, canceled for good; its handler is being stopped.

        Raises TaskNotFound, and TaskIsFinal when it was too late.
        """
        found = await self._cancels.join(id)
        if found is None:
            raise TaskNotFound
        if isinstance(found, Task):
            raise TaskIsFinal(found.status)
        return found.task

    async def cancel_many(
        self, filter: Filter, before: str | None, limit: int, *, is_dry: bool
    ) -> Step:
        """The same for a step of the live tasks that pass the filter, all of it or nothing."""
        filter = filter._replace(statuses=filter.statuses or LIVE)
        ids, next_before = await self._find(filter, before, limit)
        matched = len(ids)
        if ids and not is_dry:
            canceled = await self._store.cancel_tasks(ids, filter.statuses, with_contents=False)
            self._stop_handlers(canceled)
            stopped = {each.task.id for each in canceled}
            ids = [id for id in ids if id in stopped]
        return Step(matched, ids, next_before)

    # For schedules.

    def new_task(self, content: str, traceparent: str | None, options: Options) -> NewTask:
        """A task with an id, on its way into the store."""
        # The relay publishes what has to wait for its time.
        is_published = self._stream.is_open(options.lane) and not options.waits
        return NewTask(
            str(uuid_utils.uuid7()),
            content,
            self._attempts(options),
            traceparent,
            is_published,
            options,
        )

    def publish_soon(self, tasks: Iterable[NewTask]) -> None:
        """Tells the stream of tasks that have just been committed."""
        for task in tasks:
            if task.is_published:
                self._publisher.soon([task.id], task.options.lane)

    # For operators.

    async def ping(self) -> None:
        """Whether PostgreSQL answers."""
        await self._store.ping()

    async def measure(self) -> None:
        """Brings the metrics that others have to be asked for up to date."""
        try:
            measures = await self._store.measure()
            self._metrics.set_store(
                (measures.tasks, measures.oldest_pending_seconds, measures.paused_queues)
            )
        except Unavailable:
            self._metrics.set_store(None)
        try:
            self._metrics.set_stream(await self._stream.measure())
        except Unavailable:
            self._metrics.set_stream(None)
        self._metrics.set_running(len(self.held))

    # For work.

    @property
    def held(self) -> dict[str, int]:
        """The tasks that this process holds, with their attempts."""
        return {id: attempt for id, attempt in self._held.items() if attempt}

    async def claim(self, ids: Sequence[str]) -> list[Claim]:
        """Those of the ids that this worker holds from now on; the rest is nobody's concern here:
        final, held elsewhere, not due, or held here already."""
        wanted = [id for id in dict.fromkeys(ids) if id not in self._held]
        if not wanted:
            return []
        self._held.update(dict.fromkeys(wanted, 0))
        claims: list[Claim] = []
        try:
            claims = [claim for claim in await self._claims.join_all(wanted) if claim is not None]
        except BaseException:
            self._doubt()
            raise
        finally:
            for id in wanted:
                self._held.pop(id, None)
            self._held.update((claim.id, claim.attempt) for claim in claims)
        for claim in claims:
            self._metrics.task_wait_seconds[claim.priority](max(0.0, claim.waited_seconds))
        return claims

    async def find_due(self, limit: int) -> list[str]:
        """Tasks to claim while there is no stream."""
        return await self._store.find_due_tasks(limit, self._kinds)

    async def finish(self, finishes: Sequence[Finish]) -> None:
        """Writes what the attempts came to, where they are still the current ones."""
        written = await self._finishes.join_all(finishes)
        for finish, is_written in zip(finishes, written, strict=True):
            self.drop(finish.id)
            self._count(finish, is_written)
            if finish.outcome.status is Status.PENDING:
                self.on_due_in(finish.outcome.delay_seconds)

    async def hand_on(self, ids: Sequence[str]) -> None:
        """Those of the ids that this process can't start are told again when it is time: of kinds
        that it does not serve, or of queues that let none start."""
        if self.worker_id is not None and await self._store.unpublish_refused_tasks(
            self.worker_id, ids
        ):
            self.on_due_in(0.0)  # a queue may have got room since

    async def report(self, claim: Claim, fraction: float, message: str) -> None:
        """Keeps how far a run has come, if it is still the current one. Raises nothing when
        PostgreSQL is away: a run must not fail for what is only said about it."""
        progress = Progress.of(claim, fraction, message)
        with suppress(Unavailable):
            await self._progresses.join(progress)

    def drop(self, id: str) -> None:
        """This process no longer holds the task."""
        self._held.pop(id, None)

    # The duties.

    async def register(self) -> None:
        """Makes this process a worker, with a lease."""
        worker_id = str(uuid_utils.uuid7())
        name = f"{socket.gethostname()}:{os.getpid()}"
        await self._store.register_worker(worker_id, name, self._lease_seconds, self._kinds)
        self.worker_id = worker_id
        log.info("Registered", action="registered", worker_id=worker_id)

    async def renew_lease(self) -> int:
        """How many of the held tasks turned out to be no longer this worker's.

        Raises LeaseLost when the worker was declared dead: all of them are lost then.
        """
        held = self.held
        if self.worker_id is None:
            raise LeaseLost
        try:
            # A connection that hangs must not cost the lease: there is time for another try.
            async with asyncio.timeout(self._lease_seconds / 3):
                is_renewed, lost = await self._store.renew_lease(
                    self.worker_id, held, self._lease_seconds
                )
        except TimeoutError:
            raise StoreUnavailable from None
        if not is_renewed:
            self.on_lost(list(held))
            raise LeaseLost
        # What was finished in the meantime is not lost.
        lost = [id for id in lost if self._held.get(id) == held[id]]
        self.on_lost(lost)
        if time.monotonic() < self._doubtful_until:
            self._must_settle = True
            self._spawn(self._settle())
        return len(lost)

    async def publish_due(self) -> int:
        """Publishes due tasks that are not in the stream, and fails those that expired; how many.

        Afterwards `next_due_seconds` tells when there could be more.
        """
        count, self.next_due_seconds = await self._publisher.publish_due()
        return count

    async def rescue(self) -> float | None:
        """Takes the tasks of dead workers back; the seconds until the next worker could be dead."""
        # While PostgreSQL was away, or its workers were locked, nobody could renew a lease. Who
        # lives has another one for it: an answer that it waits for may have to time out first.
        settled_seconds = min(self._store.up_seconds, time.monotonic() - self._unasked_at)
        if settled_seconds < self._lease_seconds:
            return self._lease_seconds - settled_seconds
        listeners = await self._listeners()
        try:
            workers = await self._store.lapse_workers(self.worker_id)
        except Unavailable:
            self._unasked_at = time.monotonic()
            raise
        if workers.dead:
            log.warning("Workers stopped answering", action="workers_lapsed", workers=workers.dead)
            await self._rescue_tasks(workers.dead)
            await self._store.forget_workers(workers.dead)
        # Who was there before the workers were asked, and is none of them, will not come back.
        for worker_id in listeners.difference(workers.living, [self.worker_id]):
            await self._abandon_entries(worker_id)
        if workers.dead:
            with suppress(StreamUnavailable):
                await self.publish_due()
        return workers.next_seconds

    async def delete_finished(self, retention_seconds: float) -> int:
        """Deletes a step of the final tasks that are older than that; how many."""
        return await self._store.delete_finished_tasks(retention_seconds, _BATCH)

    async def forget_keys(self, seconds: float) -> int:
        """Forgets a step of the keys that are older than that; how many."""
        return await self._store.forget_keys(seconds, _BATCH)

    async def fold_tally(self) -> None:
        await self._store.fold_tally()

    async def leave(self) -> None:
        """Hands back all that this worker still holds, and ends its lease. Nobody is charged."""
        worker_id, self.worker_id = self.worker_id, None
        if worker_id is None:
            return
        released = await self._store.release_tasks(worker_id)
        # A claim may be under way whose caller is gone. This waits for it, and none comes later.
        await self._store.retire_worker(worker_id)
        released += await self._store.release_tasks(worker_id)
        self._held.clear()
        if released:
            log.info("Handed back", action="released", tasks=len(released))
        await self._store.forget_workers([worker_id])
        await self._abandon_entries(worker_id)
        with suppress(StreamUnavailable):
            await self.publish_due()

    async def flush(self) -> None:
        """Waits until every group is written and every publication is tried."""
        for group in self._groups:
            await group.drain()
        await self._publisher.drain()
        while self._background:
            await asyncio.wait(self._background)

    # The groups: each takes many and gives one result for each.

    async def _insert(self, tasks: list[NewTask]) -> list[Task]:
        inserted = await self._store.insert_tasks(tasks)
        if len(inserted) < len(tasks):  # the answer to a first try was lost
            found = {task.id: task for task in await self._store.get_tasks([t.id for t in tasks])}
            inserted = [found[task.id] for task in tasks]
        self._publisher.soon([task.id for task in tasks if task.is_published])
        return inserted

    async def _insert_special(self, tasks: list[NewTask]) -> list[Created | TaskServiceError]:
        results: dict[str, Created | TaskServiceError] = {}
        for _ in range(_CREATE_TRIES):
            results.update(await self._try_special([new for new in tasks if new.id not in results]))
            if len(results) == len(tasks):
                break
        return [results.get(new.id) or StoreUnavailable() for new in tasks]

    async def _try_special(self, tasks: list[NewTask]) -> dict[str, Created | TaskServiceError]:
        """What came of the creates, by the ids; those that have to be tried again are missing."""
        made, live_ids = await self._store.insert_special_tasks(tasks)
        results: dict[str, Created | TaskServiceError] = {task.id: Created(task) for task in made}
        if len(made) < len(tasks):
            results |= await self._find_special(
                [new for new in tasks if new.id not in results],
                live_ids,
                {task.unique_key: task for task in made if task.unique_key is not None},
            )
        self._tell_special(tasks, results)
        return results

    async def _find_special(
        self, tasks: list[NewTask], live_ids: Mapping[str, str], twins: Mapping[str, Task]
    ) -> dict[str, Created | TaskServiceError]:
        """What came of those that the statement did not make: they share a unique key with a task
        that was live before, or with one of the twins; their key was there; or the answer to a
        first try was lost."""
        keys = [new.key for new in tasks if new.key is not None and new.id not in live_ids]
        keyed: dict[str, Keyed] = {}
        if keys:
            keyed = {each.key: each for each in await self._store.find_keyed_tasks(keys)}
        ids = {live_ids.get(new.id, new.id) for new in tasks}
        found = {task.id: task for task in await self._store.get_tasks(list(ids))}
        results: dict[str, Created | TaskServiceError] = {}
        for new in tasks:
            if task := found.get(live_ids.get(new.id, new.id)):
                results[new.id] = Created(task, is_new=task.id == new.id)
            elif new.key is not None:
                if first := keyed.get(new.key):
                    results[new.id] = _replayed(new, first)
            elif twin := twins.get(new.options.unique_key or ""):
                results[new.id] = Created(twin, is_new=False)
        if loose := [key for key in keys if key not in keyed]:
            await self._store.forget_loose_keys(loose)
        return results

    def _tell_special(
        self, tasks: list[NewTask], results: Mapping[str, Created | TaskServiceError]
    ) -> None:
        """Publishes what was made, and wakes the relay in time for what waits."""
        for new in tasks:
            created = results.get(new.id)
            if not isinstance(created, Created) or created.task.id != new.id:
                continue
            task = created.task
            self.publish_soon([new])
            if new.options.waits:
                self.on_due_in(_seconds(task.created_at, task.run_at))
            if task.expires_at is not None:
                self.on_due_in(_seconds(task.created_at, task.expires_at))

    async def _get(self, ids: list[str]) -> list[Task | None]:
        found = {task.id: task for task in await self._store.get_tasks(ids)}
        return [found.get(id) for id in ids]

    async def _cancel(self, ids: list[str]) -> list[Canceled | Task | None]:
        canceled = {each.task.id: each for each in await self._store.cancel_tasks(ids)}
        self._stop_handlers(list(canceled.values()))
        # Why the others were not: that is for a second statement, since the first still sees the
        # state from before a race that it lost.
        rest = [id for id in ids if id not in canceled]
        found = {task.id: task for task in await self._store.get_tasks(rest)} if rest else {}
        found.update((id, each.task) for id, each in canceled.items())
        # Of two requests in one group, one cancels and the other is too late.
        return [canceled.pop(id, None) or found.get(id) for id in ids]

    async def _claim(self, ids: list[str]) -> list[Claim | None]:
        worker_id = self.worker_id
        if worker_id is None:
            raise LeaseLost
        if self._must_settle:
            # Here no other claim of this process is under way.
            self._must_settle = False
            if released := await self._store.release_tasks(worker_id, self._held):
                log.warning("Handed back", action="settled", tasks=len(released))
        if not ids:
            return []
        run_again = self._store.claims_run_again
        claimed = {claim.id: claim for claim in await self._store.claim_tasks(worker_id, ids)}
        if self._store.claims_run_again > run_again:
            self._doubt()
        if not claimed:  # all of them taken elsewhere, or this worker was declared dead?
            is_renewed, _ = await self._store.renew_lease(worker_id, {}, self._lease_seconds)
            if not is_renewed:
                raise LeaseLost
        return [claimed.get(id) for id in ids]

    async def _keep_progress(self, progresses: list[Progress]) -> list[None]:
        last = {each.id: each for each in progresses}
        await self._store.keep_progress(list(last.values()))
        return [None] * len(progresses)

    async def _finish(self, finishes: list[Finish]) -> list[bool]:
        written = set(await self._store.finish_tasks(finishes))
        rest = [finish for finish in finishes if finish.id not in written]
        if rest:  # fenced off, or the answer to a first try was lost
            written.update(await self._store.find_finished_tasks(rest))
        return [finish.id in written for finish in finishes]

    # Below.

    async def _create_special(
        self, content: str, traceparent: str | None, options: Options
    ) -> Task:
        return (await self.create_once(content, traceparent, options)).task

    async def _retry(self, new_ids: Mapping[str, str], *, is_again: bool) -> dict[str, Lane | None]:
        is_published = self._stream.is_up
        made = await self._store.retry_tasks(new_ids, is_published=is_published, is_again=is_again)
        if is_published:
            for id, lane in made.items():
                if lane is not None:
                    self._publisher.soon([new_ids[id]], lane)
        return made

    async def _find(
        self, filter: Filter, before: str | None, limit: int
    ) -> tuple[list[str], str | None]:
        """The ids of a page, newest first, and what the next one begins before."""
        before = min(before or _LAST_ID, _ceiling(filter.created_before))
        window = _WINDOW if filter != Filter() else limit + 1
        ids, seen, last = await self._store.find_tasks(
            filter, before, _floor(filter.created_after), window, limit + 1
        )
        if len(ids) > limit:
            return ids[:limit], ids[limit - 1]
        return ids, last if seen == window else None

    def _attempts(self, options: Options) -> int:
        return (
            options.max_attempts
            or self._kinds.get(options.kind or DEFAULT_KIND)
            or self._max_attempts
        )

    def _doubt(self) -> None:
        """A claim may have taken, or may still take, what nobody here knows of."""
        doubt_seconds = self._store.longest_statement_seconds + self._lease_seconds
        self._doubtful_until = time.monotonic() + doubt_seconds

    async def _settle(self) -> None:
        """Has the claims' group hand back what the database says that this worker holds, and it
        does not know of: the work of claims whose answers were lost."""
        with suppress(Unavailable):
            await self._claims.join_all(())

    def _count(self, finish: Finish, is_written: bool) -> None:
        if not is_written:
            self._metrics.results_fenced.add()
            log.info("Too late", action="fenced", task_id=finish.id, attempt=finish.attempt)
        elif finish.outcome.status is Status.COMPLETED:
            self._metrics.task_processing_successes.add()
        elif finish.outcome.is_charged:
            self._metrics.task_processing_fails.add()
            self._attempts_failed[finish.kind, finish.outcome.status].add()

    def _stop_handlers(self, canceled: list[Canceled]) -> None:
        running = [each for each in canceled if each.worker_id is not None]
        self.on_lost([each.task.id for each in running if each.worker_id == self.worker_id])
        if any(each.task.queue for each in running):
            self.on_due_in(0.0)
        elsewhere = [each.task.id for each in running if each.worker_id != self.worker_id]
        if elsewhere:
            self._spawn(self._publish_canceled(elsewhere))

    async def _publish_canceled(self, ids: list[str]) -> None:
        try:
            await self._stream.publish_canceled(ids)
        except StreamUnavailable:
            log.debug("The next heartbeat stops them", action="canceled_untold", tasks=len(ids))

    async def _rescue_tasks(self, dead: Sequence[str]) -> None:
        while rescued := await self._store.rescue_tasks(dead, _BATCH):
            self._metrics.tasks_rescued.add(len(rescued))
            for id, status in rescued:
                log.warning("Rescued", action="rescued", task_id=id, status=status)

    async def _listeners(self) -> set[str]:
        """The workers that have consumers in the group."""
        try:
            return await self._stream.worker_ids()
        except StreamUnavailable:
            return set()

    async def _abandon_entries(self, worker_id: str) -> None:
        """A worker's consumers leave the group; what they were given is told again, if pending."""
        try:
            ids = await self._stream.remove_consumers(worker_id)
            if ids:
                await self._store.unpublish_tasks(ids)
        except StreamUnavailable:
            log.debug("Redis is away; the next rescuer cleans up", action="left_entries")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
