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


class _Shape(msgspec.Struct, omit_defaults=True):
    """An object of JSON."""


class Tasks(_Shape):
    """Tasks in a list, or a page of them."""

    tasks: list[Task]
    next_cursor: str | None = None


class Attempt(_Shape):
    """One run of a task."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    worker: str | None
    outcome: AttemptOutcome | None
    error: dict[str, Any] | None = None
    traceback: str | None = None


class Attempts(_Shape):
    """The runs of a task."""

    attempts: list[Attempt]


class CanceledTasks(_Shape):
    """A step of a cancel by filter."""

    matched: int
    canceled: int
    ids: list[str]
    next: bool
    next_cursor: str | None = None


class RetriedTasks(_Shape):
    """A step of a retry by filter."""

    matched: int
    retried: int
    ids: list[str]
    next: bool
    next_cursor: str | None = None


class Queue(_Shape):
    """A queue."""

    name: str
    concurrency: int | None
    is_paused: bool
    pending: int
    processing: int
    oldest_seconds: float
    rate: float
    empty_seconds: float | None


class Queues(_Shape):
    """A page of queues."""

    queues: list[Queue]


class Schedule(_Shape):
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


class Schedules(_Shape):
    """A page of schedules."""

    schedules: list[Schedule]


class Health(_Shape):
    """Whether the service can serve."""

    status: str
    degraded: list[str] = []
    problems: list[str] = []
