"""Clients that leave at any byte of a request or of its answer: the memory comes back."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable

import psutil
import pytest

from tests.faults.requests import requests
from tests.harness import ServiceProcess, eventually
from tests.wire import JSON, Wire, post, request, talk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SEED = int(os.environ.get("SEED", "14"))
CUTS = 1000

MEGABYTE = 1_000_000

PAGE = request("GET", "/tasks?limit=100")
LARGE = post(b'{"content": "' + b"x" * 200_000 + b'", "delay_seconds": 3600}')
LARGE_AND_WRONG = post(b'{"content": "' + b"x" * 200_000 + b'", "x": 1}')
HALF_CHUNKED = request("POST", "/task", JSON, "Transfer-Encoding: chunked") + b"%x\r\n%b" % (
    100_000,
    b"x" * 100_000,
)


@pytest.fixture
def service(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    return shared_services(TASK_CONSUMER_WORKERS=0, LOG_LEVEL="info")


def cut(port: int, sent: bytes, rng: random.Random) -> None:
    """Sends some of it, reads some of the answer, and is gone."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rng.choice((4096, 262_144)))
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        if rng.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            if rng.random() < 0.4:
                client.sendall(sent[: rng.randrange(len(sent))])
                return
            client.sendall(sent)
            wanted = int(10 ** rng.uniform(0, 6))
            client.settimeout(0.05)
            while wanted > 0 and (data := client.recv(wanted)):
                wanted -= len(data)
        except (TimeoutError, ConnectionError):
            return  # all is read, or the other side was faster


def held(service: ServiceProcess) -> tuple[float, int, int]:
    """Connections, descriptors and resident bytes."""
    process = psutil.Process(service.process.pid)
    connections = service.metric("tasksvc_connections")
    return connections, process.num_fds(), process.memory_info().rss


async def test_memory_comes_back_whenever_clients_leave(service: ServiceProcess) -> None:
    rng = random.Random(SEED)
    id = service.create("x" * 1000, delay_seconds=3600)["id"]
    for _ in range(20):
        assert talk(service.port, LARGE).status == 201
    page = [PAGE] * 3  # of four megabytes
    several = [post(b'{"content": "x", "delay_seconds": 3600}') * 10 + PAGE]
    kinds = [*requests(id), *page, *several, LARGE, *[LARGE_AND_WRONG] * 4, HALF_CHUNKED]
    for sent in kinds:
        cut(service.port, sent, rng)
    for _ in range(3):
        talk(service.port, PAGE)
    connections, descriptors, memory = held(service)

    for _ in range(CUTS):
        cut(service.port, rng.choice(kinds), rng)

    def is_back() -> bool:
        now = held(service)
        return (
            now[0] <= connections and now[1] <= descriptors + 3 and now[2] <= memory + 20 * MEGABYTE
        )

    try:
        await eventually(is_back, 15)
    except AssertionError:
        pytest.fail(f"SEED={SEED}: {(connections, descriptors, memory)} became {held(service)}")
    with Wire(service.port) as wire:
        wire.send(request())
        assert wire.answer() is not None
    assert "Traceback" not in service.output()
