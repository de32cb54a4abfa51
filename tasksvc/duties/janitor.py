"""The janitor: final tasks past their retention, and keys, kinds and queues that nobody
needs, go; the tally is folded, and the rates of the queues are kept up to date."""

from __future__ import annotations

from tasksvc.store.queue_store import QueueStore
from tasksvc.store.task_store import TaskStore

_PAUSE_SECONDS = 60.0

_BATCH = 1000
"""Tasks, or keys, in one step."""

_QUEUE_SECONDS = 3600.0
"""A queue without a limit, a pause and tasks is kept so long."""

_QUEUE_BATCH = 5000
"""Queues that are looked at in one step."""

_KIND_SECONDS = 30 * 86_400.0
"""A kind is remembered after a worker has served it."""


class Janitor:
    name = "janitor"
    pause_seconds = _PAUSE_SECONDS

    def __init__(
        self,
        tasks: TaskStore,
        queues: QueueStore,
        retention_seconds: float,
        key_seconds: float,
    ) -> None:
        self._tasks = tasks
        self._queues = queues
        self._retention_seconds = retention_seconds
        self._key_seconds = key_seconds
        self._after_queue: str | None = None

    async def run_once(self) -> int:
        await self._tasks.fold_tally()
        await self._queues.sample_queues()
        count, self._after_queue = await self._queues.forget_queues(
            _QUEUE_SECONDS, self._after_queue or "", _QUEUE_BATCH
        )
        await self._tasks.forget_kinds(_KIND_SECONDS)
        count += await self._tasks.forget_keys(self._key_seconds, _BATCH)
        if self._retention_seconds:
            count += await self._tasks.delete_finished_tasks(self._retention_seconds, _BATCH)
        return count
