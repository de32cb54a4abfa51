"""A time limit, and whose cancellation is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from tasksvc.domain.retry import TimedOut
from tasksvc.handlers.limit import TimeLimit

NOW = 0.0


async def forever() -> None:
    await asyncio.Event().wait()


async def within(seconds: float, work: Awaitable[None]) -> None:
    with TimeLimit(seconds) as limit:
        limit.begin()
        await work


async def test_what_takes_too_long_is_timed_out() -> None:
    with pytest.raises(TimedOut, match=r"longer than 0\.01 s"):
        await within(0.01, forever())

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and nothing of it is left over


async def test_what_is_soon_enough_leaves_no_timer() -> None:
    await within(0.001, asyncio.sleep(0))

    await asyncio.sleep(0.01)


async def test_time_before_the_beginning_is_not_counted() -> None:
    with TimeLimit(0.001):
        await asyncio.sleep(0.01)


async def test_no_limit() -> None:
    with TimeLimit(None) as limit:
        limit.begin()
        await asyncio.sleep(0.001)


async def test_handlers_own_error_goes_on_as_it_is() -> None:
    async def handler() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise TimeoutError("mine") from None

    with pytest.raises(TimeoutError, match="mine"):
        await within(NOW, handler())


@pytest.mark.parametrize("seconds", [NOW, 60.0])
async def test_cancellation_by_somebody_else_goes_on_as_it_is(seconds: float) -> None:
    async def handler() -> None:
        waiting.set_result(None)
        await forever()

    waiting = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(within(seconds, handler()))
    await waiting
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1
