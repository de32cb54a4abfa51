"""SIGTERM loses nothing and charges no task."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.handlers import leftovers
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]

TASKS = "SELECT status, attempt, failures FROM task"


async def running(service: ServiceProcess) -> str:
    id: str = service.create()["id"]
    await eventually(lambda: service.metric("tasksvc_running") == 1)
    return id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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


async def test_ctrl_c_says_what_it_waits_for_and_how_to_stop_now(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_GRACE_SECONDS=60)
    await running(service)

    service.process.send_signal(signal.SIGINT)

    service.wait_for_line(
        "Stopping: waits up to 60 s for 1 running task; a second signal or Ctrl-C cuts that short,"
        " a third ends the process at once"
    )
    assert service.stop(signal.SIGINT) == 0


async def test_start_that_ignores_sighup_goes_on_without_a_terminal(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As `nohup tasksvc run` asks for."""
    command = ["nohup", sys.executable, "-m", "tasksvc", "run"]
    service = ServiceProcess(tmp_path, environment, command)
    try:
        service.start()
        service.process.send_signal(signal.SIGHUP)

        assert service.create()
        assert service.stop() == 0
    finally:
        service.end()


async def test_process_ends_whatever_its_handlers_have_left(start_service: Start) -> None:
    """With what was registered for the end, and with its output."""
    service = start_service(
        TASKSVC_HANDLERS="tests.handlers.leftovers", TASKSVC_GRACE_SECONDS=0.2, TASK_MAX_ATTEMPTS=1
    )
    ids = [service.create(kind=kind)["id"] for kind in leftovers.KINDS]
    await eventually(lambda: service.output().count("left something") == len(ids))
    await eventually(lambda: service.task(ids[0])["status"] == "failed")
    started = time.monotonic()

    assert service.stop() == 0

    assert time.monotonic() - started < 5
    output = service.output()
    assert "Stopped" in output
    assert "registered for the end" in output
    assert query(service.env["DATABASE_URL"], "SELECT * FROM worker") == []
    assert query(service.env["DATABASE_URL"], "SELECT max(failures) FROM task") == [(1,)]
    await eventually(lambda: not leftovers.children(output))


async def test_threads_of_a_module_outlast_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """They would keep the process that starts the processes of handlers."""
    (tmp_path / "threads.py").write_text(
        "import threading, time\n"
        "from tasksvc import handler\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "@handler('process', run_in='process')\n"
        "def process(content, ctx): pass\n"
    )
    service = ServiceProcess(tmp_path, environment | {"TASKSVC_HANDLERS": "threads"})
    try:
        service.start()
        id = service.create(kind="process")["id"]
        await eventually(lambda: service.task(id)["status"] == "completed")
        children = psutil.Process(service.process.pid).children(recursive=True)

        assert service.stop() == 0

        await eventually(lambda: not any(child.is_running() for child in children))
    finally:
        service.end()


async def test_unfinished_request_does_not_outlast_the_stop(start_service: Start) -> None:
    service = start_service(TASKSVC_GRACE_SECONDS=0, TASKSVC_BODY_TIMEOUT_SECONDS=60)
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(
            b"POST /task HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        service.create()  # what was sent before is read by now

        assert service.stop() == 0

    assert query(service.env["DATABASE_URL"], "SELECT * FROM worker") == []


async def test_third_signal_ends_a_process_whose_event_loop_is_blocked(
    start_service: Start,
) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.leftovers", TASKSVC_GRACE_SECONDS=60)
    service.create(kind="blocked")
    service.wait_for_line("blocks the event loop")

    for _ in range(2):
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)  # two at the same moment are one
        assert service.process.poll() is None

    assert service.stop(within_seconds=2) == 1


async def test_blocked_event_loop_does_not_outlast_the_grace_period(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.leftovers", TASKSVC_GRACE_SECONDS=0)
    service.create(kind="blocked")
    service.wait_for_line("blocks the event loop")
    started = time.monotonic()

    assert service.stop() == 1

    assert 4 < time.monotonic() - started < 7
    assert "tasksvc did not stop within 5 s and was ended" in service.output()


@pytest.mark.parametrize(("module", "signals", "code"), [("slow", 1, 0), ("stubborn", 3, 1)])
async def test_signals_count_while_handlers_are_imported(
    environment: dict[str, str], tmp_path: Path, module: str, signals: int, code: int
) -> None:
    (tmp_path / "slow.py").write_text("print('imports', flush=True)\nimport time; time.sleep(60)")
    (tmp_path / "stubborn.py").write_text(
        "while True:\n    try: import slow\n    except BaseException: pass\n"
    )
    service = ServiceProcess(tmp_path, environment | {"TASKSVC_HANDLERS": module})
    service.spawn()
    try:
        service.wait_for_line("imports")
        for _ in range(signals):
            assert service.process.poll() is None
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)

        assert service.process.wait(5) == code
        assert "Traceback" not in service.output()
    finally:
        service.end()


async def test_signal_to_a_forked_process_is_not_ours(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.leftovers")

    id = service.create(kind="signal-a-fork")["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")
    assert service.task(id)["result"] == [-signal.SIGTERM, -signal.SIGHUP]
    assert "Stopping" not in service.output()


async def test_requests_are_answered_while_it_drains(start_service: Start) -> None:
    """A balancer learns from the readiness to send them elsewhere."""
    service = start_service(TASK_CONSUMER_WORKERS=0, TASKSVC_DRAIN_SECONDS=60)
    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("Stopping: serves on for 60 s; a second signal")

    assert service.get("/health/ready")[0] == 503
    assert service.get("/health")[0] == 503
    assert service.get("/health/live")[0] == 200
    id = service.create()["id"]
    assert service.task(id)["status"] == "pending"
    assert service.stop() == 0


async def test_drain_ends_by_itself(start_service: Start) -> None:
    service = start_service(TASK_CONSUMER_WORKERS=0, TASKSVC_DRAIN_SECONDS=0.5)
    started = time.monotonic()

    assert service.stop() == 0

    assert 0.5 <= time.monotonic() - started < 3


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


async def test_stop_while_it_waits_for_postgres(
    environment: dict[str, str], tmp_path: Path
) -> None:
    service = ServiceProcess(
        tmp_path, environment | {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    )
    service.spawn()
    try:
        service.wait_for_line("Waiting for PostgreSQL")

        assert service.stop() == 0

        assert "Traceback" not in service.output()
    finally:
        service.end()
