"""Puts due tasks into the stream: those that were just created at once, and others by the relay.

The store knows what is published. Where the stream does not take a task, the store records that,
and the relay finds it there.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import structlog

from tasksvc.domain.errors import StreamUnavailable, Unavailable
from tasksvc.domain.task import DEFAULT_LANE, Lane
from tasksvc.metrics import Metrics
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_BATCH = 1000
"""Tasks in one publication."""

_CLAIM_SECONDS = 1.0
"""By then a consumer has claimed what it was given, or it never was given it."""

_LONG_AGO = -1e9


class _Watermark:
    """What was published before it is lost, if it still is not claimed."""

    def __init__(self, margin_seconds: float) -> None:
        self._margin_seconds = margin_seconds
        self._look = (_LONG_AGO, _LONG_AGO)
        self.lost_before = _LONG_AGO

    def remember(self, looked_at: float, oldest_seconds: float) -> None:
        """What was published before the oldest entry that waits was given to a consumer, or lost.
        An earlier look decides which: what was delivered by then is claimed by now."""
        earlier, given_before = self._look
        if looked_at - earlier >= _CLAIM_SECONDS:
            self.lost_before = given_before
            self._look = looked_at, looked_at - oldest_seconds - self._margin_seconds


class Publisher:
    """Publishes all waiting tasks; nothing else does. Lanes do not wait for each other's room."""

    def __init__(
        self,
        store: TaskStore,
        stream: TaskStream,
        metrics: Metrics,
        *,
        lost_margin_seconds: float,
        wake_relay_in: Callable[[float], object],
    ) -> None:
        """`wake_relay_in` takes the seconds after which the relay has to look for due tasks."""
        self.wake_relay_in = wake_relay_in
        self._store = store
        self._stream = stream
        self._metrics = metrics
        self._watermarks: defaultdict[Lane, _Watermark] = defaultdict(
            lambda: _Watermark(lost_margin_seconds)
        )
        self._waiting: defaultdict[Lane, deque[str]] = defaultdict(deque)
        self._work: asyncio.Task[None] | None = None

    def publish_in_background(self, ids: Sequence[str], lane: Lane = DEFAULT_LANE) -> None:
        """Publishes them without being waited for."""
        if ids:
            self._waiting[lane].extend(ids)
        if self._waiting and self._work is None:
            self._work = asyncio.create_task(self._publish_waiting(), name="publisher")
            self._work.add_done_callback(self._worked)

    async def drain(self) -> None:
        """Waits until every publication is tried."""
        while self._work is not None:
            await asyncio.wait([self._work])

    async def publish_due(self) -> tuple[int, float | None]:
        """Publishes due tasks that are not in the stream, and fails those that expired.

        How many, and the seconds until there could be more; None when nothing waits for its time.
        """
        count = 0
        waits = []
        live = await self._store.find_lanes()
        for lane in sorted({DEFAULT_LANE, *live, *self._stream.lost_at}):
            done, next_seconds = await self._publish_due(lane, is_live=lane in live)
            count += done
            if next_seconds is not None:
                waits.append(next_seconds)
        return count, min(waits, default=None)

    async def take_back(self, worker_id: str) -> None:
        """Removes a worker's consumers from the group. Their pending tasks are published again."""
        try:
            ids = await self._stream.remove_consumers(worker_id)
            if ids:
                await self._store.unpublish_tasks(ids)
        except StreamUnavailable:
            log.debug("Redis is away; the next rescuer cleans up", action="left_entries")

    async def _publish_due(self, lane: Lane, *, is_live: bool) -> tuple[int, float | None]:
        looked_at = time.monotonic()
        room, oldest_seconds = await self._stream.look(lane)
        if room <= 0:
            return 0, None
        watermark = self._watermarks[lane]
        watermark.remember(looked_at, oldest_seconds)
        lost_at = self._stream.lost_at.get(lane)  # it may just have been found
        if not is_live and lost_at is None:
            return 0, None
        limit = min(_BATCH, room)
        due = await self._store.publish_due_tasks(
            watermark.lost_before if lost_at is None else lost_at, limit, lane
        )
        for id in due.expired:
            log.warning("Task expired", action="expired", task_id=id)
        self._metrics.tasks_expired.add(len(due.expired))
        if due.ids:
            await self._publish(due.ids, lane)
            self._metrics.tasks_republished.add(len(due.ids))
            log.info("Tasks published again", action="republished", tasks=len(due.ids))
        if len(due.ids) < limit and self._stream.lost_at.get(lane) == lost_at:
            self._stream.lost_at.pop(lane, None)
        return len(due.ids) + len(due.expired), due.next_seconds

    async def _publish_waiting(self) -> None:
        while self._waiting:
            lane, ids = next(iter(self._waiting.items()))
            batch = [ids.popleft() for _ in range(min(len(ids), _BATCH))]
            if not ids:
                del self._waiting[lane]
            await self._publish(batch, lane)

    def _worked(self, work: asyncio.Task[None]) -> None:
        self._work = None
        self.publish_in_background([])  # what one that was killed has left

    async def _publish(self, ids: Sequence[str], lane: Lane) -> None:
        """Puts the ids into the stream, and leaves to the relay what does not go in."""
        published = 0
        try:
            if self._stream.is_open(lane):
                published = await self._stream.publish(ids, lane)
        except StreamUnavailable:
            pass
        try:
            if published < len(ids):
                await self._store.unpublish_tasks(ids[published:])
        except Unavailable:
            # Both are away. The relay finds them by the age of their publication.
            log.warning("Could not publish tasks", action="unpublished", tasks=len(ids) - published)
