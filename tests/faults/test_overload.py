"""Ten times what it can take: refused in order, and at full speed again at once.

What it can take is set by a network to PostgreSQL that answers late, so that the test needs no more
of the machine than a laptop has.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil
import pytest

from tasksvc.embedded import EmbeddedPostgres
from tests.faults.conftest import StartServant, proxied_postgres
from tests.faults.proxy import Mode, Proxy
from tests.harness import ServiceProcess, query

pytestmark = pytest.mark.slow

ROUND_TRIP_SECONDS = 0.05
GROUP = 10
CAPACITY = GROUP / ROUND_TRIP_SECONDS  # creates a second
WAITING = 100
SECONDS = 30
MEGABYTE = 1 << 20


@dataclass
class Seen:
    """What the clients saw."""

    codes: Counter[int] = field(default_factory=Counter)
    accepted_seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    lost_connections: int = 0


class OpenLoop:
    """Requests at a rate, whether or not the answers come. A request's time counts from when it
    was due, and not from when a connection was free for it."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._all: list[asyncio.StreamWriter] = []

    async def run(self, rate: float, seconds: float) -> None:
        started = time.monotonic()
        requests = set()
        for number in range(int(rate * seconds)):
            due = started + number / rate
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            request = asyncio.create_task(self._request(due))
            requests.add(request)
            request.add_done_callback(requests.discard)
        if requests:
            await asyncio.wait(requests, timeout=30)
        assert not requests, f"{len(requests)} requests were never answered"
        for writer in self._all:
            writer.close()

    async def _request(self, due: float) -> None:
        try:
            reader, writer = self._free.pop() if self._free else await self._connect()
            writer.write(_POST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self._seen.lost_connections += 1
            return
        self._free.append((reader, writer))
        code = int(head.split()[1])
        self._seen.codes[code] += 1
        if code == 201:
            self._seen.accepted_seconds.append(time.monotonic() - due)
        elif b"\r\nretry-after: " not in head.lower():
            self._seen.without_retry_after += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._all.append(writer)
        return reader, writer


_BODY = b'{"content": "x"}'
_POST = (
    b"POST /task HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


@pytest.fixture
def service(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, postgres_proxy: Proxy
) -> ServiceProcess:
    """One that can take `CAPACITY` creates a second once the network is slow."""
    service = start_servant(
        DATABASE_URL=proxied_postgres(postgres_proxy),
        LOG_LEVEL="info",
        TASKSVC_GROUP_SIZE=GROUP,
        TASKSVC_MAX_WAITING=WAITING,
        TASK_CONSUMER_CONCURRENCY=10,
    )
    postgres_proxy.set(Mode(delay_seconds=ROUND_TRIP_SECONDS / 2))
    return service


@pytest.mark.timeout(180)
async def test_overload_is_refused_in_order(
    service: ServiceProcess, own_postgres: EmbeddedPostgres, postgres_proxy: Proxy
) -> None:
    seen = Seen()
    process = psutil.Process(service.process.pid)
    at_rest = process.memory_info().rss
    victim = service.create('{"seconds": 60}')["id"]
    disturbed = [await _slow_client(service.port) for _ in range(100)]
    disturbed += [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(1000)]

    load = asyncio.create_task(OpenLoop(service.port, seen).run(10 * CAPACITY, SECONDS))
    await asyncio.sleep(SECONDS / 2)
    started = time.monotonic()
    health = (await asyncio.to_thread(service.get, "/health"))[0]
    cancel = (await asyncio.to_thread(service.request, "PATCH", f"/task/{victim}/cancel"))[0]
    answered_seconds = time.monotonic() - started
    peak = process.memory_info().rss
    await load

    # Only accepted and refused, each refusal with its Retry-After.
    assert set(seen.codes) <= {201, 429, 503}
    assert seen.without_retry_after == 0
    assert seen.lost_connections == 0
    # As many as it can take, give or take the machine, in the time that the waiting line takes.
    assert seen.codes[201] > 0.5 * CAPACITY * SECONDS
    accepted = sorted(seen.accepted_seconds)
    assert accepted[int(0.99 * len(accepted))] < 4 * WAITING / CAPACITY
    # What operators need answers, and memory is bounded.
    assert (health, cancel) == (200, 200)
    assert answered_seconds < 5
    assert peak < at_rest + 60 * MEGABYTE
    # At full speed again at once.
    postgres_proxy.heal()
    after = Seen()
    await OpenLoop(service.port, after).run(CAPACITY, 2)
    assert set(after.codes) == {201}
    # Nothing that was accepted is lost.
    ((rows,),) = query(own_postgres.url, "SELECT count(*) FROM task")
    assert rows == seen.codes[201] + after.codes[201] + 1
    for _, writer in disturbed:
        writer.close()


async def _slow_client(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One that sends half a request, and then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_POST[:-5])
    return reader, writer
