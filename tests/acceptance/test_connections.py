"""Connections: how many there may be, and clients that do not read, send half, or stop sending."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import psutil
import pytest

from tests.harness import ServiceProcess, eventually
from tests.wire import JSON, Wire, assert_problem, chunk, post, request, talk

TASK = b'{"content": "x"}'
PAGE = request("GET", "/tasks?limit=100")
MEGABYTE = 1_000_000

MAX_CONNECTIONS = 30

Shared = Callable[..., ServiceProcess]


@pytest.fixture
def tight(shared_services: Shared) -> ServiceProcess:
    """A service that gives clients little."""
    return shared_services(
        TASKSVC_MAX_CONNECTIONS=MAX_CONNECTIONS,
        TASKSVC_WRITE_TIMEOUT_SECONDS=0.5,
        TASKSVC_MAX_BUFFER_BYTES=20 * MEGABYTE,
        TASKSVC_BODY_TIMEOUT_SECONDS=2,
        TASK_CONSUMER_WORKERS=0,
    )


@pytest.fixture
def full(tight: ServiceProcess) -> ServiceProcess:
    """The same, with a page of eight megabytes."""
    if talk(tight.port, PAGE).body.count(b'"id"') < 40:
        for _ in range(40):
            tight.create("x" * 200_000)
    return tight


@pytest.fixture
def wires() -> Iterator[Callable[[int], Wire]]:
    """Opens connections that are closed after the test."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(Wire(port))


def slow(wire: Wire) -> Wire:
    """With little room for what it does not read."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return wire


def closed(service: ServiceProcess, reason: str) -> float:
    return service.metric(f'tasksvc_connections_closed_total{{reason="{reason}"}}')


def connections(service: ServiceProcess) -> float:
    return service.metric("tasksvc_connections")


def memory(service: ServiceProcess) -> int:
    return int(psutil.Process(service.process.pid).memory_info().rss)


# Answers that the client does not read.


async def test_answer_that_nobody_reads_is_given_up_in_time(
    full: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    before = closed(full, "unread")
    wire = slow(wires(full.port))
    wire.send(PAGE)

    await eventually(lambda: closed(full, "unread") == before + 1, 5)
    await eventually(lambda: connections(full) == 1)


async def test_answer_that_is_read_slowly_is_not_given_up(
    full: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    before = closed(full, "unread")
    wire = slow(wires(full.port))
    wire.send(PAGE)
    started = time.monotonic()
    while time.monotonic() - started < 1.5:
        assert wire.socket.recv(4096)
        await asyncio.sleep(0.01)

    assert closed(full, "unread") == before
    assert wire.socket.recv(4096)


async def test_answers_that_are_not_read_have_a_bound_together(
    full: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    before = memory(full)
    unread = closed(full, "unread")
    for _ in range(10):
        slow(wires(full.port)).send(PAGE)
    await eventually(lambda: closed(full, "unread") >= unread + 5, 10)

    assert memory(full) - before < 60 * MEGABYTE
    assert talk(full.port, PAGE).status == 200
    await eventually(lambda: connections(full) == 1, 5)
    await eventually(lambda: memory(full) - before < 20 * MEGABYTE, 5)


async def test_idle_client_with_an_unread_answer_is_not_kept(
    full: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    wire = slow(wires(full.port))
    wire.send(PAGE + request("GET", "/health", "Connection: close"))
    wire.socket.shutdown(socket.SHUT_WR)

    await eventually(lambda: connections(full) == 1, 5)


# How many there may be.


async def test_idle_connections_make_room_for_new_ones(
    tight: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    before = closed(tight, "idle")
    idle = [wires(tight.port) for _ in range(MAX_CONNECTIONS)]
    idle[1].send(b"GET /health HTTP/1.1\r\nX-Half: ")
    used = wires(tight.port)
    for _ in range(3):
        used.send(request())
        answer = used.answer()
        assert answer is not None
        assert answer.status == 200

    assert idle[0].is_closed()
    assert talk(tight.port, post(TASK)).status == 201
    assert connections(tight) <= MAX_CONNECTIONS
    assert closed(tight, "idle") > before
    used.send(request())
    assert used.answer() is not None


async def test_connection_is_refused_where_none_is_idle(
    tight: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    half = request("POST", "/task", JSON, "Content-Length: 100") + b"{"
    started = time.monotonic()
    for _ in range(MAX_CONNECTIONS):
        wires(tight.port).send(half)
    await eventually(lambda: refusal(tight.port), 2)

    problem = refusal(tight.port) or ""
    assert "HTTP/1.1 503 " in problem
    assert "\r\nRetry-After: 1\r\n" in problem
    assert "\r\nConnection: close\r\n" in problem
    assert problem.endswith("}")
    await eventually(lambda: tight.get("/health")[0] == 200)  # once the bodies have timed out
    assert time.monotonic() - started < 10
    assert closed(tight, "refused") >= 1


async def test_connections_that_are_refused_and_gone_at_once_are_no_errors(
    tight: ServiceProcess, wires: Callable[[int], Wire]
) -> None:
    half = request("POST", "/task", JSON, "Content-Length: 100") + b"{"
    for _ in range(MAX_CONNECTIONS):
        wires(tight.port).send(half)
    for _ in range(300):
        with Wire(tight.port) as wire:
            wire.send(half)
            wire.reset()

    await eventually(lambda: tight.get("/health")[0] == 200)
    assert "Traceback" not in tight.output()


def refusal(port: int) -> str | None:
    """What a connection that says nothing is answered at once."""
    with Wire(port) as wire:
        wire.socket.settimeout(0.05)
        try:
            return wire.socket.recv(4096).decode()
        except TimeoutError:
            return None


# Heads.


async def test_head_that_is_too_large_in_all_is_refused(shared_service: ServiceProcess) -> None:
    for send in (
        lambda wire, head: wire.send(head),
        lambda wire, head: [wire.send(head[at : at + 500]) for at in range(0, len(head), 500)],
    ):
        with Wire(shared_service.port) as wire:
            lines = [f"X-{number}: {'x' * 4000}\r\n" for number in range(30)]
            send(wire, b"GET /health HTTP/1.1\r\nHost: x\r\n" + "".join(lines).encode())

            assert_problem(wire.answer(), 431)
            assert wire.is_closed()


async def test_too_many_headers_are_refused(shared_service: ServiceProcess) -> None:
    headers = [f"X-{number}: x" for number in range(70)]

    assert_problem(talk(shared_service.port, request("GET", "/health", *headers)), 400)


async def test_large_bodies_and_pipelines_are_no_large_heads(
    shared_service: ServiceProcess,
) -> None:
    large = post(b'{"content": "' + b"x" * 200_000 + b'"}')
    with Wire(shared_service.port) as wire:
        wire.send((large + request() * 50) * 2)
        statuses = [answer.status for _ in range(102) if (answer := wire.answer())]

    assert statuses == ([201] + [200] * 50) * 2


@pytest.mark.parametrize("size", [10_000, 20_000, 66_000, 100_000, 200_000])
async def test_connection_is_kept_after_a_large_body(
    shared_service: ServiceProcess, size: int
) -> None:
    large = post(b'{"content": "' + b"x" * size + b'", "delay_seconds": 3600}')
    with Wire(shared_service.port) as wire:
        for _ in range(3):
            for start in range(0, len(large), 60_000):
                wire.send(large[start : start + 60_000])
            answer = wire.answer()
            assert answer is not None
            assert answer.status == 201
        wire.send(request())
        answer = wire.answer()

    assert answer is not None
    assert answer.status == 200
    assert "connection" not in answer.headers


# Expectations, codings and upgrades.


@pytest.mark.parametrize("path", ["/health", "/task", "/nope"])
async def test_odd_expectation_is_refused(shared_service: ServiceProcess, path: str) -> None:
    for value in (b"\xff", b"100-continue\xff", b"\xc3\xa9", b"100-continue, x", b""):
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nExpect: ".encode()
        answer = talk(shared_service.port, head + value + b"\r\n\r\n")

        assert_problem(answer, 417)


async def test_body_that_would_be_refused_is_not_asked_for(shared_service: ServiceProcess) -> None:
    expect = "Expect: 100-continue"
    for sent, status in (
        (request("POST", "/task", JSON, expect, "Content-Length: 99999999"), 413),
        (request("POST", "/task", expect, "Content-Length: 10"), 415),
        (request("POST", "/nope", JSON, expect, "Content-Length: 10"), 404),
        (request("PATCH", f"/task/{uuid4()}/cancel", JSON, expect, "Content-Length: 10"), 404),
    ):
        started = time.monotonic()
        with Wire(shared_service.port) as wire:
            wire.send(sent)
            answer = wire.answer()

            assert_problem(answer, status)
            assert answer is not None
            assert answer.headers["connection"] == "close"
        assert time.monotonic() - started < 2


async def test_length_beyond_the_limit_is_refused_at_once(shared_service: ServiceProcess) -> None:
    with Wire(shared_service.port) as wire:
        wire.send(request("POST", "/task", JSON, "Content-Length: 99999999"))

        assert_problem(wire.answer(), 413)


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked", ",gzip , chunked"])
async def test_transfer_coding_is_chunked_alone(
    shared_service: ServiceProcess, coding: str
) -> None:
    sent = request("POST", "/task", JSON, f"Transfer-Encoding: {coding}")
    with Wire(shared_service.port) as wire:
        wire.send(sent + chunk(TASK) + chunk(b"") + request())

        assert_problem(wire.answer(), 501)
        assert wire.is_closed()


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0", "x"])
@pytest.mark.parametrize("name", ["Upgrade", "upgrade"])
async def test_what_follows_a_declined_upgrade_is_answered(
    shared_service: ServiceProcess, protocol: str, name: str
) -> None:
    upgrade = ("Connection: Upgrade", f"{name}: {protocol}")
    with Wire(shared_service.port) as wire:
        wire.send(request("GET", "/health", *upgrade) + post(TASK, *upgrade) + request())
        statuses = [answer.status for _ in range(3) if (answer := wire.answer())]

    assert statuses == [200, 201, 200]


async def test_upgrade_that_is_written_in_an_odd_way_ends_the_connection(
    shared_service: ServiceProcess,
) -> None:
    with Wire(shared_service.port) as wire:
        wire.send(request("GET", "/health", "Connection: Upgrade", "UPGRADE: x") + request())
        answer = wire.answer()

        assert answer is not None
        assert answer.headers["connection"] == "close"
        assert wire.is_closed()


# Clients that stop sending.


async def test_client_that_sends_no_more_gets_its_answers(shared_service: ServiceProcess) -> None:
    for sent, statuses in (
        (post(TASK), [201]),
        (request("GET", "/tasks?limit=1"), [200]),
        (post(TASK) * 40 + request(), [201] * 40 + [200]),
        (request("GET", "/nope") + request("POST", "/task", JSON, "Content-Length: 9"), [404, 400]),
    ):
        with Wire(shared_service.port) as wire:
            wire.send(sent)
            wire.socket.shutdown(socket.SHUT_WR)
            answers = [answer for _ in range(50) if (answer := wire.answer())]

            assert [answer.status for answer in answers] == statuses
            assert wire.is_closed()


async def test_client_that_sends_no_more_within_a_head_is_let_go(
    shared_service: ServiceProcess,
) -> None:
    for sent in (b"", b"GET /hea", request()[:-2]):
        with Wire(shared_service.port) as wire:
            wire.send(sent)
            wire.socket.shutdown(socket.SHUT_WR)

            assert wire.is_closed(2)


# Bodies that arrive slowly.


async def test_bodies_that_arrive_have_a_bound_together(
    shared_services: Shared, wires: Callable[[int], Wire]
) -> None:
    service = shared_services(
        TASKSVC_MAX_BUFFER_BYTES=MEGABYTE,
        TASKSVC_MAX_BODY_BYTES=600_000,
        TASKSVC_BODY_TIMEOUT_SECONDS=2,
    )
    head = request("POST", "/task", JSON, "Content-Length: 550000")
    arriving = [wires(service.port) for _ in range(3)]
    for wire in arriving:
        wire.send(head + b"x" * 400_000)
    answers = [wire.answer() for wire in arriving]

    assert sorted(answer.status for answer in answers if answer) == [408, 408, 503]
    refused = next(answer for answer in answers if answer and answer.status == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert talk(service.port, head + b'{"content": ""}'.ljust(550_000)).status == 201


async def test_nothing_is_left_of_all_this(tight: ServiceProcess) -> None:
    await eventually(lambda: connections(tight) == 1)
    assert not re.search("Traceback|ERROR", tight.output())
