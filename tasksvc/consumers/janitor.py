"""The janitor: final tasks past their retention and old keys go, the tally is folded, and the rates
of the queues are kept up to date."""

from __future__ import annotations

from tasksvc.queues import QueueService
from tasksvc.service import TaskService

_PAUSE_SECONDS = 60.0


class Janitor:
    name = "janitor"
    pause_seconds = _PAUSE_SECONDS

    def __init__(
        self,
        service: TaskService,
        queues: QueueService,
        retention_seconds: float,
        key_seconds: float,
    ) -> None:
        self._service = service
        self._queues = queues
        self._retention_seconds = retention_seconds
        self._key_seconds = key_seconds

    async def run_once(self) -> int:
        await self._service.fold_tally()
        await self._queues.sample()
        count = await self._service.forget_keys(self._key_seconds)
        if self._retention_seconds:
            count += await self._service.delete_finished(self._retention_seconds)
        return count
