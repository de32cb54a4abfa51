"""Lines and flights, over work that the test holds in its hand."""

from __future__ import annotations

import asyncio

import pytest

from tasksvc.domain.errors import Overloaded, StoreUnavailable
from tasksvc.services.sharing import Flight, Line
from tests.harness import eventually


class Work:
    """Waits at the gate, and keeps what was begun and what has ended."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, number: int = 0) -> int:
        self.begun.append(number)
        await self.gate.wait()
        self.ended.append(number)
        if self.error is not None:
            raise self.error
        return number


@pytest.fixture
def work() -> Work:
    return Work()


async def stand(line: Line, work: Work, count: int) -> list[asyncio.Task[int]]:
    """So many in the line; the first of them has its turn."""
    callers = [
        asyncio.create_task(line.run(lambda number=number: work(number)))  # type: ignore[misc]
        for number in range(count)
    ]
    await eventually(lambda: work.begun)
    return callers


async def test_line_serves_one_after_the_other(work: Work) -> None:
    callers = await stand(Line(10, 5), work, 4)
    assert work.begun == [0]
    work.gate.set()

    assert await asyncio.gather(*callers) == [0, 1, 2, 3]
    assert work.begun == [0, 1, 2, 3]


async def test_full_line_refuses(work: Work) -> None:
    line = Line(2, 5)
    callers = await stand(line, work, 3)

    with pytest.raises(Overloaded):
        await line.run(work)
    work.gate.set()
    await asyncio.gather(*callers)
    assert await line.run(work) == 0


async def test_nobody_waits_for_ever(work: Work) -> None:
    line = Line(10, 0.01)
    first, second = await stand(line, work, 2)

    with pytest.raises(Overloaded):
        await second
    work.gate.set()
    await first
    assert await line.run(work) == 0


async def test_who_leaves_the_line_is_not_served(work: Work) -> None:
    callers = await stand(Line(10, 5), work, 3)
    callers[1].cancel()
    work.gate.set()
    await asyncio.wait(callers)

    assert callers[1].cancelled()
    assert work.begun == [0, 2]


async def test_what_was_begun_ends_though_nobody_waits_for_it(work: Work) -> None:
    line = Line(10, 5)
    first, second = await stand(line, work, 2)
    first.cancel()
    await asyncio.wait([first])

    assert work.begun == [0]
    work.gate.set()
    assert await second == 1
    assert work.ended == [0, 1]


@pytest.mark.parametrize("is_left", [False, True])
async def test_line_goes_on_after_an_error(work: Work, is_left: bool) -> None:
    work.error = StoreUnavailable()
    line = Line(10, 5)
    first, second = await stand(line, work, 2)
    if is_left:
        first.cancel()
    work.gate.set()
    errors = await asyncio.gather(first, second, return_exceptions=True)

    assert isinstance(errors[1], StoreUnavailable)
    assert isinstance(errors[0], asyncio.CancelledError if is_left else StoreUnavailable)


async def test_all_fly_together(work: Work) -> None:
    flight = Flight(work, 0)
    callers = [asyncio.create_task(flight.join()) for _ in range(20)]
    await eventually(lambda: work.begun)
    callers.pop(0).cancel()
    work.gate.set()

    assert await asyncio.gather(*callers) == [0] * 19
    assert work.begun == [0]
    await flight.join()
    assert work.begun == [0, 0]


@pytest.mark.parametrize("error", [None, StoreUnavailable()])
async def test_answer_is_kept_a_while(work: Work, error: Exception | None) -> None:
    work.error = error
    work.gate.set()
    flight = Flight(work, 60)
    answers = [await asyncio.gather(flight.join(), return_exceptions=True) for _ in range(3)]

    assert work.begun == [0]
    assert answers == [[error or 0]] * 3
