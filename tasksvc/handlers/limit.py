"""The time limit of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tasksvc.domain.retry import TimedOut


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncIterator[Callable[[], None]]:
    """Gives what is to be called when the run begins; the time before is not counted.

    Raises TimedOut so many seconds later.
    """
    try:
        async with asyncio.timeout(None) as limit:

            def begin() -> None:
                if seconds is not None:
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)

            yield begin
    except TimeoutError as error:
        if not limit.expired():
            raise  # the handler's own
        raise TimedOut(f"It ran for longer than {seconds:g} s.") from error
