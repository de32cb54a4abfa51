"""Store and stream in memory, for tests of what stands on them.

They are honest: tests/contract asks them the same questions as the real ones.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count as counting
from typing import Any

from msgspec.structs import replace

from tasksvc.domain.attempt import Attempt, AttemptOutcome
from tasksvc.domain.errors import AlreadyThere, ContentRefused, StoreUnavailable, StreamUnavailable
from tasksvc.domain.outcome import Finish
from tasksvc.domain.task import (
    DEFAULT_KIND,
    DEFAULT_LANE,
    FINAL,
    LIVE,
    Canceled,
    Claim,
    Filter,
    Hold,
    Keyed,
    Lane,
    NewTask,
    Priority,
    Progress,
    Status,
    Task,
)
from tasksvc.store.task_store import Due, Measures, TaskStore, Workers
from tasksvc.stream.keys import consumer_name, worker_of
from tasksvc.stream.task_stream import Entry, TaskStream


@dataclass(slots=True)
class Row:
    """A row of the table."""

    id: str
    content: str
    max_attempts: int
    traceparent: str | None
    created_at: datetime
    due_at: datetime
    published_at: datetime | None
    status: Status = Status.PENDING
    attempt: int = 0
    failures: int = 0
    worker_id: str | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None
    error: dict[str, Any] | None = None
    result: str | None = None
    timeout_seconds: float | None = None
    expires_at: datetime | None = None
    kind: str = DEFAULT_KIND
    progress: dict[str, Any] | None = None
    retry_of: str | None = None
    retried_as: str | None = None
    priority: str = Priority.NORMAL
    queue: str | None = None
    started_at: datetime | None = None
    attempts: list[Attempt] = field(default_factory=list)
    unique_key: str | None = None
    retry_base_seconds: float | None = None
    retry_max_seconds: float | None = None

    @property
    def lane(self) -> Lane:
        return Lane(self.kind, self.priority)

    def task(self) -> Task:
        return Task(
            self.id,
            self.content,
            self.status,
            self.created_at,
            self.updated_at,
            self.error,
            None if self.kind == DEFAULT_KIND else self.kind,
            None if self.priority == Priority.NORMAL else self.priority,
            self.queue,
            self.progress,
            None if self.result is None else json.loads(self.result),
            self.due_at if self.status is Status.PENDING and not self.is_due() else None,
            self.timeout_seconds,
            self.expires_at,
            self.retry_of,
            self.retried_as,
            unique_key=self.unique_key,
        )

    def move(self, status: Status, worker_id: str | None = None) -> None:
        self.status = status
        self.worker_id = worker_id
        self.updated_at = datetime.now(UTC)
        self.finished_at = self.updated_at if status in FINAL else None

    def is_due(self) -> bool:
        return self.status is Status.PENDING and self.due_at <= datetime.now(UTC)

    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    def put_back(self, delay_seconds: float = 0.0) -> None:
        self.due_at = datetime.now(UTC) + timedelta(seconds=delay_seconds)
        self.published_at = None


@dataclass(slots=True)
class Lease:
    """A row of `worker`."""

    name: str
    expires_at: float
    kinds: frozenset[str]
    is_lapsed: bool = False


class MemoryStore(TaskStore):
    """One statement is one method without an `await`: nothing comes between."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.workers: dict[str, Lease] = {}
        self.keys: dict[str, tuple[str, str, datetime]] = {}
        self.is_away = False

    @property
    def longest_statement_seconds(self) -> float:
        return 0.1

    @property
    def up_seconds(self) -> float:
        return 0.0 if self.is_away else 3600.0

    @property
    def claims_run_again(self) -> int:
        return 0

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.is_away:
            raise StoreUnavailable

    def _rows(self, ids: Iterable[str]) -> list[Row]:
        self._answer()
        return [self.rows[id] for id in dict.fromkeys(ids) if id in self.rows]

    async def insert_tasks(self, tasks: Sequence[NewTask]) -> list[Task]:
        self._answer()
        for task in tasks:
            if "\0" in task.content or _is_not_unicode(task.content) or task.max_attempts < 1:
                raise ContentRefused
        for task in tasks:
            if task.id not in self.rows:
                now = datetime.now(UTC)
                published_at = now if task.is_published else None
                self.rows[task.id] = Row(
                    task.id,
                    task.content,
                    task.max_attempts,
                    task.traceparent,
                    now,
                    now,
                    published_at,
                )
        return [self.rows[task.id].task() for task in tasks]

    async def insert_held_tasks(
        self, tasks: Sequence[NewTask], hold: Hold
    ) -> tuple[list[Task], list[Claim]]:
        made = await self.insert_tasks(tasks)
        return made, self._claim_first(tasks, hold)

    def _claim_first(self, tasks: Sequence[NewTask], hold: Hold | None) -> list[Claim]:
        if hold is None or self.workers[hold.worker_id].is_lapsed:
            return []
        claims = []
        for task in tasks:
            row = self.rows[task.id]
            if task.id in hold.ids and row.attempt == 0 and not row.is_expired():
                row.attempt = 1
                row.move(Status.PROCESSING, hold.worker_id)
                row.started_at = row.updated_at
                claims.append(task.first_claim())
        return claims

    async def unpublish_tasks(self, ids: Sequence[str]) -> None:
        for row in self._rows(ids):
            if row.status is Status.PENDING:
                row.published_at = None

    async def insert_fresh_tasks(
        self, tasks: Sequence[NewTask], hold: Hold | None = None
    ) -> tuple[list[Task], list[Claim]]:
        self._answer()
        keys = [(task.id, task.key, task.options.unique_key) for task in tasks]
        taken = [{*self.rows}, {*self.keys}, {*self._live_keys()}]
        for values, there in zip(zip(*keys, strict=True), taken, strict=True):
            given = [value for value in values if value is not None]
            if len(given) > len({*given}) or not there.isdisjoint(given):
                raise AlreadyThere
        made, _ = await self.insert_special_tasks(tasks)
        return made, self._claim_first(tasks, hold)

    async def insert_special_tasks(
        self, tasks: Sequence[NewTask]
    ) -> tuple[list[Task], dict[str, str]]:
        live = self._live_keys()
        keyless = [task for task in tasks if task.key is None or task.key not in self.keys]
        wanted = list({task.key or task.id: task for task in reversed(keyless)}.values())[::-1]
        live_ids = {
            task.id: live[task.options.unique_key]
            for task in wanted
            if task.options.unique_key in live
        }
        for task in wanted:
            if task.key is not None and task.fingerprint is not None:
                task_id = live_ids.get(task.id, task.id)
                self.keys[task.key] = (task.fingerprint, task_id, datetime.now(UTC))
        fresh = [task for task in wanted if task.id not in live_ids and task.id not in self.rows]
        firsts = {task.options.unique_key or task.id: task for task in reversed(fresh)}
        inserted = await self.insert_tasks(list(firsts.values())[::-1])
        options_of = {task.id: task.options for task in tasks}
        for row, options in [(self.rows[task.id], options_of[task.id]) for task in inserted]:
            row.timeout_seconds = options.timeout_seconds
            row.expires_at = options.expires_at
            row.kind, row.priority = options.lane
            row.queue = options.queue
            row.unique_key = options.unique_key
            row.retry_base_seconds = options.retry_base_seconds
            row.retry_max_seconds = options.retry_max_seconds
            row.due_at = options.run_at or row.due_at + timedelta(
                seconds=options.delay_seconds or 0
            )
        return [self.rows[task.id].task() for task in inserted], live_ids

    def _live_keys(self) -> dict[str | None, str]:
        """The unique keys of live tasks, with their ids."""
        self._answer()
        return {
            row.unique_key: row.id
            for row in self.rows.values()
            if row.unique_key is not None and row.finished_at is None
        }

    async def find_keyed_tasks(self, keys: Sequence[str]) -> list[Keyed]:
        self._answer()
        return [
            Keyed(key, fingerprint, self.rows[id].task(), self.rows[id].created_at >= created_at)
            for key, (fingerprint, id, created_at) in self.keys.items()
            if key in keys and id in self.rows
        ]

    async def forget_loose_keys(self, keys: Sequence[str]) -> None:
        self._answer()
        for key in keys:
            if key in self.keys and self.keys[key][1] not in self.rows:
                del self.keys[key]

    async def retry_tasks(
        self, new_ids: Mapping[str, str], *, is_published: bool, is_again: bool
    ) -> dict[str, Lane | None]:
        made: dict[str, Lane | None] = {}
        for old in self._rows(new_ids):
            new_id = new_ids[old.id]
            if old.finished_at is None or not (is_again or old.retried_as in (None, new_id)):
                continue
            made[old.id] = old.lane if old.retried_as == new_id else None
            if new_id in self.rows or old.unique_key in self._live_keys():
                continue
            now = datetime.now(UTC)
            self.rows[new_id] = Row(
                new_id,
                old.content,
                old.max_attempts,
                old.traceparent,
                now,
                now,
                now if is_published else None,
                kind=old.kind,
                priority=old.priority,
                queue=old.queue,
                timeout_seconds=old.timeout_seconds,
                retry_of=old.id,
                unique_key=old.unique_key,
                retry_base_seconds=old.retry_base_seconds,
                retry_max_seconds=old.retry_max_seconds,
            )
            old.retried_as = new_id
            made[old.id] = old.lane
        return made

    async def find_tasks(
        self, filter: Filter, before: str, floor: str, window: int, limit: int
    ) -> tuple[list[str], int, str | None]:
        self._answer()
        ids = sorted((id for id in self.rows if floor <= id < before), reverse=True)
        seen = [self.rows[id] for id in ids[:window]]
        found = [
            row.id
            for row in seen
            if (not filter.statuses or row.status in filter.statuses)
            and filter.kind in (None, row.kind)
            and filter.queue in (None, row.queue)
            and (filter.created_after is None or row.created_at > filter.created_after)
            and (filter.created_before is None or row.created_at < filter.created_before)
            and (not filter.is_unretried or row.retried_as is None)
        ]
        return found[:limit], len(seen), seen[-1].id if seen else None

    async def forget_keys(self, seconds: float, limit: int) -> int:
        self._answer()
        then = datetime.now(UTC) - timedelta(seconds=seconds)
        old = [key for key, (_, _, created_at) in self.keys.items() if created_at < then][:limit]
        for key in old:
            del self.keys[key]
        return len(old)

    async def find_lanes(self) -> set[Lane]:
        self._answer()
        return {row.lane for row in self.rows.values() if row.status not in FINAL}

    async def publish_due_tasks(
        self, lost_before: float, limit: int, lane: Lane = DEFAULT_LANE
    ) -> Due:
        self._answer()
        pending = [
            row for row in self.rows.values() if row.status is Status.PENDING and row.lane == lane
        ]
        expired = [row for row in pending if row.is_expired()][:limit]
        for row in expired:
            row.move(Status.FAILED)
            row.error = {
                "type": "Expired",
                "message": "It could not start in time.",
                "attempt": row.attempt,
            }
        then = datetime.now(UTC) - timedelta(seconds=time.monotonic() - lost_before)
        due = [row for row in self._due() if row.lane == lane]
        unpublished = [row for row in due if row.published_at is None]
        lost = [
            row
            for row in due
            if row.published_at is not None and row.published_at <= then and row.due_at <= then
        ]
        found = unpublished[:limit] + lost[:limit]
        for row in found:
            row.published_at = datetime.now(UTC)
        now = datetime.now(UTC)
        times = [row.due_at for row in pending if row.published_at is None and row.due_at > now]
        times += [row.expires_at for row in pending if row.expires_at and row.expires_at > now]
        return Due(
            [row.id for row in found],
            [row.id for row in expired],
            (min(times) - now).total_seconds() if times else None,
        )

    async def find_due_tasks(self, limit: int, kinds: Iterable[str] = (DEFAULT_KIND,)) -> list[str]:
        self._answer()
        kinds = set(kinds)
        due = [row for row in self._due() if row.kind in kinds]
        order: list[str] = list(Priority)
        return [row.id for row in sorted(due, key=lambda row: order.index(row.priority))][:limit]

    def _due(self) -> list[Row]:
        due = [row for row in self.rows.values() if row.is_due() and not row.is_expired()]
        return sorted(due, key=lambda row: row.due_at)

    async def claim_tasks(self, worker_id: str, ids: Sequence[str]) -> list[Claim]:
        rows = self._rows(ids)
        if worker_id not in self.workers or self.workers[worker_id].is_lapsed:
            return []
        claims = []
        for row in rows:
            if row.kind not in self.workers[worker_id].kinds:
                continue
            if row.is_due() and not row.is_expired():
                row.attempt += 1
            elif row.worker_id != worker_id:
                continue
            row.move(Status.PROCESSING, worker_id)
            row.started_at = row.updated_at
            waited_seconds = (datetime.now(UTC) - row.due_at).total_seconds()
            claims.append(
                Claim(
                    row.id,
                    row.attempt,
                    row.failures,
                    row.max_attempts,
                    row.content,
                    row.traceparent,
                    waited_seconds,
                    row.timeout_seconds,
                    row.kind,
                    row.priority,
                    row.queue is not None,
                    row.retry_base_seconds,
                    row.retry_max_seconds,
                )
            )
        return claims

    async def unpublish_refused_tasks(self, worker_id: str, ids: Sequence[str]) -> int:
        kinds = self.workers[worker_id].kinds
        foreign = [row for row in self._rows(ids) if row.queue or row.kind not in kinds]
        pending = [row.id for row in foreign if row.status is Status.PENDING]
        await self.unpublish_tasks(pending)
        return len(pending)

    async def keep_progress(self, progresses: Sequence[Progress]) -> None:
        self._answer()
        for each in progresses:
            row = self.rows.get(each.id)
            if row and (row.status, row.attempt) == (Status.PROCESSING, each.attempt):
                row.progress = {"fraction": each.fraction, "message": each.message}
                row.move(Status.PROCESSING, row.worker_id)

    async def complete_tasks(self, finishes: Sequence[Finish]) -> list[str]:
        return await self.finish_tasks(finishes)

    async def finish_tasks(self, finishes: Sequence[Finish]) -> list[str]:
        self._answer()
        written = []
        for finish in finishes:
            row = self.rows.get(finish.id)
            if row is None or (row.status, row.attempt) != (Status.PROCESSING, finish.attempt):
                continue
            outcome = finish.outcome
            if outcome.status is Status.FAILED:
                self._end(row, AttemptOutcome.FAILED, outcome.error, outcome.traceback)
            elif outcome.is_charged:
                self._end(row, AttemptOutcome.RETRIED, outcome.error, outcome.traceback)
            elif outcome.status is Status.PENDING:
                self._end(row, AttemptOutcome.RELEASED)
            row.move(outcome.status)
            row.failures += int(outcome.is_charged)
            row.error = outcome.error
            row.result = outcome.result
            if outcome.status is Status.PENDING:
                row.put_back(outcome.delay_seconds)
            written.append(row.id)
        return written

    async def find_finished_tasks(self, finishes: Sequence[Finish]) -> list[str]:
        self._answer()
        return [
            finish.id
            for finish in finishes
            if (row := self.rows.get(finish.id))
            and (row.attempt, row.status) == (finish.attempt, finish.outcome.status)
        ]

    async def release_tasks(self, worker_id: str, kept: Iterable[str] = ()) -> list[str]:
        self._answer()
        kept = set(kept)
        released = [
            row for row in self.rows.values() if row.worker_id == worker_id and row.id not in kept
        ]
        for row in released:
            self._end(row, AttemptOutcome.RELEASED)
            row.move(Status.PENDING)
            row.put_back()
        return [row.id for row in released]

    async def cancel_tasks(
        self,
        ids: Sequence[str],
        statuses: Iterable[Status] = LIVE,
        *,
        with_contents: bool = True,
    ) -> list[Canceled]:
        canceled = []
        statuses = set(statuses) - FINAL
        for row in self._rows(ids):
            if row.status in statuses:
                worker_id = row.worker_id
                if worker_id is not None:
                    self._end(row, AttemptOutcome.CANCELED)
                row.move(Status.CANCELED)
                task = row.task()
                canceled.append(
                    Canceled(task if with_contents else replace(task, content=""), worker_id)
                )
        return canceled

    async def rescue_tasks(self, worker_ids: Sequence[str], limit: int) -> list[tuple[str, Status]]:
        self._answer()
        held = sorted(row.id for row in self.rows.values() if row.worker_id in worker_ids)
        rescued = []
        for row in self._rows(held[:limit]):
            row.failures += 1
            row.error = {
                "type": "WorkerLost",
                "message": "The worker stopped answering.",
                "attempt": row.attempt,
            }
            self._end(row, AttemptOutcome.LOST, row.error)
            row.move(Status.FAILED if row.failures >= row.max_attempts else Status.PENDING)
            if row.status is Status.PENDING:
                row.put_back()
            rescued.append((row.id, row.status))
        return rescued

    async def delete_finished_tasks(self, retention_seconds: float, limit: int) -> int:
        self._answer()
        then = datetime.now(UTC) - timedelta(seconds=retention_seconds)
        old = sorted(
            row.id for row in self.rows.values() if row.finished_at and row.finished_at < then
        )
        for id in old[:limit]:
            del self.rows[id]
        return len(old[:limit])

    async def get_tasks(self, ids: Sequence[str]) -> list[Task]:
        return [row.task() for row in self._rows(ids)]

    async def get_attempts(self, id: str, limit: int) -> list[Attempt]:
        attempts = []
        for row in self._rows([id]):
            attempts += row.attempts
            if row.started_at and row.status in (Status.PROCESSING, Status.COMPLETED):
                outcome = AttemptOutcome.COMPLETED if row.status is Status.COMPLETED else None
                worker = self._name(row.worker_id)
                attempts.append(
                    Attempt(row.attempt, row.started_at, row.finished_at, worker, outcome)
                )
        return attempts[-limit:]

    def _end(
        self,
        row: Row,
        outcome: AttemptOutcome,
        error: dict[str, Any] | None = None,
        traceback: str | None = None,
    ) -> None:
        """The row's run has ended so."""
        assert row.started_at is not None
        ended_at, worker = datetime.now(UTC), self._name(row.worker_id)
        row.attempts.append(
            Attempt(row.attempt, row.started_at, ended_at, worker, outcome, error, traceback)
        )

    def _name(self, worker_id: str | None) -> str | None:
        worker = self.workers.get(worker_id or "")
        return None if worker is None else worker.name

    async def register_worker(
        self,
        worker_id: str,
        name: str,
        lease_seconds: float,
        kinds: Iterable[str] = (DEFAULT_KIND,),
    ) -> None:
        self._answer()
        lease = Lease(name, time.monotonic() + lease_seconds, frozenset(kinds))
        self.workers.setdefault(worker_id, lease)

    async def find_kinds(self) -> set[str]:
        self._answer()
        living = [lease.kinds for lease in self.workers.values() if not lease.is_lapsed]
        return set().union(*living)

    async def renew_lease(
        self, worker_id: str, attempts: Mapping[str, int], lease_seconds: float
    ) -> tuple[bool, list[str]]:
        self._answer()
        lease = self.workers.get(worker_id)
        if lease is None or lease.is_lapsed:
            return False, []
        lease.expires_at = time.monotonic() + lease_seconds
        return True, await self.find_lost_tasks(worker_id, attempts)

    async def find_lost_tasks(self, worker_id: str, attempts: Mapping[str, int]) -> list[str]:
        self._answer()
        return [
            id
            for id, attempt in attempts.items()
            if (row := self.rows.get(id)) is None
            or (row.worker_id, row.attempt) != (worker_id, attempt)
        ]

    async def lapse_workers(self, worker_id: str | None) -> Workers:
        self._answer()
        now = time.monotonic()
        others = {id: lease for id, lease in self.workers.items() if id != worker_id}
        for lease in others.values():
            lease.is_lapsed = lease.is_lapsed or lease.expires_at < now
        living = {id: lease for id, lease in others.items() if not lease.is_lapsed}
        next_seconds = min((lease.expires_at - now for lease in living.values()), default=None)
        dead = [id for id in others if id not in living]
        return Workers(dead, list(living), next_seconds)

    async def retire_worker(self, worker_id: str) -> None:
        self._answer()
        if worker_id in self.workers:
            self.workers[worker_id].is_lapsed = True

    async def forget_workers(self, worker_ids: Sequence[str]) -> None:
        self._answer()
        for id in worker_ids:
            self.workers.pop(id, None)

    async def measure(self) -> Measures:
        self._answer()
        tasks = dict.fromkeys(Status, 0)
        for row in self.rows.values():
            tasks[row.status] += 1
        ages = [(datetime.now(UTC) - row.due_at).total_seconds() for row in self._due()]
        return Measures(
            {str(status): count for status, count in tasks.items()}, max([0.0, *ages]), 0
        )

    async def fold_tally(self) -> None:
        self._answer()

    async def ping(self) -> None:
        self._answer()


def _is_not_unicode(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(slots=True)
class Bell:
    """What a Redis knows; streams of several processes share one."""

    entries: dict[str, str] = field(default_factory=dict)  # entry -> task
    lanes: dict[str, Lane] = field(default_factory=dict)  # entry -> lane
    times: dict[str, float] = field(default_factory=dict)  # entry -> published
    consumers: dict[str, dict[str, str]] = field(default_factory=dict)  # pending entries
    delivered: set[str] = field(default_factory=set)
    last_id: int = 0
    listeners: list[asyncio.Queue[list[str]]] = field(default_factory=list)


class MemoryStream(TaskStream):
    """A group for each lane, as in Redis: what is given to a consumer is pending until
    acknowledged."""

    def __init__(
        self,
        bell: Bell | None = None,
        *,
        max_entries: int = 10_000,
        block_seconds: float = 0.01,
        kinds: Iterable[str] = (DEFAULT_KIND,),
    ) -> None:
        self.bell = bell or Bell()
        self.is_away = False
        self.is_up = False
        self.refusing = set()
        self.lost_at = {}
        self.waiting = {}
        self._kinds = tuple(kinds)
        self._turns = counting()
        self._max_entries = max_entries
        self._block_seconds = block_seconds
        self._unblock = asyncio.Event()
        self._heard: asyncio.Queue[list[str]] | None = None

    def _answer(self) -> None:
        self.is_up = not self.is_away
        if self.is_away:
            raise StreamUnavailable

    def is_open(self, lane: Lane = DEFAULT_LANE) -> bool:
        return self.is_up and lane not in self.refusing

    async def open(self) -> None:
        self._answer()

    async def close(self) -> None:
        pass

    async def publish(self, ids: Sequence[str], lane: Lane = DEFAULT_LANE) -> int:
        try:
            self._answer()
        except StreamUnavailable:
            self.refusing.add(lane)
            raise
        taken = ids[: max(0, self._room(lane))]
        for id in taken:
            self.bell.last_id += 1
            entry = f"{self.bell.last_id:020}"
            self.bell.entries[entry] = id
            self.bell.lanes[entry] = lane
            self.bell.times[entry] = time.monotonic()
        self._refuses(lane, len(taken) < len(ids))
        return len(taken)

    async def publish_to(
        self, worker_id: str, number: int, ids: Sequence[str], lane: Lane = DEFAULT_LANE
    ) -> list[Entry]:
        if self._waiting(lane):
            return []
        await self.publish(ids, lane)
        return self._give(consumer_name(worker_id, number), self._waiting(lane))

    def _give(self, name: str, entries: Sequence[str]) -> list[Entry]:
        given = {entry: self.bell.entries[entry] for entry in entries}
        self.bell.consumers.setdefault(name, {}).update(given)
        self.bell.delivered.update(given)
        return list(given.items())

    def _room(self, lane: Lane) -> int:
        return self._max_entries - list(self.bell.lanes.values()).count(lane)

    async def publish_canceled(self, ids: Sequence[str]) -> None:
        self._answer()
        for listener in self.bell.listeners:
            listener.put_nowait(list(ids))

    async def read_canceled(self) -> list[str]:
        self._answer()
        if self._heard is None:
            self._heard = asyncio.Queue()
            self.bell.listeners.append(self._heard)
        try:
            async with asyncio.timeout(self._block_seconds):
                return await self._heard.get()
        except TimeoutError:
            return []

    async def read(self, worker_id: str, number: int, count: int) -> list[Entry]:
        self._answer()
        deadline = time.monotonic() + self._block_seconds
        self._unblock.clear()
        lanes = self._lanes_by_turns()
        while not (waiting := self._waiting(*lanes)) and time.monotonic() < deadline:
            await asyncio.sleep(0)
            if self._unblock.is_set():
                break
        return self._give(consumer_name(worker_id, number), waiting[:count])

    def _waiting(self, *lanes: Lane) -> list[str]:
        """Lane by lane."""
        return [
            entry
            for lane in lanes
            for entry in self.bell.entries
            if entry not in self.bell.delivered and self.bell.lanes[entry] == lane
        ]

    async def read_again(self, worker_id: str, number: int, count: int, after: str) -> list[Entry]:
        self._answer()
        pending = self.bell.consumers.setdefault(consumer_name(worker_id, number), {})
        entries = sorted(entry for entry in pending if int(entry) > int(after))
        return [(entry, self.bell.entries.get(entry)) for entry in entries[:count]]

    async def unblock(self) -> None:
        self._answer()
        self._unblock.set()

    async def acknowledge(self, entries: Sequence[str]) -> None:
        self._answer()
        for entry in entries:
            self.bell.entries.pop(entry, None)
            self.bell.lanes.pop(entry, None)
            self.bell.times.pop(entry, None)
            for pending in self.bell.consumers.values():
                pending.pop(entry, None)

    async def worker_ids(self) -> set[str]:
        self._answer()
        return {worker_of(name) for name in self.bell.consumers}

    async def remove_consumers(self, worker_id: str) -> list[str]:
        self._answer()
        ids: list[str] = []
        for name in [name for name in self.bell.consumers if worker_of(name) == worker_id]:
            pending = self.bell.consumers.pop(name)
            ids += [self.bell.entries[entry] for entry in pending if entry in self.bell.entries]
            await self.acknowledge(list(pending))
        return ids

    async def look(self, lane: Lane = DEFAULT_LANE) -> tuple[int, float]:
        self._answer()
        room = self._room(lane)
        self._refuses(lane, room <= 0)
        waiting = self._waiting(lane)
        return room, time.monotonic() - self.bell.times[waiting[0]] if waiting else 0.0

    async def measure(self) -> tuple[int, int]:
        self._answer()
        return len(self.bell.entries), sum(map(len, self.bell.consumers.values()))
