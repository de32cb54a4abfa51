"""A trace context goes from the request that creates a task to its handler and its log lines."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.harness import ServiceProcess, eventually
from tests.wire import JSON, post, request, talk

pytestmark = pytest.mark.slow

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
WAYS = ("loop", "thread", "process")


async def test_handlers_and_their_lines_have_it(
    start_service: Callable[..., ServiceProcess],
) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.traced", LOG_LEVEL="info")
    ids = {}
    for way in WAYS:
        body = json.dumps({"content": "x", "kind": way}).encode()
        ids[way] = talk(service.port, post(body, f"traceparent: {PARENT}")).json()["id"]
    plain = service.create("x", kind="loop")["id"]
    await eventually(lambda: all(service.task(id).get("result") == PARENT for id in ids.values()))
    await eventually(lambda: service.task(plain)["status"] == "completed")

    assert "result" not in service.task(plain)
    lines = {e["task_id"]: e for e in service.events() if e.get("action") == "traced"}
    assert [lines[id].get("trace_id") for id in ids.values()] == [TRACE] * 3
    assert "trace_id" not in lines[plain]


async def test_batch_and_retry_keep_it(start_service: Callable[..., ServiceProcess]) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.traced")
    body = json.dumps({"tasks": [{"content": "x", "kind": "loop"}] * 2}).encode()
    made = talk(
        service.port, request("POST", "/tasks", JSON, f"traceparent: {PARENT}", body=body)
    ).json()["tasks"]
    await eventually(lambda: all(service.task(t["id"]).get("result") == PARENT for t in made))

    again = talk(service.port, request("POST", f"/task/{made[0]['id']}/retry")).json()["id"]

    await eventually(lambda: service.task(again).get("result") == PARENT)
