"""SIGTERM loses nothing and charges nobody."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]

TASKS = "SELECT status, attempt, failures FROM task"


async def running(service: ServiceProcess) -> str:
    id: str = service.create()["id"]
    await eventually(lambda: service.metric("tasksvc_running") == 1)
    return id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_service_stops_at_once(service: ServiceProcess, number: int) -> None:
    started = time.monotonic()

    assert service.stop(number) == 0

    assert time.monotonic() - started < 2
    assert "Stopped" in service.output()
    assert "Traceback" not in service.output()
    assert query(service.env["DATABASE_URL"], "SELECT * FROM worker") == []


async def test_running_task_may_finish_within_the_grace_period(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=1)
    await running(service)

    assert service.stop() == 0

    assert query(service.env["DATABASE_URL"], TASKS) == [("completed", 1, 0)]


async def test_longer_task_is_handed_back_and_starts_elsewhere_at_once(
    start_service: Start,
) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_GRACE_SECONDS=0.2)
    id = await running(service)
    # A lease so long that a rescue can't be what helps.
    other = start_service(TASKSVC_LEASE_SECONDS=300, TASKSVC_RELAY_SECONDS=60)

    assert service.stop() == 0

    await eventually(lambda: other.task(id)["status"] == "completed", 3)
    assert query(service.env["DATABASE_URL"], TASKS) == [("completed", 2, 0)]


async def test_second_signal_cuts_the_grace_short(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_GRACE_SECONDS=60)
    await running(service)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("Stopping")

    assert service.stop() == 0

    assert query(service.env["DATABASE_URL"], TASKS) == [("pending", 1, 0)]


async def test_stopping_service_answers_reads_and_refuses_creates(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_GRACE_SECONDS=60)
    id = await running(service)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("Stopping")

    assert service.get("/health")[0] == 503
    assert service.get("/health/ready")[0] == 503
    assert service.get("/health/live")[0] == 200
    assert service.task(id)["status"] == "processing"
    status, headers, _ = service.request(
        "POST", "/task", b'{"content": "x"}', {"Content-Type": "application/json"}
    )
    assert status == 503
    assert headers["Retry-After"]
    assert service.request("PATCH", f"/task/{id}/cancel")[0] == 200
    assert service.process.wait(10) == 0


async def test_stop_under_load_loses_nothing(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=0.05, TASK_CONSUMER_CONCURRENCY=10)
    created: list[str] = []

    def create() -> None:
        while True:
            try:
                created.append(service.create()["id"])
            except (AssertionError, OSError):  # refused, or gone
                return

    clients = [asyncio.create_task(asyncio.to_thread(create)) for _ in range(4)]
    await eventually(lambda: len(created) > 50)

    assert service.stop() == 0
    await asyncio.gather(*clients)

    service.start()
    await eventually(lambda: service.statuses(created) == {"completed"})
    assert query(service.env["DATABASE_URL"], "SELECT max(failures) FROM task") == [(0,)]


async def test_stop_while_it_waits_for_postgres(environment: dict[str, str], tmp_path) -> None:
    service = ServiceProcess(
        tmp_path, environment | {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    )
    service.spawn()
    try:
        service.wait_for_line("Waits for PostgreSQL")

        assert service.stop() == 0

        assert "Traceback" not in service.output()
    finally:
        service.end()
