"""The time limit of a run."""

from __future__ import annotations

import asyncio
from types import TracebackType

from tasksvc.domain.retry import TimedOut


class TimeLimit:
    """Ends what is within it so many seconds after its beginning, with TimedOut."""

    __slots__ = ("_limit", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(None)

    def begin(self) -> None:
        """To be called when the run begins; the time before is not counted."""
        if self._seconds is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def __aenter__(self) -> TimeLimit:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError as late:  # not the handler's own: that is `error`, and goes on
            raise TimedOut(f"It ran for longer than {self._seconds:g} s.") from late
