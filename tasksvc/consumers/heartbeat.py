"""The heartbeat: renews this worker's lease, and stops what is no longer its own."""

from __future__ import annotations

import structlog

from tasksvc.domain.errors import LeaseLost
from tasksvc.service import TaskService

log = structlog.get_logger(__name__)


class Heartbeat:
    name = "heartbeat"

    def __init__(self, service: TaskService, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._service = service

    async def run_once(self) -> int:
        try:
            if self._service.worker_id is not None:
                await self._service.renew_lease()
                return 0
        except LeaseLost:
            log.warning("Declared dead, registers anew", action="lease_lost")
        await self._service.register()
        return 0
