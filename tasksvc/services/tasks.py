"""What people and programs can do with a task.

Every change of a status passes one of four: this, `workers` (claims and results), `rescue` (what
dead workers held), `publisher` (what expires). They alone use store and stream together: the store
is the truth and is written first, the stream is a doorbell and may fail.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog
import uuid_utils

from tasksvc.domain.attempt import Attempt
from tasksvc.domain.errors import (
    IdempotencyKeyConflict,
    StoreUnavailable,
    TaskIsFinal,
    TaskIsNotFinal,
    TaskNotFound,
    TaskServiceError,
    Unavailable,
    UniqueKeyTaken,
    Unreadable,
)
from tasksvc.domain.task import (
    DEFAULT_KIND,
    LIVE,
    NO_OPTIONS,
    BulkResult,
    Claim,
    CreateResult,
    Filter,
    IdempotencyRecord,
    Lane,
    NewTask,
    Options,
    Page,
    Priority,
    Status,
    Task,
)
from tasksvc.metrics import Metrics
from tasksvc.services.group_commit import Group
from tasksvc.services.known_kinds import Kinds
from tasksvc.services.publisher import Publisher
from tasksvc.services.search import Search
from tasksvc.services.sharing import Flight, Line
from tasksvc.services.worker import WorkerService
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_CREATE_TRIES = 10
"""Each but the last lost a race for a unique key, to a task that was final before the next."""

_ATTEMPTS = 1000
"""Of one task, in one read: there is no bound to how often it may be handed back."""

_MEASURED_SECONDS = 0.5
"""However often metrics are asked for, the stores are not asked more often."""

_LINE_SECONDS = 5.0
"""The longest wait for a search, or a step."""

_STEP_SECONDS = 2.5
"""Then a step ends, if there is more to do than was thought."""

_STEP_BYTES = 8 * 1024 * 1024
"""Contents that one statement copies."""

_READ_SIZE = 100
"""Tasks in one read, at most: each may be as large as a request may be."""


def _reads(names: list[str]) -> Iterator[list[str]]:
    """So many as one statement may read the tasks of."""
    return (names[start : start + _READ_SIZE] for start in range(0, len(names), _READ_SIZE))


def _replayed(new: NewTask, first: IdempotencyRecord) -> CreateResult | IdempotencyKeyConflict:
    """What comes of a create whose key was used before."""
    if first.fingerprint != new.fingerprint:
        return IdempotencyKeyConflict()
    return CreateResult(first.task, is_replayed=True, is_new=first.is_new)


def _too_late(task: Task | Unreadable | None) -> TaskServiceError:
    """Why it was not canceled."""
    if isinstance(task, Unreadable):
        return task
    return TaskNotFound() if task is None else TaskIsFinal(task.status)


def _parts(weights: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Where parts begin and end that weigh so much at most, or are one alone."""
    start, sum = 0, 0
    for end, weight in enumerate(weights):
        if end > start and sum + weight > most:
            yield start, end
            start, sum = end, 0
        sum += weight
    yield start, len(weights)


def _weight(task: NewTask) -> int:
    """Large contents count for many, so that a group and the waiting line are bounded in bytes."""
    return 1 + len(task.content) // 4096


class TaskService:
    """create, get, find, cancel, retry: of one task, or of many.

    Every method raises Unavailable when PostgreSQL is away or the waiting line is full, and what it
    names.
    """

    def __init__(
        self,
        store: TaskStore,
        stream: TaskStream,
        publisher: Publisher,
        worker: WorkerService,
        metrics: Metrics,
        kinds: Mapping[str, int | None],
        *,
        max_attempts: int,
        group_size: int,
        max_waiting: int,
    ) -> None:
        """`kinds` are those that this process serves, each with its `max_attempts`."""
        self._kinds = Kinds(store, kinds, max_waiting=max_waiting)
        self._secret: bytes | None = None
        self._store = store
        self._stream = stream
        self._publisher = publisher
        self._worker = worker
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._default_attempts = kinds.get(DEFAULT_KIND) or max_attempts

        bounds: dict[str, Any] = {"max_size": group_size, "max_waiting": max_waiting}
        self._creates: Group[NewTask, CreateResult] = Group(
            "create", self._insert, observe=metrics.group_size("create"), weigh=_weight, **bounds
        )
        self._creates_with_options: Group[NewTask, CreateResult] = Group(
            "create_with_options",
            self._insert_with_options,
            observe=metrics.group_size("create_with_options"),
            weigh=_weight,
            **bounds,
        )
        self._gets: Group[str, Task] = Group(
            "get",
            self._get,
            observe=metrics.group_size("get"),
            max_size=min(group_size, _READ_SIZE),
            max_waiting=max_waiting,
        )
        self._cancels: Group[str, Task] = Group(
            "cancel",
            self._cancel,
            observe=metrics.group_size("cancel"),
            max_size=min(group_size, _READ_SIZE),
            max_waiting=max_waiting,
        )
        self._searching = Line(max_waiting, _LINE_SECONDS)
        self._reading_attempts = Line(max_waiting, _LINE_SECONDS)
        self._stepping = Line(max_waiting, _LINE_SECONDS)
        self._search = Search(store, "search")
        self._step_search = Search(store, "step")
        self._measuring = Flight(self._measure, _MEASURED_SECONDS)
        self._groups: tuple[Group[Any, Any], ...] = (
            self._creates,
            self._creates_with_options,
            self._gets,
            self._cancels,
        )

    # For people and programs.

    async def check_kind(self, kind: str) -> None:
        """Raises UnknownKind when no process serves it, or has served it lately."""
        await self._kinds.check(kind)

    def create(
        self,
        content: str,
        traceparent: str | None = None,
        options: Options = NO_OPTIONS,
        *,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> Awaitable[CreateResult]:
        """The task, committed. It is published afterwards; the stream need not be there.

        With an idempotency key it is made once: a later create with the key gets the same task.
        With a unique key it may be the live task that had it already.

        Raises:
            DataRejected: the database does not take the content.
            IdempotencyKeyConflict: the first create with the key had another fingerprint.
        """
        if key is None and options == NO_OPTIONS:
            id = str(uuid_utils.uuid7())
            is_published = self._stream.is_open()
            return self._creates.join(
                NewTask(id, content, self._default_attempts, traceparent, is_published)
            )
        return self._creates_with_options.join(
            self.new_task(content, traceparent, options, key, fingerprint)
        )

    async def create_many(
        self, orders: Sequence[tuple[str, Options]], traceparent: str | None = None
    ) -> list[Task]:
        """Returns all of the tasks, in order; if one fails, no task is created.

        Raises DataRejected when the database does not take one of the contents.
        """
        tasks = [self.new_task(content, traceparent, options) for content, options in orders]
        self._creates_with_options.check_room()
        created = await self._creates_with_options.join_whole(tasks)
        return [each.task for each in created]

    async def retry(self, id: str) -> Task:
        """A new task with the content and the settings of a final one; each names the other.

        Raises TaskNotFound, TaskIsNotFinal, and UniqueKeyTaken.
        """
        return await self._stepping.run(lambda: self._retry_one(id))

    async def retry_many(
        self, filter: Filter, before: str | None, limit: int, *, is_dry: bool
    ) -> BulkResult:
        """The same for a step of the tasks that pass the filter: failed ones, unless it says which.
        Left out are those of which another was made before, or whose unique key is taken. A step
        that has much to copy ends early; one that fails may have done a part, and can be repeated.
        """
        filter = filter._replace(statuses=filter.statuses or (Status.FAILED,), is_unretried=True)
        return await self._stepping.run(lambda: self._retry_step(filter, before, limit, is_dry))

    async def find(self, filter: Filter, before: str | None, limit: int) -> Page:
        """A page of the tasks that pass the filter, newest first, before an id."""
        return await self._searching.run(lambda: self._find_page(filter, before, limit))

    def get(self, id: str) -> Awaitable[Task]:
        """Raises TaskNotFound."""
        return self._gets.join(id)

    async def secret(self) -> bytes:
        """Random bytes that all processes share."""
        if self._secret is None:
            self._secret = await self._store.get_secret()
        return self._secret

    async def get_attempts(self, id: str) -> list[Attempt]:
        """The runs of a task, in their order; of very many the newest.

        Raises TaskNotFound.
        """
        attempts = await self._reading_attempts.run(lambda: self._store.get_attempts(id, _ATTEMPTS))
        if not attempts:
            await self.get(id)  # is it there at all?
        return attempts

    def cancel(self, id: str) -> Awaitable[Task]:
        """The task, canceled for good; its handler is being stopped.

        Raises TaskNotFound, and TaskIsFinal when it was too late.
        """
        return self._cancels.join(id)

    async def cancel_many(
        self, filter: Filter, before: str | None, limit: int, *, is_dry: bool
    ) -> BulkResult:
        """The same for a step of the live tasks that pass the filter, all of it or nothing."""
        filter = filter._replace(statuses=filter.statuses or LIVE)
        return await self._stepping.run(lambda: self._cancel_step(filter, before, limit, is_dry))

    # For schedules.

    def new_task(
        self,
        content: str,
        traceparent: str | None,
        options: Options,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> NewTask:
        """A task with an id, on its way into the store."""
        # The relay publishes what has to wait for its time.
        is_published = not options.waits and self._stream.is_open(options.lane)
        return NewTask(
            str(uuid_utils.uuid7()),
            content,
            self._attempts(options),
            traceparent,
            is_published,
            options,
            key,
            fingerprint,
        )

    def publish_soon(self, tasks: Iterable[NewTask], claims: Sequence[Claim] = ()) -> None:
        """Publishes tasks that have just been committed, except those that are claimed
        already."""
        claimed = {claim.id for claim in claims}
        lanes: defaultdict[tuple[str | None, str | None], list[str]] = defaultdict(list)
        for task in tasks:
            if task.is_published and task.id not in claimed:
                lanes[task.options.kind, task.options.priority].append(task.id)
        for (kind, priority), ids in lanes.items():
            lane = Lane(kind or DEFAULT_KIND, priority or Priority.NORMAL)
            self._publisher.publish_in_background(ids, lane)

    # For operators.

    async def ping(self) -> None:
        """Whether PostgreSQL answers."""
        await self._store.ping()

    async def measure(self) -> None:
        """Brings the metrics that others have to be asked for up to date."""
        await self._measuring.join()
        self._metrics.set_running(len(self._worker.held))

    async def flush(self) -> None:
        """Waits until every group is written and every publication is tried."""
        for group in self._groups:
            await group.drain()
        await self._publisher.drain()

    # The groups: each takes many and gives one result for each.

    async def _insert(self, tasks: list[NewTask]) -> list[CreateResult]:
        with self._worker.taking(tasks) as taking:
            if taking.hold is None:
                made = await self._store.insert_tasks(tasks)
            else:
                made, taking.claims = await self._store.insert_held_tasks(tasks, taking.hold)
        self._creates.when_given(taking.start)
        self.publish_soon(tasks, taking.claims)
        return [CreateResult(task) for task in made]

    async def _insert_with_options(
        self, tasks: list[NewTask]
    ) -> Sequence[CreateResult | TaskServiceError]:
        results: dict[str, CreateResult | TaskServiceError] = {}
        for _ in range(_CREATE_TRIES):
            results |= await self._try_insert([new for new in tasks if new.id not in results])
            if len(results) == len(tasks):
                break
        return [results.get(new.id) or StoreUnavailable() for new in tasks]

    async def _try_insert(self, tasks: list[NewTask]) -> dict[str, CreateResult | TaskServiceError]:
        """Returns the results of the creates by their ids, without those that lost a race and have
        to be tried again."""
        with self._worker.taking(tasks) as taking:
            inserted = await self._store.insert_tasks_with_options(tasks, taking.hold)
            taking.claims = inserted.claims
        self._creates_with_options.when_given(taking.start)
        made = {task.id: task for task in inserted.tasks}
        self._announce(tasks, made, inserted.claims)
        results: dict[str, CreateResult | TaskServiceError] = {
            id: CreateResult(task) for id, task in made.items()
        }
        if rest := [new for new in tasks if new.id not in made]:
            same_batch = {task.unique_key: task for task in inserted.tasks if task.unique_key}
            results |= await self._find_existing(rest, inserted.live_ids, same_batch)
        return results

    async def _find_existing(
        self, tasks: list[NewTask], live_ids: Mapping[str, str], same_batch: Mapping[str, Task]
    ) -> dict[str, CreateResult | TaskServiceError]:
        """Returns the results of creates that the statement did not make. They share a unique key
        with a task that was live before or is of the same batch, their key was there, or the answer
        to a first try was lost."""
        keys = [new.key for new in tasks if new.key is not None and new.id not in live_ids]
        keyed: dict[str, IdempotencyRecord] = {}
        for some in _reads(keys):
            keyed |= {each.key: each for each in await self._store.find_keyed_tasks(some)}
        found: dict[str, Task] = {}
        for some in _reads([live_ids.get(new.id, new.id) for new in tasks]):
            found |= {task.id: task for task in await self._store.get_tasks(some)}
        results: dict[str, CreateResult | TaskServiceError] = {}
        for new in tasks:
            if task := found.get(live_ids.get(new.id, new.id)):
                results[new.id] = CreateResult(task, is_new=task.id == new.id)
            elif new.key is not None:
                if first := keyed.get(new.key):
                    results[new.id] = _replayed(new, first)
            elif other := same_batch.get(new.options.unique_key or ""):
                results[new.id] = CreateResult(other, is_new=False)
        self._announce(tasks, found)
        if orphaned := [key for key in keys if key not in keyed]:
            await self._store.forget_orphaned_keys(orphaned)
        return results

    def _announce(
        self, tasks: Sequence[NewTask], made: Mapping[str, Task], claims: Sequence[Claim] = ()
    ) -> None:
        """Publishes those of the tasks that were made, and wakes the relay in time for those that
        wait."""
        new = [task for task in tasks if task.id in made]
        self.publish_soon(new, claims)
        rows = [made[task.id] for task in new]
        moments = [row.expires_at for row in rows if row.expires_at is not None]
        for task, row in zip(new, rows, strict=True):
            if task.options.waits:
                moments.append(row.run_at or row.created_at)
        if moments:
            seconds = (min(moments) - rows[0].created_at).total_seconds()
            self._publisher.wake_relay_in(max(0.0, seconds))

    async def _get(self, ids: list[str]) -> list[Task | TaskServiceError]:
        found = {task.id: task for task in await self._store.get_tasks(ids)}
        return [found.get(id) or TaskNotFound() for id in ids]

    async def _cancel(self, ids: list[str]) -> list[Task | TaskServiceError]:
        try:
            canceled = await self._store.cancel_tasks(ids)
        except Unreadable:
            return [await self._cancel_alone(id) for id in ids]
        self._worker.stop_handlers(canceled)
        fresh = {each.task.id: each.task for each in canceled}
        # Why the others were not: that is for a second statement, since the first still sees the
        # state from before a race that it lost.
        found = {**await self._read([id for id in ids if id not in fresh]), **fresh}
        # Of two requests in one group, one cancels and the other is too late.
        return [fresh.pop(id) if id in fresh else _too_late(found.get(id)) for id in ids]

    # Below.

    async def _cancel_alone(self, id: str) -> Task | TaskServiceError:
        """Cancels one of a group for which it is unknown which tasks were canceled."""
        canceled = await self._store.cancel_tasks([id], with_contents=False)
        self._worker.stop_handlers(canceled)
        task = (await self._read([id])).get(id)
        if isinstance(task, Task) and task.status is Status.CANCELED:
            return task
        return _too_late(task)

    async def _read(self, ids: Sequence[str], session: str = "get") -> dict[str, Task | Unreadable]:
        """Those of the tasks that are there. One that can't be read must not hide the others: they
        are halved until it stands alone."""
        if not ids:
            return {}
        try:
            return {task.id: task for task in await self._store.get_tasks(ids, session)}
        except Unreadable as error:
            if len(ids) == 1:
                log.error("Unreadable row", action="unreadable", task_id=ids[0])
                return {ids[0]: error}
            middle = len(ids) // 2
            return {
                **await self._read(ids[:middle], session),
                **await self._read(ids[middle:], session),
            }

    async def _find_page(self, filter: Filter, before: str | None, limit: int) -> Page:
        found: list[Task] = []
        while True:
            wanted = limit - len(found)
            ids, before = await self._search.find(filter, before, wanted)
            tasks = await self._read(ids, "search")
            # One that was deleted in between is no longer there.
            found += [task for id in ids if isinstance(task := tasks.get(id), Task)]
            if before is None or len(found) == limit or len(ids) < wanted:
                return Page(found, before)

    async def _cancel_step(
        self, filter: Filter, before: str | None, limit: int, is_dry: bool
    ) -> BulkResult:
        ids, next_before = await self._step_search.find(filter, before, limit)
        matched = len(ids)
        if ids and not is_dry:
            canceled = await self._store.cancel_tasks(
                ids, filter.statuses, with_contents=False, session="step"
            )
            self._worker.stop_handlers(canceled)
            stopped = {each.task.id for each in canceled}
            ids = [id for id in ids if id in stopped]
        return BulkResult(matched, ids, next_before)

    async def _retry_step(
        self, filter: Filter, before: str | None, limit: int, is_dry: bool
    ) -> BulkResult:
        until = time.monotonic() + _STEP_SECONDS
        ids, next_before = await self._step_search.find(filter, before, limit)
        if not ids or is_dry:
            return BulkResult(len(ids), ids, next_before)
        weights = await self._store.weigh_tasks(ids)
        retried: list[str] = []
        end = 0
        for start, end in _parts([weights.get(id, 0) for id in ids], _STEP_BYTES):
            part = ids[start:end]
            # The oldest first, as they were created.
            new_ids = {id: str(uuid_utils.uuid7()) for id in reversed(part)}
            is_published, made = await self._retry(new_ids, is_again=False)
            self._publish_retried(new_ids, made, is_published)
            retried += [id for id in part if made.get(id)]
            if time.monotonic() >= until:
                break
        return BulkResult(end, retried, next_before if end == len(ids) else ids[end - 1])

    async def _retry_one(self, id: str) -> Task:
        new_id = str(uuid_utils.uuid7())
        is_published, made = await self._retry({id: new_id}, is_again=True)
        try:
            found = {task.id: task for task in await self._store.get_tasks([id, new_id], "step")}
        finally:  # not before: it is published as it was made
            self._publish_retried({id: new_id}, made, is_published)
        if new_id in found:
            return found[new_id]
        if id not in found:
            raise TaskNotFound
        if id in made:
            raise UniqueKeyTaken
        raise TaskIsNotFinal(found[id].status)

    async def _measure(self) -> None:
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

    async def _retry(
        self, new_ids: Mapping[str, str], *, is_again: bool
    ) -> tuple[bool, dict[str, Lane | None]]:
        """Returns whether to publish, and what was made."""
        is_published = self._stream.is_up
        made = await self._store.retry_tasks(new_ids, is_published=is_published, is_again=is_again)
        return is_published, made

    def _publish_retried(
        self, new_ids: Mapping[str, str], made: Mapping[str, Lane | None], is_published: bool
    ) -> None:
        if is_published:
            for id, lane in made.items():
                if lane is not None:
                    self._publisher.publish_in_background([new_ids[id]], lane)

    def _attempts(self, options: Options) -> int:
        return (
            options.max_attempts
            or self._kinds.max_attempts(options.kind or DEFAULT_KIND)
            or self._max_attempts
        )
