"""Takes back what the workers hold that have died."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from tasksvc.domain.errors import StreamUnavailable, Unavailable
from tasksvc.metrics import Metrics
from tasksvc.services.publisher import Publisher
from tasksvc.services.worker import WorkerService
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_BATCH = 1000
"""Tasks in one step."""


class RescueService:
    """Declares workers dead, and has others run their tasks. The worker that asks lives."""

    def __init__(
        self,
        store: TaskStore,
        stream: TaskStream,
        publisher: Publisher,
        worker: WorkerService,
        metrics: Metrics,
        *,
        lease_seconds: float,
    ) -> None:
        self._store = store
        self._stream = stream
        self._publisher = publisher
        self._worker = worker
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._unasked_at = float("-inf")  # when the workers could not be asked for

    async def run(self) -> float | None:
        """Takes the tasks of dead workers back; the seconds until the next worker could be dead.

        Raises Unavailable.
        """
        # While PostgreSQL was away, or the workers' rows were locked, no worker could renew its
        # lease. A living worker gets the time of another lease: an answer that it waits for may
        # have to time out first.
        settled_seconds = min(
            self._store.up_seconds,
            self._worker.steady_seconds,
            time.monotonic() - self._unasked_at,
        )
        if settled_seconds < self._lease_seconds:
            return self._lease_seconds - settled_seconds
        listeners = await self._listeners()
        try:
            workers = await self._store.lapse_workers(self._worker.id)
        except Unavailable:
            self._unasked_at = time.monotonic()
            raise
        if workers.dead:
            log.warning("Workers stopped answering", action="workers_lapsed", workers=workers.dead)
            await self._rescue_tasks(workers.dead)
            await self._store.forget_workers(workers.dead)
        # A consumer that was there before the workers were read, and is no worker's, has no future.
        for worker_id in listeners.difference(workers.living, [self._worker.id]):
            await self._publisher.take_back(worker_id)
        if workers.dead:
            with suppress(StreamUnavailable):
                await self._publisher.publish_due()
        return workers.next_seconds

    async def _rescue_tasks(self, dead: Sequence[str]) -> None:
        while rescued := await self._store.rescue_tasks(dead, _BATCH):
            self._metrics.tasks_rescued.add(len(rescued))
            for id, status in rescued:
                log.warning("Task rescued", action="rescued", task_id=id, status=status)

    async def _listeners(self) -> set[str]:
        """The workers that have consumers in the group."""
        try:
            return await self._stream.worker_ids()
        except StreamUnavailable:
            return set()
