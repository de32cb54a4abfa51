"""The rescuer: the tasks of workers that stopped answering go back."""

from __future__ import annotations

from tasksvc.services.rescue import RescueService

_LATE_SECONDS = 0.05
"""A little after the lease has run out, so that one look is enough."""


class Rescuer:
    name = "rescuer"

    def __init__(self, rescue: RescueService, lease_seconds: float) -> None:
        self.pause_seconds = lease_seconds
        self._lease_seconds = lease_seconds
        self._rescue = rescue

    async def run_once(self) -> int:
        next_seconds = await self._rescue.run()
        # No worker can be dead before the first lease runs out; a later one has a whole lease.
        self.pause_seconds = min(
            self._lease_seconds,
            self._lease_seconds if next_seconds is None else max(0.0, next_seconds) + _LATE_SECONDS,
        )
        return 0
