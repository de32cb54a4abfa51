"""The listener: hears at once what is canceled elsewhere. What it misses, the heartbeat finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tasksvc.stream.task_stream import TaskStream


class Listener:
    name = "listener"
    pause_seconds = 0.0  # a blocked read is the pause

    def __init__(
        self, stream: TaskStream, stop_lost: Callable[[Sequence[str]], Awaitable[int]]
    ) -> None:
        """`stop_lost` stops those of the tasks that PostgreSQL says are lost: anybody can publish
        a message."""
        self._stream = stream
        self._stop_lost = stop_lost

    async def run_once(self) -> int:
        ids = await self._stream.read_canceled()
        if ids:
            await self._stop_lost(ids)
        return len(ids)
