"""The handlers that run, and how one is stopped."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from tasksvc.domain.task import Claim
from tasksvc.runs import Run, RunRegistry, StopReason


def make_run(id: str = "a", attempt: int = 1) -> Run:
    return Run(Claim(id, attempt, 0, 3, "x", None, 0.0), entry=None, task=Mock(spec=asyncio.Task))


def cancels(run: Run) -> int:
    assert isinstance(run.task, Mock)
    return int(run.task.cancel.call_count)


@pytest.fixture
def running() -> RunRegistry:
    return RunRegistry()


def test_only_named_runs_are_stopped(running: RunRegistry) -> None:
    runs = [make_run(id) for id in "abc"]
    for run in runs:
        running.add(run)

    assert running.stop(["a", "c", "unknown"]) == 2
    assert [cancels(run) for run in runs] == [1, 0, 1]
    assert [run.stop_reason for run in runs] == [StopReason.LOST, None, StopReason.LOST]


def test_all_are_stopped_at_shutdown(running: RunRegistry) -> None:
    runs = [make_run(id) for id in "ab"]
    for run in runs:
        running.add(run)
    running.stop_all()

    assert [run.stop_reason for run in runs] == [StopReason.SHUTDOWN] * 2
    assert [cancels(run) for run in runs] == [1, 1]


def test_lost_task_stays_lost_at_shutdown(running: RunRegistry) -> None:
    """Otherwise it would be released, although another worker holds it."""
    run = make_run()
    running.add(run)
    running.stop(["a"])
    running.stop_all()

    assert run.stop_reason is StopReason.LOST
    assert cancels(run) == 2


def test_run_without_a_task_only_remembers_why() -> None:
    run = Run(Claim("a", 1, 0, 3, "x", None, 0.0), entry=None)
    run.stop(StopReason.LOST)

    assert run.stop_reason is StopReason.LOST


def test_removed_run_is_not_stopped(running: RunRegistry) -> None:
    run = make_run()
    running.add(run)
    assert len(running) == 1
    running.remove(run)

    assert len(running) == 0
    assert running.stop(["a"]) == 0


def test_run_that_ends_late_does_not_remove_its_successor(running: RunRegistry) -> None:
    old, new = make_run(attempt=1), make_run(attempt=2)
    running.add(old)
    running.add(new)
    running.remove(old)
    running.remove(old)

    assert running.stop(["a"]) == 1
    assert cancels(new) == 1
    assert cancels(old) == 0
