"""Every error as a problem: on the real server, with routes that fail."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from weakref import WeakSet

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tasksvc.domain.errors import (
    DataRejected,
    LeaseLost,
    Overloaded,
    StoreUnavailable,
    StreamUnavailable,
    TaskIsFinal,
    TaskNotFound,
)
from tasksvc.domain.task import Status
from tasksvc.metrics import Metrics
from tasksvc.web.answering import shape_answers
from tasksvc.web.app_keys import LIMITS, METRICS
from tasksvc.web.limits import Limits
from tasksvc.web.problems import Problem, unavailable
from tasksvc.web.server import Runner
from tests.wire import Answer, assert_problem, request, talk

CANARY = "canary-7f3a"

ERRORS: dict[str, Exception] = {
    "runtime": RuntimeError(CANARY),
    "recursion": RecursionError(CANARY),
    "memory": MemoryError(CANARY),
    "timeout": TimeoutError(CANARY),
    "key": KeyError(CANARY),
    "found": TaskNotFound(),
    "final": TaskIsFinal(Status.CANCELED),
    "refused": DataRejected(),
    "store": StoreUnavailable(),
    "stream": StreamUnavailable(),
    "full": Overloaded(),
    "lease": LeaseLost(),
    "stopping": unavailable("The service is stopping."),
    "teapot": Problem(HTTPStatus.IM_A_TEAPOT, "Short and stout.", spout=True),
    "closes": Problem(HTTPStatus.BAD_REQUEST, "Enough.", closes=True),
    "forbidden": web.HTTPForbidden(text=CANARY, headers={"X-Canary": CANARY}),
    "internal": web.HTTPInternalServerError(reason=CANARY),
}


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    """Lines for debugging are made only when they are logged."""
    caplog.set_level("DEBUG", "tasksvc")


class Kept:
    """Something that a request has, such as its body."""


kept: WeakSet[Kept] = WeakSet()


async def keep(request: web.Request) -> web.Response:
    """Fails with an error that its own frame has too, as those of marshmallow do."""
    own = Kept()
    kept.add(own)
    error = ValueError()
    try:
        raise error
    except ValueError:
        raise unavailable("x") from None


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server whose route /{name} raises the error of that name."""

    async def fail(request: web.Request) -> web.Response:
        raise ERRORS[request.match_info["name"]]

    app = web.Application()
    app[METRICS] = Metrics("test")
    app[LIMITS] = Limits(
        max_body_bytes=1000,
        max_batch_bytes=1000,
        body_timeout_seconds=1,
        max_connections=100,
        write_timeout_seconds=1,
        max_buffer_bytes=10_000,
    )
    app.router.add_get("/{name}", fail)
    app.router.add_post("/keep", keep)
    shape_answers(app)
    runner = Runner(app, keepalive_seconds=10)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def get(port: int, name: str, *headers: str) -> Answer:
    return await asyncio.to_thread(talk, port, request("GET", f"/{name}", *headers))


@pytest.mark.parametrize("name", ["runtime", "recursion", "memory", "timeout", "key"])
async def test_unexpected_error_is_500_and_tells_the_log_alone(port: int, name: str) -> None:
    with capture_logs() as events:
        response = await get(port, name, "X-Request-ID: asked")

    assert_problem(response, 500)
    assert CANARY.encode() not in response.body
    assert response.headers["x-request-id"] == "asked"
    errors = [event for event in events if event["log_level"] == "error"]
    assert [event["exc_info"] for event in errors] == [ERRORS[name]]


@pytest.mark.parametrize(
    ("name", "status", "extensions"),
    [
        ("found", 404, {}),
        ("final", 400, {"task_status": "canceled"}),
        ("refused", 422, {}),
        ("store", 503, {}),
        ("stream", 503, {}),
        ("full", 503, {}),
        ("lease", 503, {}),
        ("stopping", 503, {}),
        ("teapot", 418, {"spout": True}),
        ("forbidden", 403, {}),
        ("internal", 500, {}),
    ],
)
async def test_expected_error_is_its_problem_and_no_error_in_the_log(
    port: int, name: str, status: int, extensions: dict[str, Any]
) -> None:
    with capture_logs() as events:
        response = await get(port, name)

    assert_problem(response, status, **extensions)
    assert CANARY not in str(response)
    assert ("retry-after" in response.headers) == (status == 503)
    assert [event["event"] for event in events] == ["Request answered"]


async def test_problem_that_closes_ends_the_connection(port: int) -> None:
    closes, stays = await get(port, "closes"), await get(port, "teapot")

    assert closes.headers["connection"] == "close"
    assert "connection" not in stays.headers


def test_body_has_the_members_of_rfc_9457_first() -> None:
    problem = Problem(HTTPStatus.NOT_FOUND, "Nothing.", errors=[])

    assert problem.body() == (
        b'{"type":"about:blank","title":"Not Found","status":404,"detail":"Nothing.","errors":[]}'
    )


async def test_error_keeps_nothing_of_its_request(port: int) -> None:
    gc.disable()
    try:
        answer = await asyncio.to_thread(talk, port, request("POST", "/keep"))
        assert_problem(answer, 503)
        assert not kept
    finally:
        gc.enable()
