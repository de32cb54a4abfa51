"""The shapes of answers, key by key in their order. That of a task is `domain.task.Task`.

A key with a default is left out while it has that value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from tasksvc.domain.attempt import AttemptOutcome
from tasksvc.domain.schedule import Missed
from tasksvc.domain.task import Task


class _Json(msgspec.Struct, omit_defaults=True):
    """An object of JSON."""


class Tasks(_Json):
    """Tasks in a list, or a page of them."""

    tasks: list[Task]
    next_cursor: str | None = None


class AttemptJson(_Json):
    """One run of a task."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    worker: str | None
    outcome: AttemptOutcome | None
    error: dict[str, Any] | None = None
    traceback: str | None = None


class Attempts(_Json):
    """The runs of a task."""

    attempts: list[AttemptJson]


class CanceledTasks(_Json):
    """A step of a cancel by filter."""

    matched: int
    canceled: int
    ids: list[str]
    next: bool
    next_cursor: str | None = None


class RetriedTasks(_Json):
    """A step of a retry by filter."""

    matched: int
    retried: int
    ids: list[str]
    next: bool
    next_cursor: str | None = None


class QueueJson(_Json):
    """A queue."""

    name: str
    concurrency: int | None
    is_paused: bool
    pending: int
    processing: int
    oldest_seconds: float
    rate: float
    empty_seconds: float | None


class Queues(_Json):
    """A page of queues."""

    queues: list[QueueJson]


class ScheduleJson(_Json):
    """A schedule."""

    name: str
    cron: str
    timezone: str
    task: msgspec.Raw
    missed: Missed
    created_at: datetime
    updated_at: datetime | None
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_task_id: str | None
    is_paused: bool


class Schedules(_Json):
    """A page of schedules."""

    schedules: list[ScheduleJson]


class HealthJson(_Json):
    """Whether the service can serve."""

    status: str
    degraded: list[str] = []
    problems: list[str] = []
