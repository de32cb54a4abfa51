"""The load: N connections, each of which asks again as soon as it has its answer (a closed loop).

They are spread evenly over the ports of whatever is measured.

It shares the machine with what it measures, so it does as little as it can: a raw protocol,
requests made before, and of an answer only its status and its length are read. It is a process of
its own: its order comes as JSON on stdin, its result goes as JSON to stdout.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle

import uvloop

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)

_END_SECONDS = 10.0
"""For the answers that are still to come when the time is over."""


CONTENT_BYTES = 100

NUMBER = "<the number>"
"""In a request, where each time another number of as many digits has to be."""


def content(size: int) -> str:
    """So many letters, always the same, that no compression makes much smaller."""
    return "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=size))


def create(content_bytes: int) -> str:
    """A request to create a task with so large a content."""
    return post(json.dumps({"content": content(content_bytes)}).encode())


def post(body: bytes, *headers: str) -> str:
    """A request to create a task."""
    more = "".join(f"{each}\r\n" for each in headers)
    return (
        "POST /task HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n{body.decode()}"
    )


def get(task_id: str) -> str:
    """A request for a task."""
    return f"GET /task/{task_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def cancel(task_id: str) -> str:
    """A request to cancel a task."""
    return f"PATCH /task/{task_id}/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def endless(requests: Sequence[bytes]) -> Iterator[bytes]:
    """All of them in turn, again and again, with a new number wherever one is wanted."""
    pieces = [each.split(NUMBER.encode()) for each in requests]
    if all(len(each) == 1 for each in pieces):
        return cycle(requests)
    return ((b"%012d" % number).join(each) for number, each in enumerate(cycle(pieces)))


def percentile(ordered: list[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Load:
    """What all connections share, and what they count."""

    def __init__(self, requests: list[bytes], status: int) -> None:
        self.requests = endless(requests)
        self.expected = b"HTTP/1.1 %d" % status
        self.latencies: list[float] = []
        self.unexpected: Counter[str] = Counter()
        self.ended_at = 0.0
        self.is_over = False
        self.open = 0
        self.all_closed = asyncio.Event()

    def found(self, started_at: float) -> dict[str, object]:
        """What there is to tell at the end. Times by the machine's clock, which others have too."""
        self.latencies.sort()
        return {
            "started_at": started_at,
            "ended_at": self.ended_at,
            "answers": len(self.latencies),
            "rate": len(self.latencies) / max(self.ended_at - started_at, 1e-9),
            "p50_ms": percentile(self.latencies, 50) * 1000,
            "p99_ms": percentile(self.latencies, 99) * 1000,
            "p99_9_ms": percentile(self.latencies, 99.9) * 1000,
            "unexpected": dict(self.unexpected),
        }


class Connection(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._unread = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._load.open += 1

    def ask(self) -> None:
        self._sent_at = time.monotonic()
        self._transport.write(next(self._load.requests))

    def data_received(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        head = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, head) if head >= 0 else None
        if length is None and head >= 0:
            self._load.unexpected["an answer without a length"] += 1
            self._transport.abort()
        elif length is None or len(data) < head + 4 + int(length[1]):
            self._unread = data
        else:
            self._unread = b""
            self._answered(data)

    def _answered(self, data: bytes) -> None:
        load = self._load
        now = time.monotonic()
        if data.startswith(load.expected):
            load.latencies.append(now - self._sent_at)
        else:
            load.unexpected[f"status {data[9:12].decode(errors='replace')}"] += 1
        load.ended_at = now
        if load.is_over:
            self._transport.close()
        else:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.is_over:
            self._load.unexpected["a lost connection"] += 1
        self._load.open -= 1
        if not self._load.open:
            self._load.all_closed.set()


async def run(
    ports: Sequence[int], connections: int, seconds: float, load: Load
) -> dict[str, object]:
    """The load for so long; the answers that are under way then are waited for and count."""
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: Connection(load), "127.0.0.1", port))[1]
        for _, port in zip(range(connections), cycle(ports), strict=False)
    ]
    started_at = time.monotonic()
    for connection in opened:
        connection.ask()
    try:
        async with asyncio.timeout(seconds):
            await load.all_closed.wait()  # every connection is lost: nobody is left to ask
    except TimeoutError:
        pass
    load.is_over = True
    try:
        async with asyncio.timeout(_END_SECONDS):
            await load.all_closed.wait()
    except TimeoutError:
        load.unexpected["no answer"] += load.open
    return load.found(started_at)


def main() -> None:
    order = json.load(sys.stdin)

    async def work() -> dict[str, object]:
        load = Load([each.encode() for each in order["requests"]], order["status"])
        return await run(order["ports"], order["connections"], order["seconds"], load)

    json.dump(uvloop.run(work()), sys.stdout)


if __name__ == "__main__":
    main()
