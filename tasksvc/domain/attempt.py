"""The runs of a task, as its history shows them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class AttemptOutcome(StrEnum):
    """How a run ended. The database knows the same words (`attempt_outcome`)."""

    COMPLETED = "completed"
    """Its handler returned, and the task is completed."""

    FAILED = "failed"
    """The run failed, and the task is failed."""

    RETRIED = "retried"
    """The run failed, and the task is tried again."""

    CANCELED = "canceled"
    """The task was canceled while it ran."""

    RELEASED = "released"
    """Its worker stopped and released the task without a charge."""

    LOST = "lost"
    """Its worker stopped answering."""


class Attempt(NamedTuple):
    """One run of a task. Times are aware and in UTC."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    """None while it runs."""
    worker: str | None
    """Host and process; not kept for a run that completed its task."""
    outcome: AttemptOutcome | None
    """None while it runs."""
    error: dict[str, Any] | None = None
    traceback: str | None = None
    """The traceback of what its handler raised."""
