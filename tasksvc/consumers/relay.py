"""The relay: due tasks that are not in the stream are published.

Those of a retry, of a rescue or of a time without Redis; and those whose entry was lost.
"""

from __future__ import annotations

from tasksvc.service import TaskService

_LATE_SECONDS = 0.005
"""A little after the task is due, so that one look is enough."""


class Relay:
    name = "relay"

    def __init__(self, service: TaskService, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._longest_seconds = pause_seconds
        self._service = service

    async def run_once(self) -> int:
        count = await self._service.publish_due()
        next_seconds = self._service.next_due_seconds
        self.pause_seconds = (
            self._longest_seconds
            if next_seconds is None
            else min(self._longest_seconds, max(0.0, next_seconds) + _LATE_SECONDS)
        )
        return count
