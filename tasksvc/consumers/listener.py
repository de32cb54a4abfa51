"""The listener: hears at once what is canceled elsewhere. What it misses, the heartbeat finds."""

from __future__ import annotations

from tasksvc.consumers.running import Running
from tasksvc.stream.task_stream import TaskStream


class Listener:
    name = "listener"
    pause_seconds = 0.0  # a blocked read is the pause

    def __init__(self, stream: TaskStream, running: Running) -> None:
        self._stream = stream
        self._running = running

    async def run_once(self) -> int:
        return self._running.stop(await self._stream.read_canceled())
