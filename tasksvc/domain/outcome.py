"""The outcomes of a run of a handler: a closed set, each with its constructor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tasksvc.domain.task import DEFAULT_KIND, Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next status of a task that is `processing`, and whether the run counts as a failure."""

    status: Status
    is_charged: bool = False
    """The run counts as a failure: a task may have `max_attempts` of them."""
    delay_seconds: float = 0.0
    """How long a task that is `pending` again waits for its next attempt."""
    error: dict[str, Any] | None = None
    result: str | None = None
    """What the handler returned, as JSON; None when it returned nothing."""
    traceback: str | None = None
    """Of what the handler raised; for the history of the task, and never for the task."""


COMPLETED = Outcome(Status.COMPLETED)
"""The handler returned None."""

RELEASED = Outcome(Status.PENDING)
"""Released at shutdown: the task may start elsewhere at once, and the run is not charged."""

FREE_RELEASES = 3
"""How often a task may be released and start again at once, whatever ended its worker."""

LONGEST_RELEASE_SECONDS = 60.0
"""The longest wait of a task that was released more often. The wait doubles each time."""


def released(uncharged: int) -> Outcome:
    """Returns the outcome of a run that was released at shutdown. `uncharged` is the number of
    attempts that were not charged, this one included.

    A task that makes its worker stop is never charged, and must not run again at full speed.
    """
    if uncharged <= FREE_RELEASES:
        return RELEASED
    delay_seconds = min(LONGEST_RELEASE_SECONDS, 2.0 ** min(30, uncharged - FREE_RELEASES))
    return Outcome(Status.PENDING, delay_seconds=delay_seconds)


def completed(result: str) -> Outcome:
    """Returns the outcome of a run whose handler returned this JSON."""
    return Outcome(Status.COMPLETED, result=result)


def failed(error: dict[str, Any], traceback: str | None = None) -> Outcome:
    """Returns the outcome of a run that raised and has no attempt left."""
    return Outcome(Status.FAILED, is_charged=True, error=error, traceback=traceback)


def refused(attempt: int) -> Outcome:
    """Returns the outcome of a run whose result or error the database rejects."""
    message = "The database does not take the result or the error of the run."
    return failed({"type": "OutcomeRefused", "message": message, "attempt": attempt})


def retried(error: dict[str, Any], delay_seconds: float, traceback: str | None = None) -> Outcome:
    """Returns the outcome of a run that raised and is retried after `delay_seconds`."""
    return Outcome(Status.PENDING, True, delay_seconds, error, traceback=traceback)


class RunResult(NamedTuple):
    """The outcome of one attempt of a task."""

    id: str
    attempt: int
    outcome: Outcome
    kind: str = DEFAULT_KIND
