"""What a run of a handler can come to: a closed set, each with its constructor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tasksvc.domain.task import DEFAULT_KIND, Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a task goes from `processing`, and at whose cost."""

    status: Status
    is_charged: bool = False
    """It counts as a failure, of which a task has `max_attempts`."""
    delay_seconds: float = 0.0
    """How long a task that is `pending` again waits for its next attempt."""
    error: dict[str, Any] | None = None
    result: str | None = None
    """What the handler returned, as JSON; None when it returned nothing."""
    traceback: str | None = None
    """Of what the handler raised; for the history of the task, and never for the task."""


COMPLETED = Outcome(Status.COMPLETED)
"""The handler returned nothing, and has done its work."""

RELEASED = Outcome(Status.PENDING)
"""Handed back at shutdown: it starts elsewhere at once, and is not charged."""

FREE_RELEASES = 3
"""So often a task may be handed back and start again at once, whatever ended its worker."""

LONGEST_RELEASE_SECONDS = 60.0
"""The longest wait of a task that was handed back more often, which doubles each time."""


def released(uncharged: int) -> Outcome:
    """Handed back at shutdown, after so many attempts that were not charged, this one among them.

    A task that ends its worker in good order is never charged, and must not run at full speed.
    """
    if uncharged <= FREE_RELEASES:
        return RELEASED
    delay_seconds = min(LONGEST_RELEASE_SECONDS, 2.0 ** min(30, uncharged - FREE_RELEASES))
    return Outcome(Status.PENDING, delay_seconds=delay_seconds)


def completed(result: str) -> Outcome:
    """The handler returned this, as JSON."""
    return Outcome(Status.COMPLETED, result=result)


def failed(error: dict[str, Any], traceback: str | None = None) -> Outcome:
    """The handler raised, and its attempts are spent."""
    return Outcome(Status.FAILED, is_charged=True, error=error, traceback=traceback)


def refused(attempt: int) -> Outcome:
    """The database does not take what the run came to."""
    message = "The database does not take the result or the error of the run."
    return failed({"type": "OutcomeRefused", "message": message, "attempt": attempt})


def retried(error: dict[str, Any], delay_seconds: float, traceback: str | None = None) -> Outcome:
    """The handler raised, and it has another attempt, `delay_seconds` from now."""
    return Outcome(Status.PENDING, True, delay_seconds, error, traceback=traceback)


class RunResult(NamedTuple):
    """One task's outcome, with the attempt that came to it."""

    id: str
    attempt: int
    outcome: Outcome
    kind: str = DEFAULT_KIND
