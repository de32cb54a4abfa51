"""The scheduler: makes the tasks of schedules that are due, one for each moment."""

from __future__ import annotations

from tasksvc.services.schedules import ScheduleService

_PAUSE_SECONDS = 10.0
"""The longest: another process may have got a new schedule, and died."""

_LATE_SECONDS = 0.005
"""A little after the schedule is due, so that one look is enough."""


class Scheduler:
    name = "scheduler"

    def __init__(self, schedules: ScheduleService) -> None:
        self.pause_seconds = _PAUSE_SECONDS
        self._schedules = schedules

    async def run_once(self) -> int:
        count, next_seconds = await self._schedules.run_due()
        self.pause_seconds = (
            _PAUSE_SECONDS
            if next_seconds is None
            else min(_PAUSE_SECONDS, next_seconds + _LATE_SECONDS)
        )
        return count
