"""The janitor deletes what has passed its retention."""

from __future__ import annotations

from tasksvc.services.cleanup import Cleanup

_PAUSE_SECONDS = 60.0


class Janitor:
    name = "janitor"
    pause_seconds = _PAUSE_SECONDS

    def __init__(self, cleanup: Cleanup) -> None:
        self._cleanup = cleanup

    async def run_once(self) -> int:
        return await self._cleanup.run()
