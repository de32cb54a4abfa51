"""All that runs in the background: the consumers, the duties, and how they stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from tasksvc.consumers.consumer import Consumer
from tasksvc.domain.errors import StreamUnavailable, Unavailable
from tasksvc.duties.loop_guard import LoopGuard
from tasksvc.loop import Loop
from tasksvc.runs import RunRegistry
from tasksvc.services.worker import WorkerService
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_STEP_SECONDS = 2.0
"""What a step under way, and a handler that was asked to stop, are given to end."""


_UNWRITTEN_SECONDS = 30.0
"""By then results should be written, or the operator should know that they are not."""


class Background:
    """Starts consumers and duties together, and stops them in the order that loses nothing."""

    def __init__(
        self,
        worker: WorkerService,
        stream: TaskStream,
        running: RunRegistry,
        consumers: Sequence[Consumer],
        duties: Sequence[Loop],
        guard: LoopGuard,
        *,
        grace_seconds: float,
    ) -> None:
        self._worker = worker
        self._stream = stream
        self._running = running
        self._consumers = consumers
        self._duties = duties
        self._guard = guard
        self._grace_seconds = grace_seconds
        self._is_hurried = False
        self._is_stopped = False

    async def start(self) -> None:
        self._guard.start()
        if self._consumers:
            with suppress(Unavailable):  # then the heartbeat tries again
                await self._worker.register()
        for loop in self._loops():
            loop.start()

    def stalled(self) -> list[str]:
        """The names of loops that no longer come round."""
        return [loop.name for loop in self._loops() if loop.is_stalled]

    def failing(self) -> list[str]:
        """The names of loops that come round and get nothing done: those that fail by an unexpected
        error, and those that cannot write what has ended."""
        finishing = {consumer.finishing for consumer in self._consumers}
        return [
            loop.name
            for loop in self._loops()
            if loop.is_failing or (loop in finishing and loop.failing_seconds > _UNWRITTEN_SECONDS)
        ]

    def places(self) -> dict[str, tuple[int, int]]:
        """Of each way to run handlers, how many places there are and how many are in use."""
        found = dict.fromkeys(("loop", "thread", "process"), (0, 0))
        for consumer in self._consumers:
            own = consumer.places
            total, in_use = found[own.run_in]
            found[own.run_in] = total + own.total, in_use + own.total - own.free
        return found

    def wake(self) -> None:
        """A place may be free."""
        for consumer in self._consumers:
            consumer.wake()

    @property
    def running_count(self) -> int:
        """How many handlers run."""
        return len(self._running)

    async def stop(self) -> None:
        """Takes nothing more, lets what runs end within the grace period, hands back the rest."""
        if self._is_stopped:
            return
        self._is_stopped = True
        await self._stop_reading()
        await self._wait_until_idle(self._grace_seconds, may_be_hurried=True)
        await self._stop_handlers()
        # The heartbeat beat until here: what ran kept its lease.
        for loop in [*self._duties, *(consumer.finishing for consumer in self._consumers)]:
            await loop.stop(within_seconds=0 if loop in self._duties else _STEP_SECONDS)
        if self._consumers:
            await self._leave()
        self._guard.stop()

    def hurry(self) -> None:
        """Cuts the grace period short."""
        self._is_hurried = True

    def _loops(self) -> list[Loop]:
        own = (loop for each in self._consumers for loop in (each.reading, each.finishing))
        return [*own, *self._duties]

    async def _stop_reading(self) -> None:
        reading = [consumer.reading for consumer in self._consumers]
        for loop in reading:
            loop.ask_to_stop()
        deadline = time.monotonic() + _STEP_SECONDS
        while not all(loop.is_done for loop in reading) and time.monotonic() < deadline:
            # Again and again: one may have been about to block. A blocked read is never canceled,
            # which would lose what it is just being given.
            with suppress(StreamUnavailable):
                await self._stream.unblock()
            await asyncio.sleep(0.05)
        for loop in reading:
            await loop.stop(within_seconds=0)

    async def _wait_until_idle(self, seconds: float, *, may_be_hurried: bool = False) -> None:
        deadline = time.monotonic() + seconds
        while not all(consumer.is_idle for consumer in self._consumers):
            if time.monotonic() >= deadline or (may_be_hurried and self._is_hurried):
                return
            await asyncio.sleep(0.02)

    async def _stop_handlers(self) -> None:
        """Asks the handlers to end, and closes those that ignore it."""
        deadline = time.monotonic() + _STEP_SECONDS
        while len(self._running) and time.monotonic() < deadline:
            self._running.stop_all()
            await asyncio.sleep(0.05)
        self._running.close_all()
        await self._wait_until_idle(_STEP_SECONDS)

    async def _leave(self) -> None:
        try:
            await self._worker.leave()
        except Unavailable:
            # Then the lease runs out, and a rescuer does it.
            log.warning("PostgreSQL is away; the tasks are left to a rescuer", action="left_tasks")
