"""The contract's rows, against the running service over a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tests.harness import ServiceProcess, eventually

Start = Callable[..., ServiceProcess]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
JSON = {"Content-Type": "application/json"}


async def test_create_answers_with_the_task(service: ServiceProcess) -> None:
    status, headers, body = service.request("POST", "/task", b'{"content": "hello"}', JSON)
    task = json.loads(body)

    assert status == 201
    assert headers["Location"] == f"/task/{task['id']}"
    assert headers["Content-Type"].startswith("application/json")
    assert list(task) == ["id", "content", "status", "created_at", "updated_at"]
    assert task["content"] == "hello"
    assert task["status"] == "pending"
    assert TIME.fullmatch(task["created_at"])
    assert task["updated_at"] is None


async def test_task_is_processed(service: ServiceProcess) -> None:
    id = service.create("work")["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")

    task = service.task(id)
    assert list(task) == ["id", "content", "status", "created_at", "updated_at"]
    assert TIME.fullmatch(task["updated_at"])


async def test_cancel_running_task_stops_its_handler(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60)
    id = service.create()["id"]
    await eventually(lambda: service.task(id)["status"] == "processing")

    status, _, body = service.request("PATCH", f"/task/{id}/cancel")

    assert status == 200
    assert json.loads(body)["status"] == "canceled"
    await eventually(lambda: service.metric("tasksvc_running") == 0)
    status, headers, body = service.request("PATCH", f"/task/{id}/cancel")
    assert status == 400
    assert headers["Content-Type"] == "application/problem+json"
    assert "canceled" in json.loads(body)["detail"]
