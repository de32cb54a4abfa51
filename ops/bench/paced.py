"""The load of an open loop: so many requests a second, whether or not the answers keep up.

A request has its time, and its latency counts from there: what waits for a free connection, or for
this process, has waited (no coordinated omission). Orders and results are those of load.py.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import cycle

from ops.bench.load import Connection, Load

_END_SECONDS = 10.0
"""For the answers that are still to come when the last request was due."""


class Pace(Load):
    """What all connections share: the requests that are due, and who is free to ask."""

    def __init__(self, requests: list[bytes], status: int) -> None:
        super().__init__(requests, status)
        self.due: deque[float] = deque()
        self.free: list[PacedConnection] = []
        self.is_idle = asyncio.Event()

    def request(self, intended_at: float) -> None:
        """One more is due; it goes out as soon as a connection is free."""
        self.is_idle.clear()
        if self.free:
            self.free.pop().send(intended_at)
        else:
            self.due.append(intended_at)


class PacedConnection(Connection):
    """Asks for what is due the longest, or waits until something is."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        self._pace = pace

    def ask(self) -> None:
        pace = self._pace
        if pace.due:
            self.send(pace.due.popleft())
        else:
            pace.free.append(self)
            if len(pace.free) == pace.open:
                pace.is_idle.set()

    def send(self, intended_at: float) -> None:
        self._sent_at = intended_at
        self._transport.write(next(self._pace.requests))

    def close(self) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._pace.free:
            self._pace.free.remove(self)
        super().connection_lost(exc)


async def run(
    ports: Sequence[int], connections: int, seconds: float, rate: float, pace: Pace
) -> dict[str, object]:
    """`rate` requests a second for so long, evenly; all answers are waited for and count."""
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: PacedConnection(pace), "127.0.0.1", port))[1]
        for _, port in zip(range(connections), cycle(ports), strict=False)
    ]
    for connection in opened:
        connection.ask()
    started_at = time.monotonic()
    for number in range(round(rate * seconds)):
        intended_at = started_at + number / rate
        if (early := intended_at - time.monotonic()) > 0:
            await asyncio.sleep(early)
        pace.request(intended_at)
        if not pace.open:
            break
    else:
        try:
            async with asyncio.timeout(_END_SECONDS):
                await pace.is_idle.wait()
        except TimeoutError:
            pace.unexpected["no answer"] += len(pace.due) + pace.open - len(pace.free)
    pace.is_over = True
    for connection in opened:
        connection.close()
    if pace.open:
        await pace.all_closed.wait()
    return {**pace.found(started_at), "asked_rate": rate}


def main() -> None:
    order = json.load(sys.stdin)

    async def work() -> dict[str, object]:
        pace = Pace([each.encode() for each in order["requests"]], order["status"])
        return await run(
            order["ports"], order["connections"], order["seconds"], order["rate"], pace
        )

    # select() takes microseconds; epoll and libuv round them up to a millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        json.dump(runner.run(work()), sys.stdout)


if __name__ == "__main__":
    main()
