"""The heartbeat: renews this worker's lease, and stops what is no longer its own."""

from __future__ import annotations

import structlog

from tasksvc.domain.errors import LeaseLost
from tasksvc.services.worker import WorkerService

log = structlog.get_logger(__name__)


class Heartbeat:
    name = "heartbeat"

    def __init__(self, worker: WorkerService, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._worker = worker

    async def run_once(self) -> int:
        try:
            if self._worker.id is not None:
                await self._worker.renew_lease()
                return 0
        except LeaseLost:
            log.warning("Worker was declared dead, registering again", action="lease_lost")
        await self._worker.register()
        return 0
