"""Handlers that do what handlers should not: what becomes of each, and of all others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.handlers.zoo import ZOO, Case
from tests.harness import ServiceProcess, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def zoo(shared_services: Callable[..., ServiceProcess]) -> Iterator[ServiceProcess]:
    service = shared_services(
        TASKSVC_HANDLERS="tests.handlers.zoo", TASK_RETRY_BASE_SECONDS=0, TASKSVC_PROCESSES=2
    )
    yield service
    assert service.process.poll() is None
    assert "topp" not in service.output()  # no signal of a child has reached it


@pytest.fixture(scope="module")
def tasks(zoo: ServiceProcess) -> dict[str, dict[str, Any]]:
    """The task of each kind, once all have ended."""
    ids = {case.kind: zoo.create(kind=case.kind, **case.options)["id"] for case in ZOO}
    deadline = time.monotonic() + 60
    return {kind: zoo.wait(id, max(0.1, deadline - time.monotonic())) for kind, id in ids.items()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.kind)
def test_each_task_ends_as_it_should(tasks: dict[str, dict[str, Any]], case: Case) -> None:
    task = tasks[case.kind]

    error = task.get("error") or {"type": None, "message": ""}
    assert error["type"] == case.error, task
    assert error["message"].startswith(case.message)
    assert task["status"] == ("completed" if case.error is None else "failed")
    if case.result is not ...:
        assert task.get("result") == case.result


async def test_nothing_is_left_of_a_process(tasks: dict[str, dict[str, Any]]) -> None:
    pids = tasks["leaves-processes-process"]["result"]

    assert len(pids) == 3
    await eventually(lambda: not any(_runs(pid) for pid in pids))


def test_service_still_works_in_every_way(
    zoo: ServiceProcess, tasks: dict[str, dict[str, Any]]
) -> None:
    for kind in ("canary", "runs-a-program-thread", "runs-a-program-process"):
        assert zoo.wait(zoo.create(kind=kind)["id"], 5)["status"] == "completed"
    status, _, body = zoo.get("/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


async def test_service_goes_on_after_a_handler_cancels_all_tasks_of_the_loop(
    zoo: ServiceProcess,
) -> None:
    async def completes(kind: str) -> None:
        id = zoo.create(kind=kind)["id"]

        def is_completed() -> bool:
            with suppress(ConnectionError):  # of those that were open, none is left open
                return bool(zoo.task(id)["status"] == "completed")
            return False

        await eventually(is_completed)

    for _ in range(2):
        with socket.create_connection(("127.0.0.1", zoo.port), 5) as idle:
            await completes("cancels-all-tasks-of-the-loop")
            with suppress(ConnectionResetError):
                assert idle.recv(1) == b""
        await completes("canary")
    status, _, body = zoo.get("/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


async def test_service_goes_on_after_a_handler_stops_the_loop(zoo: ServiceProcess) -> None:
    for kind in ("stops-the-loop", "stops-the-loop", "canary"):
        assert zoo.wait(zoo.create(kind=kind)["id"], 5)["status"] == "completed"
    assert zoo.get("/health/live")[0] == 200


async def test_longest_wait_of_a_group_is_waited_for(zoo: ServiceProcess) -> None:
    id = zoo.create(kind="wait-for-retry")["id"]

    await eventually(lambda: "error" in zoo.task(id))
    assert zoo.task(id)["status"] == "pending"
    assert zoo.task(id)["error"]["type"] == "ExceptionGroup"


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
