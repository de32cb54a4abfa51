"""Middlewares, signals and sub-applications of aiohttp around the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tasksvc.app import create_app
from tasksvc.settings import Settings
from tasksvc.web.routes import OPS, TASKS, Endpoint
from tasksvc.web.server import Runner
from tests.harness import eventually
from tests.wire import JSON, Wire, assert_problem, request, talk

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NAME = web.AppKey("name", str)

ended: list[str] = []
"""What the sub-application has ended."""

PATHS = [
    "/tasks?limit=1",
    "/task/x?a=b",
    "/ui",
    "/ui/",
    "/ui/page",
    "/ui/item/5",
    "/ui/none",
    "/none",
]

KEY = {"Authorization": "Bearer right"}

AUTHORIZATION = "Authorization: Bearer right"


class Served(TestServer):
    """The service's own server around the application."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, keepalive_seconds=10)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.headers.get("Authorization") != KEY["Authorization"]:
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
    return await handler(request)


@web.middleware
async def mark(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.headers["X-Marked"] = request.app[NAME]
    return response


async def page(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.app[NAME]} {request.match_info.get('id')}")


async def elsewhere(request: web.Request) -> web.Response:
    raise web.HTTPFound("/ui/page")


async def missing(request: web.Request) -> web.Response:
    raise web.HTTPNotFound(text="<h1>No such page</h1>", content_type="text/html")


async def unfinished(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begin")
    raise ValueError


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"x" * 100_000)
    finally:
        ended.append("stream")


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(__file__)


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    try:
        async for message in socket:
            await socket.send_str(message.data)
    finally:
        ended.append("socket")
    return socket


async def read(request: web.Request) -> web.Response:
    return web.Response(text=await request.text())


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await asyncio.sleep(0.3)
    await response.write(b"end")
    return response


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Signed"] = "yes"


@pytest.fixture(params=[Served, TestServer], ids=["own_server", "aiohttp_server"])
async def client(
    settings: Settings, request: pytest.FixtureRequest
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    ended.clear()
    app = create_app(settings)
    app.middlewares.append(authenticate)
    app.on_response_prepare.append(sign)
    ui = web.Application(middlewares=[mark])
    ui[NAME] = "ui"
    ui.add_routes(
        [
            web.get("/page", page),
            web.get("/item/{id}", page),
            web.get("/elsewhere", elsewhere),
            web.get("/missing", missing),
            web.get("/stream", stream),
            web.get("/unfinished", unfinished),
            web.get("/file", file),
            web.post("/read", read),
            web.get("/echo", echo),
        ]
    )
    app.add_subapp("/ui", ui)
    async with TestClient(request.param(app)) as client:
        yield client


def path_of(endpoint: Endpoint) -> str:
    return endpoint.path.replace("{task_id}", "x").replace("{name}", "x")


ASKED = [(each.method, path_of(each)) for each in TASKS + OPS] + [("GET", path) for path in PATHS]


async def test_no_path_passes_the_middleware(client: TestClient[Any, Any]) -> None:
    for method, path in [*ASKED, ("TRACE", "/task"), ("DELETE", "/task")]:
        async with client.request(method, path, json={}) as response:
            assert response.status == 401, path
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.content_type == "application/problem+json"
            assert response.headers["X-Signed"] == "yes"


async def test_with_the_key_the_service_answers(client: TestClient[Any, Any]) -> None:
    async with client.post("/task", json={"content": "x"}, headers=KEY) as response:
        assert response.status == 201
        task = await response.json()
    for path in ("/tasks", "/tasks?limit=1", f"/task/{task['id']}", "/health", "/metrics"):
        async with client.get(path, headers=KEY) as response:
            assert response.status == 200
            assert response.headers["X-Signed"] == "yes"
    async with client.patch("/task", headers=KEY) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(("path", "text"), [("/ui/page", "ui None"), ("/ui/item/5?a=b", "ui 5")])
async def test_sub_application_answers_with_its_own_middleware(
    client: TestClient[Any, Any], path: str, text: str
) -> None:
    async with client.get(path, headers=KEY) as response:
        assert (response.status, await response.text()) == (200, text)
        assert response.headers["X-Marked"] == "ui"
        assert response.headers["X-Signed"] == "yes"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/ui/file", "/ui/stream", "/ui/missing", "/ui/none", "/none"])
async def test_every_response_has_the_headers(client: TestClient[Any, Any], path: str) -> None:
    async with client.get(path, headers=KEY | {"X-Request-ID": "mine"}) as response:
        assert response.headers["Server"] == "tasksvc"
        assert response.headers["X-Request-ID"] == "mine"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Signed"] == "yes"


async def test_web_socket_of_a_sub_application(client: TestClient[Any, Any]) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await client.ws_connect("/ui/echo")
    async with client.ws_connect("/ui/echo", headers=KEY | {"X-Request-ID": "mine"}) as socket:
        assert socket._response.headers["X-Request-ID"] == "mine"
        assert socket._response.headers["X-Signed"] == "yes"
        for _ in range(5):
            await socket.send_str("x" * 10_000)
            assert await socket.receive_str() == "x" * 10_000


async def test_web_socket_learns_that_its_client_is_gone(client: TestClient[Any, Any]) -> None:
    socket = await client.ws_connect("/ui/echo", headers=KEY)
    assert not ended

    socket._conn.transport.abort()

    await eventually(lambda: ended)


async def test_upgrade_that_is_declined_ends_the_connection(client: TestClient[Any, Any]) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with client.get("/health", headers=KEY | upgrade) as response:
        assert response.status == 200
        assert (await response.json())["status"] == "ok"
    async with client.post("/task", json={"content": "x"}, headers=KEY | upgrade) as response:
        assert response.status in (201, 400)


async def test_error_page_of_a_sub_application_stays_one(client: TestClient[Any, Any]) -> None:
    async with client.get("/ui/missing", headers=KEY) as response:
        assert (response.status, response.content_type) == (404, "text/html")
        assert await response.text() == "<h1>No such page</h1>"


async def test_stream_that_breaks_off_ends_the_connection(client: TestClient[Any, Any]) -> None:
    async with client.get("/ui/unfinished", headers=KEY) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.fixture
async def port(settings: Settings) -> AsyncIterator[int]:
    """Of a service with a sub-application behind the middleware, and little patience."""
    ended.clear()
    app = create_app(replace(settings, write_timeout_seconds=0.5))
    app.middlewares.append(authenticate)
    ui = web.Application()
    ui.add_routes(
        [
            web.get("/endless", endless),
            web.get("/unfinished", unfinished),
            web.post("/read", read),
        ]
    )
    app.add_subapp("/ui", ui)
    async with Served(app) as server:
        assert server.port is not None
        yield server.port


async def test_stream_that_is_not_read_is_ended(port: int) -> None:
    with Wire(port) as wire:
        wire.send(request("GET", "/ui/endless", AUTHORIZATION))
        await eventually(lambda: ended)

    answer = await asyncio.to_thread(talk, port, request("GET", "/metrics", AUTHORIZATION))
    assert b'tasksvc_connections_closed_total{reason="unread"} 1' in answer.body.splitlines()


async def test_nothing_follows_a_stream_that_breaks_off(port: int) -> None:
    with Wire(port) as wire:
        wire.send(request("GET", "/ui/unfinished", AUTHORIZATION))
        wire.socket.settimeout(10)
        received = b""
        while data := await asyncio.to_thread(wire.socket.recv, 10_000):
            received += data

    assert received.endswith(b"\r\n\r\n5\r\nbegin\r\n")


@pytest.mark.parametrize("path", ["/task", "/ui/read", "/none"])
async def test_body_is_not_asked_for_before_the_middleware_has_agreed(port: int, path: str) -> None:
    head = request("POST", path, JSON, "Expect: 100-continue", "Content-Length: 10")

    assert_problem(await asyncio.to_thread(talk, port, head), 401)


async def test_redirection_of_a_sub_application_stays_one(client: TestClient[Any, Any]) -> None:
    async with client.get("/ui/elsewhere", headers=KEY, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (302, "/ui/page")


async def test_stream_has_the_headers_and_counts_until_its_head(
    client: TestClient[Any, Any],
) -> None:
    headers = KEY | {"X-Request-ID": "mine"}
    async with client.get("/ui/stream", headers=headers) as response:
        assert response.headers["X-Request-ID"] == "mine"
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.read() == b"end"
    async with client.get("/metrics", headers=KEY) as response:
        lines = (await response.text()).splitlines()
    (seconds,) = (
        float(line.split()[1])
        for line in lines
        if line.startswith("tasksvc_http_request_seconds_sum") and "/ui/stream" in line
    )
    assert seconds < 0.3


async def test_expectations_are_met_behind_a_middleware(client: TestClient[Any, Any]) -> None:
    async with client.post("/task", json={"content": "x"}, headers=KEY, expect100=True) as response:
        assert response.status == 201
    async with client.post("/ui/read", data=b"body", headers=KEY, expect100=True) as response:
        assert (response.status, await response.text()) == (200, "body")
