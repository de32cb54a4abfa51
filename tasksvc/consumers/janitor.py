"""The janitor: final tasks past their retention and old keys go, and the tally is folded."""

from __future__ import annotations

from tasksvc.service import TaskService

_PAUSE_SECONDS = 60.0


class Janitor:
    name = "janitor"
    pause_seconds = _PAUSE_SECONDS

    def __init__(self, service: TaskService, retention_seconds: float, key_seconds: float) -> None:
        self._service = service
        self._retention_seconds = retention_seconds
        self._key_seconds = key_seconds

    async def run_once(self) -> int:
        await self._service.fold_tally()
        count = await self._service.forget_keys(self._key_seconds)
        if self._retention_seconds:
            count += await self._service.delete_finished(self._retention_seconds)
        return count
