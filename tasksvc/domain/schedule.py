"""What a schedule is: a task that is created again and again."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from tasksvc.domain.task import NewTask


class Missed(StrEnum):
    """What happens to moments that were missed. The database knows the same words."""

    SKIP = "skip"
    """No task is created for a moment that is more than a minute old."""

    LAST = "last"
    """One task is created, for the last of them."""


class ScheduleOrder(NamedTuple):
    """What a client asks for."""

    cron: str
    timezone: str
    task: str
    """As JSON, as a client would create it."""
    missed: Missed
    is_paused: bool
    kind: str | None = None
    """The kind of the task."""


class Schedule(NamedTuple):
    """A schedule as its clients see it. Times are aware and in UTC."""

    name: str
    cron: str
    timezone: str
    task: str
    """As JSON. It is long, and is read only when it is due."""
    missed: Missed
    created_at: datetime
    updated_at: datetime | None
    next_run_at: datetime | None
    """None while it is paused."""
    last_run_at: datetime | None
    """The moment that its last task was created for."""
    last_task_id: str | None

    @property
    def is_paused(self) -> bool:
        return self.next_run_at is None


class Tick(NamedTuple):
    """A schedule that is due, and what is to be done."""

    schedule: Schedule
    """As it was read: if it has changed since, nothing is done."""
    scheduled_for: datetime
    next_run_at: datetime
    task: NewTask | None
    """None when the moment is skipped."""


class DueSchedules(NamedTuple):
    """The schedules that are due, by the database's clock."""

    schedules: list[Schedule]
    now: datetime
    next_seconds: float | None
    """Seconds until the next of the other schedules is due; None when there is no other."""
