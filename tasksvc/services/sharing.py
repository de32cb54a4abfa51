"""How many callers share one place, or one answer. Nothing here knows what they ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar

from tasksvc.domain.errors import Overloaded

Result = TypeVar("Result")


class Line:
    """One at a time, in the order in which they came.

    A caller that goes away while it waits leaves the line, and nothing is done for it. What was
    begun goes on to its end: a statement that its caller has left would go on in PostgreSQL, at
    the same time as the next one.
    """

    def __init__(self, max_waiting: int, max_seconds: float) -> None:
        """At most `max_waiting` callers wait, and for `seconds` at most."""
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """What comes of the work.

        Raises Overloaded when the line is full, or the turn did not come in time.
        """
        if self._waiting >= self._max_waiting:
            raise Overloaded
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise Overloaded from None
        finally:
            self._waiting -= 1
        task = _spawn(work())
        task.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(task)


class Flight(Generic[Result]):
    """One call for all callers of the same moment. Its result, or error, is kept for a while."""

    def __init__(self, ask: Callable[[], Awaitable[Result]], kept_seconds: float) -> None:
        self._ask = ask
        self._kept_seconds = kept_seconds
        self._task: asyncio.Task[Result] | None = None
        self._kept_until = float("-inf")

    async def join(self) -> Result:
        """Raises what `ask` raises."""
        task = self._task
        if task is None or (task.done() and time.monotonic() >= self._kept_until):
            task = self._task = _spawn(self._fly())
        return await asyncio.shield(task)

    async def _fly(self) -> Result:
        try:
            return await self._ask()
        finally:
            self._kept_until = time.monotonic() + self._kept_seconds


def _spawn(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task that no single caller owns."""
    task = asyncio.get_running_loop().create_task(work, context=Context())
    task.add_done_callback(_look_at)
    return task


def _look_at(task: asyncio.Task[Any]) -> None:
    """An error without a caller is dropped."""
    if not task.cancelled():
        task.exception()
