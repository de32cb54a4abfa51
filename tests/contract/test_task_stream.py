"""What a stream promises, whatever it is made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually

TASKS = [f"00000000-0000-7000-8000-{number:012}" for number in range(10)]


async def test_published_ids_are_read_in_order_and_once(stream: TaskStream) -> None:
    assert await stream.publish(TASKS[:3]) == 3
    first = await stream.read("worker", 1, 2)
    second = await stream.read("worker", 2, 2)

    assert [id for _, id in first] == TASKS[:2]
    assert [id for _, id in second] == TASKS[2:3]
    assert await stream.read("worker", 1, 2) == []


async def test_acknowledged_entries_leave_nothing(stream: TaskStream) -> None:
    await stream.publish(TASKS)
    entries = await stream.read("worker", 1, 100)
    assert await stream.measure() == (10, 10)
    await stream.acknowledge([entry for entry, _ in entries])

    assert await stream.measure() == (0, 0)
    assert await stream.read_again("worker", 1, 100, "0") == []


async def test_entries_that_are_not_acknowledged_are_read_again(stream: TaskStream) -> None:
    await stream.publish(TASKS[:3])
    entries = await stream.read("worker", 1, 3)
    await stream.acknowledge([entries[1][0]])

    assert await stream.read_again("worker", 1, 10, "0") == [entries[0], entries[2]]
    assert await stream.read_again("worker", 1, 1, "0") == [entries[0]]
    assert await stream.read_again("worker", 1, 10, entries[0][0]) == [entries[2]]
    assert await stream.read_again("worker", 2, 10, "0") == []


async def test_nobody_reads_what_another_has_in_hand(
    make_stream: Callable[..., TaskStream],
) -> None:
    one, other = make_stream(), make_stream()
    await one.open()
    await other.open()
    await one.publish(TASKS[:4])
    mine, theirs = await one.read("one", 1, 2), await other.read("other", 1, 4)

    assert [id for _, id in mine + theirs] == TASKS[:4]
    assert await one.worker_ids() == {"one", "other"}


async def test_publication_is_bounded(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(max_entries=3)
    await stream.open()

    assert stream.is_open
    assert await stream.publish(TASKS[:2]) == 2
    assert stream.is_open
    assert await stream.publish(TASKS[2:6]) == 1
    assert not stream.is_open
    assert await stream.publish(TASKS[2:6]) == 0
    assert await stream.look() == (0, pytest.approx(0, abs=10))
    assert not stream.is_open


async def test_room_makes_it_open_again(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(max_entries=3)
    await stream.open()
    await stream.publish(TASKS)
    entries = await stream.read("worker", 1, 2)
    await stream.acknowledge([entry for entry, _ in entries])

    assert (await stream.look())[0] == 2
    assert stream.is_open


async def test_look_tells_the_age_of_what_nobody_was_given(stream: TaskStream) -> None:
    async def is_older(seconds: float) -> bool:
        return (await stream.look())[1] > seconds

    assert await stream.look() == (10_000, 0.0)
    await stream.publish(TASKS[:2])
    published = time.monotonic()
    room, age = await stream.look()

    assert room == 10_000 - 2
    assert 0 <= age < time.monotonic() - published + 1
    await eventually(lambda: is_older(0.04))
    await stream.read("worker", 1, 1)
    assert await is_older(0.04)
    await stream.read("worker", 1, 1)
    assert await stream.look() == (10_000 - 2, 0.0)


async def test_removed_consumers_leave_what_they_had(stream: TaskStream) -> None:
    await stream.publish(TASKS[:5])
    gone = [*await stream.read("gone", 1, 2), *await stream.read("gone", 2, 1)]
    await stream.read("stays", 1, 1)
    await stream.acknowledge([gone[0][0]])

    assert sorted(await stream.remove_consumers("gone")) == TASKS[1:3]
    assert await stream.worker_ids() == {"stays"}
    assert await stream.measure() == (2, 1)
    assert await stream.remove_consumers("gone") == []
    assert [id for _, id in await stream.read("stays", 1, 9)] == TASKS[4:5]


async def test_unblocked_read_ends_at_once(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(block_seconds=30)
    await stream.open()
    reading = asyncio.create_task(stream.read("worker", 1, 1))
    async with asyncio.timeout(10):
        while not reading.done():
            await stream.unblock()
            await asyncio.sleep(0.01)

    assert await reading == []


async def test_blocked_read_is_woken_by_a_publication(
    make_stream: Callable[..., TaskStream],
) -> None:
    stream = make_stream(block_seconds=30)
    await stream.open()
    reading = asyncio.create_task(stream.read("worker", 1, 1))
    await asyncio.sleep(0.01)
    await stream.publish(TASKS[:1])

    async with asyncio.timeout(10):
        assert [id for _, id in await reading] == TASKS[:1]


async def test_cancellation_is_heard_by_all_who_listen(
    make_stream: Callable[..., TaskStream],
) -> None:
    speaker, one, other = make_stream(), make_stream(), make_stream()
    assert await one.read_canceled() == []
    assert await other.read_canceled() == []
    await speaker.publish_canceled(TASKS[:2])

    for listener in (one, other):
        heard: list[str] = []
        async with asyncio.timeout(10):
            while not heard:
                heard = await listener.read_canceled()
        assert heard == TASKS[:2]
    assert await one.read_canceled() == []
