"""The relay: due tasks that are not in the stream are published.

Those of a retry, of a rescue or of a time without Redis; and those whose entry was lost.
"""

from __future__ import annotations

from tasksvc.service import TaskService


class Relay:
    name = "relay"

    def __init__(self, service: TaskService, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._service = service

    async def run_once(self) -> int:
        return await self._service.publish_due()
