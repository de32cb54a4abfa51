"""Searches that find nothing among thousands of tasks, from 200 connections at once: they
wait for each other, and nothing else waits for them."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.harness import ServiceProcess, query
from tests.wire import JSON, post, request, talk

pytestmark = pytest.mark.slow

CONNECTIONS = 200
SAMPLES = 200

_NOISE_SECONDS = 0.15
"""Other tests run on the same two cores."""

# Each search has to look at all of them: none is completed, and none is rare.
FILL = """
INSERT INTO task (id, content, max_attempts, due_at)
SELECT (lpad(to_hex((1000 * extract(epoch FROM now() - interval '1 day'))::bigint + n), 12, '0')
    || '7' || lpad(to_hex(n), 19, '0'))::uuid, 'x', 3, now() + interval '1 day'
FROM generate_series(1, 60000) AS n
"""
SEARCH = request("GET", "/tasks?status=completed&kind=default")
STEP = request("POST", "/tasks/retry", JSON, body=b'{"filter": {"status": "completed"}}')


@pytest.fixture
def service(start_service: Callable[..., ServiceProcess]) -> ServiceProcess:
    service = start_service(TASK_CONSUMER_WORKERS=0)
    query(service.env["DATABASE_URL"], FILL)
    query(service.env["DATABASE_URL"], "VACUUM ANALYZE task")
    return service


async def search(port: int, asked: bytes) -> None:
    """Sends one after the other over one connection, and waits a second after a 503."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().splitlines()
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            if b" 503 " in head.splitlines()[0]:
                assert b"retry-after" in head.lower()
                await asyncio.sleep(1)
    finally:
        writer.close()


@asynccontextmanager
async def searching(port: int) -> AsyncIterator[None]:
    asked = [SEARCH if number % 10 else STEP for number in range(CONNECTIONS)]
    searches = [asyncio.create_task(search(port, each)) for each in asked]
    await asyncio.sleep(0.5)
    try:
        yield
        assert not any(each.done() for each in searches)
    finally:
        for each in searches:
            each.cancel()
        await asyncio.gather(*searches, return_exceptions=True)


async def seconds(service: ServiceProcess) -> dict[str, float]:
    """Returns the 99th percentile of the seconds that the answers of each kind take."""
    taken: dict[str, list[float]] = {}

    async def ask(name: str, asked: bytes, status: int) -> bytes:
        started = time.perf_counter()
        answer = await asyncio.to_thread(talk, service.port, asked)
        taken.setdefault(name, []).append(time.perf_counter() - started)
        assert answer.status == status
        return answer.body

    for _ in range(SAMPLES):
        id = json.loads(await ask("create", post(b'{"content": "x"}'), 201))["id"]
        await ask("special", post(b'{"content": "x", "priority": "high"}'), 201)
        await ask("get", request("GET", f"/task/{id}"), 200)
        await ask("cancel", request("PATCH", f"/task/{id}/cancel"), 200)
        await ask("health", request("GET", "/health"), 200)
        await ask("queues", request("GET", "/queues"), 200)
    return {name: statistics.quantiles(each, n=100)[-1] for name, each in taken.items()}


async def test_nothing_else_waits_for_searches(service: ServiceProcess) -> None:
    idle = await seconds(service)
    async with searching(service.port):
        busy = await seconds(service)

    slow = {
        name: (idle[name], taken)
        for name, taken in busy.items()
        if taken > 3 * idle[name] + _NOISE_SECONDS
    }
    assert not slow


async def test_searches_of_closed_connections_are_not_made(service: ServiceProcess) -> None:
    id = service.create()["id"]
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(SEARCH)
    started = time.perf_counter()
    answer = await asyncio.to_thread(talk, service.port, SEARCH)

    assert answer.status == 200
    # Each of them would take a tenth of a second.
    assert time.perf_counter() - started < 10
    assert service.request("GET", f"/task/{id}")[0] == 200
