"""Bytes that are nearly HTTP, to every route: each connection ends, no answer is a fault of the
service, and the service goes on."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.requests import requests
from tests.harness import ServiceProcess, eventually
from tests.wire import assert_safe_headers, request, talk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

SEED = int(os.environ.get("SEED", "14"))
REQUESTS = 3000
AT_ONCE = 50
SECONDS = 12.0
"""Then it ends, however many were sent."""

HANG_SECONDS = 8.0

TOKENS = [
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\xff", b"\xc3\xa9", b"%00"),
    *(b"?", b"&", b"=", b"%", b"%ff", b"/", b"..", b"#", b"*", b'"', b"{", b"}", b"[", b"]", b","),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/9.9", b"GET ", b"HEAD ", b"CONNECT ", b"OPTIONS * "),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"-1", b"1e9", b"NaN", b"null"),
    *(b"x" * 5000, b"X-A: b\r\n" * 80, b"a&" * 2000, b"[" * 2000, b'{"a":' * 200),
]

HEADERS = [
    *(b"Expect: 100-continue", b"Expect: \xff", b"Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5", b"Content-Length: 999999999"),
    *(b"Content-Length: -1", b"Connection: close", b"Connection: keep-alive, Upgrade"),
    *(
        b"Upgrade: h2c",
        b"UPGRADE: websocket",
        b"Content-Encoding: gzip",
        b"Content-Type: text/plain",
    ),
    *(b"Content-Type: application/json; charset=\xff", b"X-Request-ID: \xff\x01", b"Host: "),
    *(b"Idempotency-Key: k\xe9", b"Idempotency-Key: same", b"traceparent: 00-", b"Accept: \xff"),
    *(b"Sec-WebSocket-Key1: x", b"Range: bytes=0-", b"Cookie: " + b"a=b;" * 500),
]


@pytest.fixture
def service(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    """One that does not wait."""
    return shared_services(
        TASK_CONSUMER_WORKERS=0,
        TASKSVC_BODY_TIMEOUT_SECONDS=0.5,
        TASKSVC_KEEPALIVE_SECONDS=0.5,
        TASKSVC_WRITE_TIMEOUT_SECONDS=2,
        LOG_LEVEL="info",
    )


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 30)]
            case 2:
                data[at:at] = rng.choice(TOKENS)
            case 3 | 4:
                end = data.find(b"\r\n", rng.randrange(len(data) + 1))
                if end >= 0:
                    data[end:end] = b"\r\n" + rng.choice(HEADERS)
            case 5:
                data += rng.choice(seeds)
            case 6:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other)) :]
    return bytes(data)


class Client:
    """A connection that has sent its bytes, and reads until it is closed."""

    def __init__(self, port: int, data: bytes, rng: random.Random) -> None:
        self.data = data
        self.answer = bytearray()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS)
        try:
            cut = rng.randrange(len(data) + 1)
            for piece in (data[:cut], data[cut:]) if rng.random() < 0.3 else (data,):
                self.socket.sendall(piece)
            if rng.random() < 0.7:
                self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was closed already

    def read(self) -> None:
        with self.socket:
            try:
                while received := self.socket.recv(65_536):
                    self.answer += received
            except TimeoutError:
                raise AssertionError(f"SEED={SEED}: hangs after {self.data!r}") from None
            except ConnectionError:
                pass

    def statuses(self) -> Iterator[int]:
        for match in re.finditer(
            rb"HTTP/1\.1 (\d{3}) [^\r]+\r\n(?:Content-Type|Date): ", self.answer
        ):
            yield int(match[1])


async def test_no_bytes_hang_or_break_the_service(service: ServiceProcess) -> None:
    rng = random.Random(SEED)
    seeds = requests(service.create("x", delay_seconds=3600)["id"])
    seen: dict[int, int] = {}
    sent = 0
    started = time.monotonic()
    while sent < REQUESTS and time.monotonic() - started < SECONDS:
        clients = [Client(service.port, mutated(seeds, rng), rng) for _ in range(AT_ONCE)]
        for client in clients:
            client.read()
            for status in client.statuses():
                seen[status] = seen.get(status, 0) + 1
                is_ours = status >= 500 and status not in (501, 503)
                assert not is_ours, f"SEED={SEED}: {status} after {client.data!r}"
        sent += len(clients)

    assert {200, 201, 400, 404, 422} <= set(seen), seen
    assert_safe_headers(talk(service.port, request()))
    await eventually(lambda: service.metric("tasksvc_connections") == 1)
    assert not re.search(r"Traceback|\[error|\[critical", service.output())
