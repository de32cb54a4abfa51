"""A handler that blocks the event loop is named, and costs no task its attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import psycopg2
import pytest
import structlog

from tasksvc.duties import loop_guard as guard_module
from tasksvc.duties.loop_guard import LoopGuard
from tasksvc.metrics import Metrics
from tasksvc.store.blocking import BlockingLease
from tasksvc.store.database import Database
from tasksvc.store.task_store import TaskStore
from tests.harness import eventually, query
from tests.integration.conftest import MakeWorker

pytestmark = pytest.mark.slow

MakeGuard = Callable[..., LoopGuard]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(guard_module, "_BLOCKED_SECONDS", 0.2)


@pytest.fixture
async def make_guard(metrics: Metrics) -> AsyncIterator[MakeGuard]:
    made: list[LoopGuard] = []

    def make(renew: Callable[[str], None], worker_id: str | None = "w") -> LoopGuard:
        guard = LoopGuard(lambda: worker_id, renew, metrics, renew_after_seconds=0.2)
        made.append(guard)
        guard.start()
        return guard

    yield make
    for guard in made:
        guard.stop()
        assert guard._thread is not None
        await asyncio.to_thread(guard._thread.join)


async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - that is what it is about


async def test_blocked_loop_is_named_with_the_task_and_the_line(
    make_guard: MakeGuard, metrics: Metrics
) -> None:
    with structlog.testing.capture_logs() as lines:
        make_guard(lambda id: None)
        await asyncio.sleep(0.2)

        await asyncio.create_task(block(0.6), name="task-some-id")

        await eventually(lambda: [line["action"] for line in lines][-1:] == ["loop_goes_on"])
    blocked, over = lines
    assert blocked["task_id"] == "some-id"
    assert "test_guard_of_the_loop.py" in blocked["stack"]
    assert blocked["stack"].endswith(" block")
    assert over["seconds"] >= 0.3
    assert metrics.loop_blocks.value == 1


async def test_loop_that_is_busy_but_turns_is_not_blocked(make_guard: MakeGuard) -> None:
    with structlog.testing.capture_logs() as lines:
        make_guard(lambda id: None)
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            time.sleep(0.02)  # noqa: ASYNC251
            await asyncio.sleep(0)

    assert lines == []


async def test_lease_is_renewed_while_the_loop_is_blocked_but_not_for_ever(
    make_guard: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_PATIENCE_SECONDS", 0.7)
    renewed: list[float] = []
    make_guard(lambda id: renewed.append(time.monotonic()))
    began = time.monotonic()

    await block(1.6)

    assert renewed
    assert renewed[-1] - began < 1.3


async def test_slow_renewals_do_not_begin_the_patience_again(
    make_guard: MakeGuard, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL may take seconds for each, as it does when it is the reason for all of it."""
    monkeypatch.setattr(guard_module, "_PATIENCE_SECONDS", 0.8)
    renewed: list[float] = []

    def renew(id: str) -> None:
        renewed.append(time.monotonic())
        time.sleep(0.4)

    with structlog.testing.capture_logs() as lines:
        make_guard(renew)
        began = time.monotonic()
        await block(3.0)
        said = [line["action"] for line in lines]

    assert said == ["loop_blocked"]
    assert renewed
    assert renewed[-1] - began < 2.0
    assert metrics.loop_blocks.value == 1


async def test_renewal_that_fails_is_said_and_tried_again(make_guard: MakeGuard) -> None:
    tries: list[str] = []

    def fail(id: str) -> None:
        tries.append(id)
        raise psycopg2.OperationalError("postgresql://user:secret@host")

    with structlog.testing.capture_logs() as lines:
        make_guard(fail)
        await block(1.5)

    assert len(tries) > 1
    assert "secret" not in str(lines)


async def test_process_without_a_worker_renews_nothing(make_guard: MakeGuard) -> None:
    renewed: list[str] = []
    make_guard(renewed.append, None)

    await block(0.8)

    assert renewed == []


async def test_blocking_renewal_is_a_renewal(
    make_worker: MakeWorker, database_url: str, store: TaskStore
) -> None:
    worker = make_worker()
    await worker.service.register()
    query(database_url, "UPDATE worker SET expires_at = clock_timestamp()")

    await asyncio.to_thread(BlockingLease(Database(database_url), 60).renew, str(worker.service.id))

    ((seconds,),) = query(
        database_url, "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM worker"
    )
    assert 50 < seconds <= 60
