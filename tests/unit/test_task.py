"""The words for a task, and what may follow what."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib import resources

import pytest

from tasksvc.domain.attempt import AttemptOutcome
from tasksvc.domain.task import FINAL, FOLLOWS, Status, Task

MIGRATIONS = resources.files("tasksvc") / "migrations"


def words(pattern: str, migration: str = "0001_baseline.sql") -> list[str]:
    found = re.search(pattern, (MIGRATIONS / migration).read_text("utf-8"))
    assert found is not None
    return re.findall(r"'(\w+)'", found[1])


def test_database_knows_the_same_words_in_the_same_order() -> None:
    assert words(r"task_status AS ENUM \((.*?)\)") == list(Status)


def test_database_knows_the_same_ends_of_an_attempt() -> None:
    ends = words(r"attempt_outcome AS ENUM \((.*?)\)")

    assert ends == list(AttemptOutcome)


def test_database_calls_the_same_statuses_final() -> None:
    assert set(words(r"is_finished_when_final CHECK \(\(status IN \((.*?)\)")) == FINAL


def test_every_status_has_its_followers() -> None:
    assert FOLLOWS.keys() == set(Status)


def test_nothing_follows_what_is_final() -> None:
    assert {status for status, followers in FOLLOWS.items() if not followers} == FINAL


def test_every_live_task_can_be_canceled_and_can_fail() -> None:
    for status in set(Status) - FINAL:
        assert {Status.CANCELED, Status.FAILED} <= FOLLOWS[status]


def test_only_what_runs_completes() -> None:
    assert [s for s in Status if Status.COMPLETED in FOLLOWS[s]] == [Status.PROCESSING]


def test_task_is_what_was_read() -> None:
    task = Task("id", "x", Status.PROCESSING, datetime.now(UTC), None)

    with pytest.raises(AttributeError):
        task.status = Status.PENDING  # type: ignore[misc]
