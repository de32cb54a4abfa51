"""What a run can come to."""

from __future__ import annotations

from tasksvc.domain import outcome
from tasksvc.domain.outcome import COMPLETED, RELEASED, Outcome
from tasksvc.domain.task import FOLLOWS, Status

ERROR = {"type": "ValueError", "message": "no", "attempt": 1}


def test_every_outcome_may_follow_a_run() -> None:
    outcomes = [COMPLETED, RELEASED, outcome.failed(ERROR), outcome.retried(ERROR, 1.0)]

    assert {each.status for each in outcomes} <= FOLLOWS[Status.PROCESSING]


def test_only_failures_are_charged() -> None:
    assert not COMPLETED.is_charged
    assert not RELEASED.is_charged
    assert outcome.failed(ERROR).is_charged
    assert outcome.retried(ERROR, 1.0).is_charged


def test_released_starts_again_at_once() -> None:
    assert Outcome(Status.PENDING, False, 0.0, None) == RELEASED


def test_retried_waits_and_remembers_why() -> None:
    assert outcome.retried(ERROR, 2.5) == Outcome(Status.PENDING, True, 2.5, ERROR)


def test_failed_remembers_why() -> None:
    assert outcome.failed(ERROR) == Outcome(Status.FAILED, True, 0.0, ERROR)
