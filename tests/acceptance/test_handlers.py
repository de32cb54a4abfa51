"""Handlers of the user's own, by kind, against the running service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from tests.harness import ServiceProcess, eventually, query
from tests.wire import assert_problem, post, talk

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]

SHOP = "tests.handlers.shop"


@pytest.fixture
def shop(shared_services: Start) -> ServiceProcess:
    """A service that serves the kinds of tests/handlers/shop.py."""
    return shared_services(TASKSVC_HANDLERS=SHOP, TASK_RETRY_BASE_SECONDS=0)


def create(service: ServiceProcess, kind: str, content: str = "x", **options: object) -> str:
    body = json.dumps({"content": content, "kind": kind, **options}).encode()
    answer = talk(service.port, post(body))
    assert answer.status == 201, answer.body
    task = answer.json()
    assert task["kind"] == kind
    return str(task["id"])


async def ended(service: ServiceProcess, id: str, status: str) -> dict[str, Any]:
    """The task, once it has that status."""
    await eventually(lambda: service.task(id)["status"] == status)
    return service.task(id)


async def test_coroutine_function(shop: ServiceProcess) -> None:
    task = await ended(shop, create(shop, "greet", "you"), "completed")

    assert list(task)[5:] == ["kind", "progress", "result"]
    assert task["result"] == {"hello": "you", "attempt": 1, "pid": shop.process.pid}
    assert task["progress"] == {"fraction": 0.5, "message": "half the way"}


@pytest.mark.parametrize(("where", "is_own"), [("thread", False), ("process", True)])
async def test_plain_function(shop: ServiceProcess, where: str, is_own: bool) -> None:
    id = create(shop, f"whereabouts-{where}")

    result = (await ended(shop, id, "completed"))["result"]

    assert result["id"] == id
    assert (result["pid"] != shop.process.pid) is is_own


async def test_without_a_kind_the_default_stays(shop: ServiceProcess) -> None:
    task = await ended(shop, shop.create()["id"], "completed")

    assert list(task) == ["id", "content", "status", "created_at", "updated_at"]


@pytest.mark.parametrize("kind", ["unknown-kind", "", "x" * 101, "nul \0", 5, ["greet"]])
async def test_kind_that_no_process_serves_is_refused(shop: ServiceProcess, kind: object) -> None:
    answer = talk(shop.port, post(json.dumps({"content": "x", "kind": kind}).encode()))

    problem = answer.json()
    assert_problem(answer, 422, errors=problem["errors"])
    assert [error["pointer"] for error in problem["errors"]] == ["/kind"]


async def test_attempts_of_a_kind_and_of_a_task(shop: ServiceProcess) -> None:
    first = create(shop, "fail", "why")
    second = create(shop, "fail", "why", max_attempts=3)

    error = (await ended(shop, first, "failed"))["error"]
    assert error == {"type": "Unheard", "message": "why", "attempt": 2}
    assert (await ended(shop, second, "failed"))["error"]["attempt"] == 3


@pytest.mark.parametrize("kind", ["fail", "fail-process"])
async def test_permanent_failure_is_not_tried_again(shop: ServiceProcess, kind: str) -> None:
    error = (await ended(shop, create(shop, kind, "permanent", max_attempts=5), "failed"))["error"]

    assert error == {"type": "Permanent", "message": "no use", "attempt": 1}


async def test_process_that_dies_fails_its_task_alone(shop: ServiceProcess) -> None:
    error = (await ended(shop, create(shop, "fail-process", "exit"), "failed"))["error"]

    assert error["type"] == "ProcessDied"
    assert shop.process.poll() is None


async def test_time_limit_ends_a_process(shop: ServiceProcess) -> None:
    id = create(shop, "sleep-process", "60", timeout_seconds=0.5, max_attempts=1)

    task = await ended(shop, id, "failed")

    assert task["error"]["type"] == "TimedOut"
    pid = int(task["progress"]["message"])
    await eventually(lambda: not psutil.pid_exists(pid))


async def test_cancel_ends_a_process(shop: ServiceProcess) -> None:
    id = create(shop, "sleep-process", "60")
    await eventually(lambda: "progress" in shop.task(id))
    pid = int(shop.task(id)["progress"]["message"])

    status, _, _ = shop.request("PATCH", f"/task/{id}/cancel")

    assert status == 200
    await eventually(lambda: not psutil.pid_exists(pid), 3)


async def test_process_of_a_handler_does_not_outlive_the_service(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS=SHOP)
    id = create(service, "sleep-process", "60")
    await eventually(lambda: "progress" in service.task(id))
    pid = int(service.task(id)["progress"]["message"])

    service.kill()

    await eventually(lambda: not psutil.pid_exists(pid), 3)


async def test_thread_that_goes_on_does_not_hold_the_shutdown(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS=SHOP, TASKSVC_GRACE_SECONDS=0.1)
    id = create(service, "sleep-thread", "60")
    await eventually(lambda: service.task(id)["status"] == "processing")

    assert service.stop(within_seconds=10) == 0

    url = service.env["DATABASE_URL"]
    assert query(url, "SELECT status, failures FROM task") == [("pending", 0)]


async def test_process_takes_only_kinds_that_it_has(start_service: Start) -> None:
    plain = start_service(TASKSVC_RELAY_SECONDS=0.1)
    shop = start_service(TASKSVC_HANDLERS=SHOP, TASKSVC_RELAY_SECONDS=0.1)

    # The front does not serve the kind, and looks for a worker that does.
    ids = [create(plain, "greet") for _ in range(10)]

    await eventually(lambda: plain.statuses(ids) == {"completed"})
    pids = {plain.task(id)["result"]["pid"] for id in ids}
    assert pids == {shop.process.pid}
    assert query(plain.env["DATABASE_URL"], "SELECT DISTINCT failures FROM task") == [(0,)]


async def test_kind_that_nobody_serves_any_more_waits(start_service: Start) -> None:
    shop = start_service(TASKSVC_HANDLERS=SHOP, TASK_CONSUMER_WORKERS=0)
    id = create(shop, "greet")
    plain = start_service(TASKSVC_RELAY_SECONDS=0.1)
    other = plain.create()["id"]
    await eventually(lambda: plain.task(other)["status"] == "completed")

    assert plain.task(id)["status"] == "pending"


async def test_task_is_delivered_over_http(start_service: Start) -> None:
    seen: list[dict[str, str]] = []

    async def hook(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        if len(seen) == 1:
            return web.Response(status=503, headers={"Retry-After": "0"})
        return web.json_response({"got": await request.text()})

    app = web.Application()
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        service = await asyncio.to_thread(
            start_service, TASKSVC_HTTP_ALLOW=host, TASKSVC_HTTP_ALLOW_PRIVATE=1
        )
        content = json.dumps({"url": f"http://{host}/hook", "body": "hello"})
        id = await asyncio.to_thread(create, service, "http", content)

        async def completed() -> bool:
            task = await asyncio.to_thread(service.task, id)
            return bool(task["status"] == "completed")

        await eventually(completed)
        assert (await asyncio.to_thread(service.task, id))["result"] == {"got": "hello"}
        assert [headers["Tasksvc-Attempt"] for headers in seen] == ["1", "2"]
        assert {headers["Tasksvc-Task-Id"] for headers in seen} == {id}
    finally:
        await runner.cleanup()


async def test_http_is_no_kind_where_no_host_is_allowed(shop: ServiceProcess) -> None:
    answer = talk(shop.port, post(b'{"content": "x", "kind": "http"}'))

    assert answer.status == 422


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "can't be imported: ModuleNotFoundError"),
        ("x = 1", "has no handler"),
        ("raise SystemError('first\\nsecond')", "can't be imported: SystemError: first second"),
        (
            "from tasksvc import handler\n@handler('x')\nasync def f(content): ...",
            "bad.f: a handler takes (content, context).",
        ),
    ],
)
async def test_module_that_will_not_do_stops_the_start(
    environment: dict[str, str], tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    service = ServiceProcess(tmp_path, environment | {"TASKSVC_HANDLERS": "bad"})
    service.env["PYTHONPATH"] += f":{tmp_path}"
    service.spawn()

    assert service.process.wait(15) == 1
    last = service.output().splitlines()[-1]
    assert last.startswith("Error: ")
    assert reason in last
    assert "Traceback" not in service.output()
