"""The relay: due tasks that are not in the stream are published.

Those of a retry, of a rescue or of a time without Redis; and those whose entry was lost.
"""

from __future__ import annotations

from tasksvc.services.publisher import Publisher

_LATE_SECONDS = 0.005
"""A little after the task is due, so that one look is enough."""


class Relay:
    name = "relay"

    def __init__(self, publisher: Publisher, pause_seconds: float) -> None:
        self.pause_seconds = pause_seconds
        self._longest_seconds = pause_seconds
        self._publisher = publisher

    async def run_once(self) -> int:
        count, next_seconds = await self._publisher.publish_due()
        self.pause_seconds = (
            self._longest_seconds
            if next_seconds is None
            else min(self._longest_seconds, max(0.0, next_seconds) + _LATE_SECONDS)
        )
        return count
