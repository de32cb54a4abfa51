"""Clients that do not keep to HTTP, or keep to it too slowly: each is answered or let go, and the
service goes on."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import (
    JSON,
    Wire,
    assert_problem,
    assert_safe_headers,
    chunk,
    post,
    request,
    talk,
)

Start = Callable[..., ServiceProcess]

CANARY = "canary-7f3a"
TASK = b'{"content": "x"}'
CHUNKED = ("POST", "/task", JSON, "Transfer-Encoding: chunked")


@pytest.fixture
def port(shared_service: ServiceProcess) -> Iterator[int]:
    """A service's port; afterwards the service is well, and has seen nothing but requests."""
    log_start = len(shared_service.log_path.read_bytes())
    output_start = len(shared_service.output())

    yield shared_service.port

    id = uuid4().hex
    well = talk(shared_service.port, request("GET", "/health", f"X-Request-ID: {id}"))
    assert well.json() == {"status": "ok"}
    assert talk(shared_service.port, post(TASK)).status == 201
    shared_service.wait_until_logged(id)
    said = shared_service.log_path.read_bytes()[log_start:].decode()
    said += shared_service.output()[output_start:]
    for leak in (CANARY, "Traceback", '"exception"', '"error"', "[error"):
        assert leak not in said


@pytest.fixture
def impatient(shared_services: Start) -> ServiceProcess:
    """A service with the shortest timeouts."""
    return shared_services(
        TASKSVC_BODY_TIMEOUT_SECONDS=0.2, TASKSVC_KEEPALIVE_SECONDS=0.2, TASK_CONSUMER_WORKERS=0
    )


def count(service: ServiceProcess) -> int:
    return int(query(service.env["DATABASE_URL"], "SELECT count(*) FROM task")[0][0])


# What the parser refuses.


@pytest.mark.parametrize(
    "data",
    [
        b"canary-7f3a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"canary-7f3a" * 20,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        b"SSH-2.0-canary-7f3a\r\n",
        b"GET\r\n\r\n",
        b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"canary-7f3a /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1 canary-7f3a\r\nHost: x\r\n\r\n",
        b"GET /canary-7f3a\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /canary-7f3a\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[canary-7f3a/health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x:99999/canary-7f3a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"canary-7f3a" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        request("GET", "/health", "X-Long: " + CANARY * 2000),
        request("GET", "/health", CANARY * 2000 + ": x"),
        request("GET", "/health", *[f"X-{number}: {CANARY}" for number in range(2000)]),
        request("GET", "/health", "X-Nul: canary-7f3a\0"),
        request("GET", "/health", "X-Escape: canary-7f3a\x1b[31m"),
        request("GET", "/health", "X-Request-ID: canary-7f3a\x1b[31m"),
        request("GET", "/health", "X-Split: canary-7f3a\nX-Other: x"),
        request("GET", "/health", "X Space: canary-7f3a"),
        request("GET", "/health", "X-Space : canary-7f3a"),
        request("GET", "/health", "canary-7f3a"),
        request("GET", "/health", ": canary-7f3a"),
        request("GET", "/health", " X-Folded: canary-7f3a"),
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_what_is_not_http_is_refused(port: int, data: bytes) -> None:
    with Wire(port) as wire:
        wire.send(data)
        answer = wire.answer()

        problem = assert_problem(answer, 400)
        assert CANARY not in str(problem)
        assert wire.is_closed()


SMUGGLED = request("DELETE", "/smuggled")


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/task", JSON, "Transfer-Encoding: chunked", body=chunk(b"") + SMUGGLED),
        request("POST", "/task", JSON, "Content-Length: 0", body=SMUGGLED),
        request("POST", "/task", JSON, "Content-Length: 16, 16") + TASK,
        request("POST", "/task", JSON, "Content-Length: +16") + TASK,
        request("POST", "/task", JSON, "Content-Length: -1") + TASK,
        request("POST", "/task", JSON, "Content-Length: 0x10") + TASK,
        request("POST", "/task", JSON, "Content-Length: 1_6") + TASK,
        request("POST", "/task", JSON, "Content-Length: 16 16") + TASK,
        request("POST", "/task", JSON, "Content-Length: ") + TASK,
        request("POST", "/task", JSON, f"Content-Length: {10**30}") + TASK,
        request("POST", "/task", JSON, "Transfer-Encoding: xchunked") + chunk(TASK) + chunk(b""),
        request("POST", "/task", JSON, "Transfer-Encoding: identity") + TASK,
        request("POST", "/task", JSON, "Transfer-Encoding: chunked, x") + chunk(b""),
        request("POST", "/task", JSON, "Transfer-Encoding : chunked") + chunk(TASK) + chunk(b""),
        request("POST", "/task", JSON, "Transfer-Encoding: chunked", "Transfer-Encoding: x")
        + chunk(TASK),
        request(*CHUNKED) + b"g\r\nx\r\n0\r\n\r\n",
        request(*CHUNKED) + b"0x10\r\n" + TASK + b"\r\n0\r\n\r\n",
        request(*CHUNKED) + b"-1\r\nx\r\n0\r\n\r\n",
        request(*CHUNKED) + b"1_0\r\n" + TASK + b"\r\n0\r\n\r\n",
        request(*CHUNKED) + b"f" * 30 + b"\r\nx\r\n0\r\n\r\n",
        request(*CHUNKED) + b"10\n" + TASK + b"\n0\n\n",
        request(*CHUNKED) + b"10\r\n" + TASK + b"too much\r\n0\r\n\r\n",
    ],
    ids=lambda data: repr(data[20:120]),
)
async def test_unclear_end_of_a_body_is_refused_and_nothing_after_it_is_read(
    shared_service: ServiceProcess, port: int, data: bytes
) -> None:
    before = count(shared_service)
    with Wire(port) as wire:
        wire.send(data + SMUGGLED)
        answer = wire.answer()

        assert_problem(answer, 400)
        assert wire.is_closed()
    assert count(shared_service) == before


async def test_bad_chunk_after_a_good_beginning_is_answered(impatient: ServiceProcess) -> None:
    bads = (b"zz\r\n", b"f" * 40 + b"\r\n", b"5;" + b"x" * 20_000 + b"\r\n")
    wires = [Wire(impatient.port) for _ in bads]
    for wire in wires:
        wire.send(request(*CHUNKED) + chunk(TASK[:5]))
    for wire, bad in zip(wires, bads, strict=True):
        wire.send(bad)
    for wire in wires:
        with wire:
            answer = wire.answer()

            assert answer is not None
            assert answer.status in (400, 408)
            assert_problem(answer, answer.status)
            assert wire.is_closed()


async def test_bad_chunk_is_no_error_of_ours_without_the_c_parser_either(
    start_service: Start,
) -> None:
    service = start_service(AIOHTTP_NO_EXTENSIONS=1)
    with Wire(service.port) as wire:
        wire.send(request(*CHUNKED) + chunk(TASK[:5]))
        await eventually(lambda: service.metric("task_create_request_count") == 1)
        wire.send(CANARY.encode() + b"\r\n")

        assert_problem(wire.answer(), 400)
        assert wire.is_closed()
    assert service.stop() == 0
    assert {event["level"] for event in service.events()} <= {"debug", "info"}
    assert CANARY not in service.output()


async def test_unknown_expectation_is_refused(port: int) -> None:
    for path in ("/health", "/nope"):
        with Wire(port) as wire:
            wire.send(request("GET", path, f"Expect: {CANARY}"))

            problem = assert_problem(wire.answer(), 417)
            assert CANARY not in str(problem)
            assert wire.is_closed()


# What may look odd, and is right.


async def test_body_waits_for_100_continue(port: int) -> None:
    with Wire(port) as wire:
        wire.send(
            request("POST", "/task", JSON, f"Content-Length: {len(TASK)}", "Expect: 100-continue")
        )
        go_on = wire.answer()
        assert go_on is not None
        assert go_on.status == 100
        wire.send(TASK)

        answer = wire.answer()
        assert answer is not None
        assert answer.status == 201


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    bodies = [b'{"content": "%d"}' % number for number in range(20)]
    with Wire(port) as wire:
        wire.send(
            b"".join(map(post, bodies))
            + request("GET", "/nope")
            + post(b"{")
            + request("GET", "/health")
        )
        answers = [wire.answer() for _ in range(23)]

    statuses = [answer.status for answer in answers if answer is not None]
    assert statuses == [201] * 20 + [404, 400, 200]
    contents = [answer.json()["content"] for answer in answers[:20] if answer is not None]
    assert contents == [str(number) for number in range(20)]


async def test_connection_is_kept_after_errors(port: int) -> None:
    with Wire(port) as wire:
        for sent, status in (
            (post(b"{"), 400),
            (post(b"{}"), 422),
            (request("POST", "/task", body=b"x" * 1000), 415),
            (post(b"x" * 1000, "Content-Encoding: gzip"), 415),
            (request("GET", "/nope", body=b"unread"), 404),
            (request("PUT", "/task", body=b"unread"), 405),
            (post(TASK), 201),
        ):
            wire.send(sent)
            answer = wire.answer()
            assert answer is not None
            assert answer.status == status


async def test_body_byte_by_byte_is_taken(port: int) -> None:
    data = request(*CHUNKED) + b"".join(chunk(bytes([byte])) for byte in TASK) + chunk(b"")
    with Wire(port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(len(data)):
            wire.send(data[start : start + 1])
        answer = wire.answer()

    assert answer is not None
    assert answer.status == 201


async def test_http_1_0_is_answered_and_closed(port: int) -> None:
    with Wire(port) as wire:
        wire.send(b"GET /health HTTP/1.0\r\n\r\n")
        answer = wire.answer()

        assert answer is not None
        assert answer.status == 200
        assert_safe_headers(answer)
        assert wire.is_closed()


async def test_http_1_0_that_asks_for_it_is_kept_alive_and_told_so(port: int) -> None:
    with Wire(port) as wire:
        for _ in range(2):
            wire.send(request("GET", "/health", "Connection: keep-alive", version="HTTP/1.0"))
            answer = wire.answer()

            assert answer is not None
            assert answer.status == 200
            assert answer.headers["connection"] == "keep-alive"


async def test_client_that_asks_to_close_is_told_so_and_closed(port: int) -> None:
    with Wire(port) as wire:
        wire.send(request("GET", "/health", "Connection: close"))
        answer = wire.answer()

        assert answer is not None
        assert answer.headers["connection"] == "close"
        assert wire.is_closed()


async def test_upgrade_is_declined(port: int) -> None:
    for protocol in ("websocket", "h2c"):
        sent = request("GET", "/health", "Connection: Upgrade", f"Upgrade: {protocol}")
        answer = talk(port, sent)

        assert answer.status == 200
        assert_safe_headers(answer)


async def test_many_headers_within_reason_are_taken(port: int) -> None:
    headers = [f"X-{number}: {'x' * 50}" for number in range(60)]

    assert talk(port, request("GET", "/health", *headers, "X-Long: " + "x" * 7000)).status == 200


async def test_odd_accept_gets_the_metrics_all_the_same(port: int) -> None:
    for accept in ("", "x", "*/*;q=x", ";;;,,,", "application/openmetrics-text", '"', "a" * 5000):
        answer = talk(port, request("GET", "/metrics", f"Accept: {accept}", "Accept: b"))

        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


# Clients that are slow, or leave.


async def test_body_that_does_not_arrive_is_408(impatient: ServiceProcess) -> None:
    fails = impatient.metric("task_create_fail_count")
    length = "Content-Length: 100"
    requests = [
        request("POST", "/task", JSON, length),
        request("POST", "/task", JSON, length) + TASK[:5],
        request("POST", "/task", JSON, length, "Expect: 100-continue"),
        request(*CHUNKED),
        request(*CHUNKED) + chunk(TASK),
    ]
    started = time.monotonic()
    wires = [Wire(impatient.port) for _ in requests]
    for wire, sent in zip(wires, requests, strict=True):
        wire.send(sent)
    for wire in wires:
        with wire:
            answer = wire.answer()
            if answer is not None and answer.status == 100:
                answer = wire.answer()

            assert_problem(answer, 408)
            assert answer is not None
            assert answer.headers["connection"] == "close"
            assert wire.is_closed()
    assert 0.2 <= time.monotonic() - started < 5
    assert count(impatient) == 0
    assert impatient.metric("task_create_fail_count") == fails + len(requests)


async def test_body_that_trickles_has_no_more_time_than_another(
    impatient: ServiceProcess,
) -> None:
    started = time.monotonic()
    with Wire(impatient.port) as wire:
        wire.send(request("POST", "/task", JSON, "Content-Length: 100000"))
        wire.socket.settimeout(0.02)
        answer = None
        while answer is None and time.monotonic() - started < 10:
            wire.send(b" ")
            try:
                answer = wire.answer()
            except TimeoutError:
                continue

        assert_problem(answer, 408)
    assert time.monotonic() - started < 5


async def test_headers_that_do_not_arrive_are_not_waited_for(impatient: ServiceProcess) -> None:
    port = impatient.port
    with Wire(port) as silent, Wire(port) as half, Wire(port) as idle:
        half.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX-")
        idle.send(request())
        answer = idle.answer()

        assert answer is not None
        assert answer.status == 200
        assert idle.is_closed()
        assert half.is_closed()
        assert silent.is_closed()


async def test_client_that_leaves_half_way_leaves_no_row(
    shared_service: ServiceProcess, port: int
) -> None:
    before = count(shared_service)
    whole = post(TASK)
    for length in range(0, len(whole), 7):
        for leave in (Wire.reset, lambda wire: wire.socket.close()):
            with Wire(port) as wire:
                wire.send(whole[:length])
                leave(wire)
    chunks = request(*CHUNKED) + chunk(TASK)
    with Wire(port) as wire:
        wire.send(chunks)
        wire.socket.shutdown(socket.SHUT_WR)
        answer = wire.answer()

    assert answer is None or answer.status == 400
    assert count(shared_service) == before


async def test_client_that_leaves_half_way_is_no_error_of_ours(
    shared_service: ServiceProcess, port: int
) -> None:
    requests = shared_service.metric("task_create_request_count")
    fails = shared_service.metric("task_create_fail_count")
    with Wire(port) as wire:
        wire.send(request("POST", "/task", JSON, "Content-Length: 100"))
        await eventually(lambda: shared_service.metric("task_create_request_count") == requests + 1)
        wire.reset()
    await eventually(lambda: shared_service.metric("task_create_fail_count") == fails + 1)

    _, _, body = shared_service.get("/metrics")
    assert 'code="500"' not in body.decode()


async def test_client_that_leaves_before_the_answer_has_its_task(
    shared_service: ServiceProcess, port: int
) -> None:
    before = count(shared_service)
    with Wire(port) as wire:
        wire.send(post(TASK))
        wire.reset()

    # It may have gone before the service saw it: one row or none, and never more.
    assert count(shared_service) - before <= 1


async def test_client_that_leaves_before_an_unread_body_ends(port: int) -> None:
    with Wire(port) as wire:
        wire.send(request("POST", "/task", "Content-Type: text/plain", "Content-Length: 100"))
        answer = wire.answer()
        wire.reset()

    assert_problem(answer, 415)


async def test_idle_and_slow_clients_keep_nobody_waiting(port: int) -> None:
    wires = [Wire(port) for _ in range(200)]
    try:
        for number, wire in enumerate(wires):
            wire.send(request("POST", "/task", JSON, "Content-Length: 100")[: number % 90 + 1])
        started = time.monotonic()

        assert talk(port, post(TASK)).status == 201
        assert time.monotonic() - started < 2
    finally:
        for wire in wires:
            wire.socket.close()


# Noise.


async def test_noise_is_never_answered_with_an_error_of_ours(port: int) -> None:
    rng = random.Random(20_241_028)
    seeds = [
        post(TASK),
        post(b'{"content": "\\u00e9\\ud83d\\ude42", "x": [1, {"y": null}]}'),
        request(*CHUNKED) + chunk(TASK) + chunk(b""),
        request("GET", f"/task/{uuid4()}"),
        request("PATCH", f"/task/{uuid4()}/cancel", "X-Request-ID: abc", "traceparent: x"),
        request("GET", "/metrics", "Accept: text/plain;version=0.0.4"),
    ]
    statuses = []
    for _ in range(300):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[start] = rng.randrange(256)
                case 1:
                    del data[start : start + rng.randint(1, 10)]
                case 2:
                    data[start:start] = rng.randbytes(rng.randint(1, 10))
                case 3:
                    data[start:start] = data[: rng.randint(1, 50)]
        with Wire(port) as wire:
            wire.send(bytes(data) + b"\r\n\r\n")
            wire.socket.settimeout(0.02)
            try:
                answer = wire.answer()
            except TimeoutError:
                continue  # it waits for the rest
            if answer is not None:
                statuses.append(answer.status)
                assert_safe_headers(answer)

    assert len(statuses) > 100
    assert set(statuses) <= {200, 201, 400, 404, 405, 413, 415, 417, 422}


async def test_noise_in_a_body_is_never_answered_with_an_error_of_ours(port: int) -> None:
    rng = random.Random(7159)
    pieces = [b'"', b"{", b"}", b"[", b":", b",", b"\\u", b"d800", b"0000", b"content", b"\xff"]
    pieces += [b"1e9", b"-", b"null", b"\0", b"\xef\xbb\xbf", b" ", b'{"content": "x"}', b"9" * 400]
    with Wire(port) as wire:
        for _ in range(300):
            wire.send(post(b"".join(rng.choices(pieces, k=rng.randint(0, 12)))))
            answer = wire.answer()

            assert answer is not None
            assert answer.status in (201, 400, 422)
            assert_safe_headers(answer)
