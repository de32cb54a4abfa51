"""What a handler receives besides the content."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from tasksvc.domain.task import Claim
from tasksvc.domain.trace import trace_id_of

_log = structlog.get_logger("tasksvc.handler")

Report = Callable[[Claim, float, str], Awaitable[None]]
"""Keeps how far a task has come: a fraction from 0 to 1, and a word about it."""


def deadline(claim: Claim) -> float | None:
    """When a run that begins now is stopped."""
    return None if claim.timeout_seconds is None else time.monotonic() + claim.timeout_seconds


def about(claim: Claim) -> dict[str, Any]:
    """Returns the fields that every log line of a run has."""
    fields: dict[str, Any] = {"task_id": claim.id, "attempt": claim.attempt}
    if claim.traceparent is not None:
        fields["trace_id"] = trace_id_of(claim.traceparent)
    return fields


@dataclass(slots=True)
class _Context:
    id: str
    """The task's: the key to make effects idempotent."""
    attempt: int
    """Which run of the task this is, from 1: the token to fence effects in other systems."""
    kind: str
    deadline: float | None
    """When (`time.monotonic`) the run is stopped; None when it has no time limit."""
    traceparent: str | None
    """The W3C trace context of the request that created the task; None when it had none."""

    @property
    def log(self) -> Any:
        """A logger whose lines name the task."""
        return _log.bind(task_id=self.id, attempt=self.attempt)

    @property
    def remaining_seconds(self) -> float | None:
        """Until the run is stopped; None when it has no time limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(slots=True)
class Context(_Context):
    """For a handler on the event loop. A cancellation reaches it as asyncio's CancelledError."""

    _report: Callable[[float, str], Awaitable[None]] = field(repr=False)

    async def progress(self, fraction: float, message: str = "") -> None:
        """Keeps how far the task has come, from 0 to 1, for its readers."""
        await self._report(fraction, message)


@dataclass(slots=True)
class SyncContext(_Context):
    """For a handler in a thread or a process."""

    _report: Callable[[float, str], None] = field(repr=False)
    _is_canceled: Callable[[], bool] = field(repr=False)

    def progress(self, fraction: float, message: str = "") -> None:
        """Keeps how far the task has come, from 0 to 1, for its readers."""
        self._report(fraction, message)

    @property
    def is_canceled(self) -> bool:
        """Whether the result is no longer wanted: a thread can't be stopped from outside, and had
        better look now and then. A process is ended."""
        return self._is_canceled()
