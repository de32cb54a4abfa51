"""Reads of clients that are gone: on the real server, with a route that reads."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tasksvc.metrics import Metrics
from tasksvc.web.answering import shape_answers
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import LIMITS, METRICS
from tasksvc.web.limits import Limits
from tasksvc.web.server import Runner
from tasksvc.web.wanted import while_wanted
from tests.harness import eventually
from tests.wire import Wire, assert_problem, request


class Reading:
    """What the route reads, for as long as the test wants."""

    def __init__(self) -> None:
        self.begun = 0
        self.canceled = 0
        self.may_end = asyncio.Event()
        self.port = 0

    async def read(self) -> bytes:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        return b'"read"'


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    reading = Reading()

    async def read(request: web.Request) -> Answer:
        return Answer(await while_wanted(request, reading.read()))

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
    app.router.add_get("/", read)
    shape_answers(app)
    runner = Runner(app, keepalive_seconds=10)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reading.port = runner.addresses[0][1]
    yield reading
    reading.may_end.set()
    await runner.cleanup()


async def test_read_of_a_client_that_waits_is_answered(reading: Reading) -> None:
    with Wire(reading.port) as wire:
        wire.send(request("GET", "/"))
        await eventually(lambda: reading.begun)
        reading.may_end.set()
        answer = await asyncio.to_thread(wire.answer)

    assert answer is not None
    assert answer.json() == "read"


async def test_read_is_given_up_when_the_connection_is_lost(reading: Reading) -> None:
    with Wire(reading.port) as wire:
        wire.send(request("GET", "/"))
        await eventually(lambda: reading.begun)
        wire.reset()

        await eventually(lambda: reading.canceled, 0.5)


async def test_read_of_a_client_that_sends_no_more_has_a_second(reading: Reading) -> None:
    for is_early in (True, False):
        with Wire(reading.port) as wire:
            wire.send(request("GET", "/"))
            if is_early:
                wire.socket.shutdown(socket.SHUT_WR)
            begun = reading.begun
            await eventually(lambda begun=begun: reading.begun > begun)
            wire.socket.shutdown(socket.SHUT_WR)
            started = time.monotonic()
            answer = await asyncio.to_thread(wire.answer)

        assert_problem(answer, 503)
        assert answer is not None
        assert answer.headers["retry-after"] == "1"
        assert 0.8 < time.monotonic() - started < 5


async def test_read_of_a_client_that_sends_no_more_is_answered_in_time(reading: Reading) -> None:
    with Wire(reading.port) as wire:
        wire.send(request("GET", "/") * 2)
        wire.socket.shutdown(socket.SHUT_WR)
        await eventually(lambda: reading.begun)
        reading.may_end.set()
        answers = [await asyncio.to_thread(wire.answer) for _ in range(2)]

    assert [answer.status for answer in answers if answer] == [200, 200]
    assert reading.canceled == 0
