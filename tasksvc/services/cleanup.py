"""Deletes what has passed its retention: final tasks, keys, kinds and queues."""

from __future__ import annotations

from tasksvc.store.queue_store import QueueStore
from tasksvc.store.task_store import TaskStore

_BATCH = 1000
"""Tasks, or keys, in one step."""

_QUEUE_SECONDS = 3600.0
"""A queue without a limit, a pause and tasks is kept so long."""

_QUEUE_BATCH = 5000
"""Queues that are looked at in one step."""

_KIND_SECONDS = 30 * 86_400.0
"""A kind is remembered after a worker has served it."""


class Cleanup:
    """Deletes in bounded steps, and brings the tally and the rates of the queues up to date."""

    def __init__(
        self,
        tasks: TaskStore,
        queues: QueueStore,
        *,
        retention_seconds: float,
        key_seconds: float,
    ) -> None:
        """`retention_seconds` is the age at which final tasks are deleted; 0 keeps them forever.
        `key_seconds` is the age at which idempotency keys are deleted."""
        self._tasks = tasks
        self._queues = queues
        self._retention_seconds = retention_seconds
        self._key_seconds = key_seconds
        self._after_queue: str | None = None

    async def run(self) -> int:
        """Does one step and returns how many rows it deleted. Raises Unavailable."""
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
