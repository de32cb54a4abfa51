"""What a stream promises, whatever it is made of."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tasksvc.domain.task import DEFAULT_LANE, Lane, Priority
from tasksvc.stream.task_stream import Entry, TaskStream
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


async def test_consumer_does_not_read_the_entries_of_another(
    make_stream: Callable[..., TaskStream],
) -> None:
    one, other = make_stream(), make_stream()
    await one.open()
    await other.open()
    await one.publish(TASKS[:4])
    mine, theirs = await one.read("one", 1, 2), await other.read("other", 1, 4)

    assert [id for _, id in mine + theirs] == TASKS[:4]
    assert await one.worker_ids() == {"one", "other"}


async def test_entries_can_be_published_as_given_to_a_consumer(
    make_stream: Callable[..., TaskStream],
) -> None:
    one, other = make_stream(), make_stream()
    await one.open()
    await other.open()
    lane = Lane(priority=Priority.HIGH)
    given = [
        *await one.publish_to("one", 1, TASKS[:2]),
        *await one.publish_to("one", 1, TASKS[2:4], lane),
    ]

    assert [id for _, id in given] == TASKS[:4]
    assert await one.measure() == (4, 4)
    assert await other.read("other", 1, 10) == []
    assert sorted(await one.read_again("one", 1, 10, "0")) == sorted(given)
    await one.acknowledge([entry for entry, _ in given])
    assert await one.measure() == (0, 0)


async def test_nothing_is_published_to_a_consumer_where_others_wait(stream: TaskStream) -> None:
    await stream.publish(TASKS[:1])

    assert await stream.publish_to("worker", 1, TASKS[1:2]) == []
    assert len(await stream.publish_to("worker", 1, TASKS[2:3], Lane(priority=Priority.LOW))) == 1
    assert ids_of(await stream.read("other", 1, 10)) == TASKS[:1]
    assert len(await stream.publish_to("worker", 1, TASKS[3:4])) == 1


async def test_publication_to_a_consumer_is_bounded(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(max_entries=2)
    await stream.open()

    assert [id for _, id in await stream.publish_to("worker", 1, TASKS[:3])] == TASKS[:2]
    assert await stream.publish_to("worker", 1, TASKS[3:4]) == []
    assert await stream.measure() == (2, 2)


async def test_publication_is_bounded(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(max_entries=3)
    await stream.open()

    assert stream.is_open()
    assert await stream.publish(TASKS[:2]) == 2
    assert stream.is_open()
    assert await stream.publish(TASKS[2:6]) == 1
    assert not stream.is_open()
    assert await stream.publish(TASKS[2:6]) == 0
    assert await stream.look() == (0, pytest.approx(0, abs=10))
    assert not stream.is_open()


async def test_room_makes_it_open_again(make_stream: Callable[..., TaskStream]) -> None:
    stream = make_stream(max_entries=3)
    await stream.open()
    await stream.publish(TASKS)
    entries = await stream.read("worker", 1, 2)
    await stream.acknowledge([entry for entry, _ in entries])

    assert (await stream.look())[0] == 2
    assert stream.is_open()


async def test_look_returns_the_age_of_the_oldest_undelivered_entry(stream: TaskStream) -> None:
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


async def test_cancellation_reaches_every_listener(
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


def task_id(first: int, number: int) -> str:
    return f"{first}0000000-0000-7000-8000-{number:012}"


HIGH, LOW = Lane(priority=Priority.HIGH), Lane(priority=Priority.LOW)
OTHER = Lane("a, b@c:d")


def ids_of(entries: list[Entry]) -> list[str | None]:
    return [id for _, id in entries]


class TestLanes:
    async def test_high_is_read_first(self, stream: TaskStream) -> None:
        for lane, id in zip((LOW, DEFAULT_LANE, HIGH), TASKS, strict=False):
            await stream.publish([id], lane)

        assert ids_of(await stream.read("w", 1, 2)) == [TASKS[2], TASKS[1]]
        assert ids_of(await stream.read("w", 1, 2)) == [TASKS[0]]

    async def test_none_starves(self, stream: TaskStream) -> None:
        """Of eight reads six begin with high, one with normal and one with low."""
        for number, lane in enumerate((LOW, DEFAULT_LANE, HIGH)):
            await stream.publish([task_id(number, n) for n in range(30)], lane)

        first = [ids_of(await stream.read("w", 1, 1)) for _ in range(16)]
        lanes = Counter(str(id)[0] for (id,) in first)
        assert lanes == {"2": 12, "1": 2, "0": 2}

    async def test_kinds_take_turns(self, make_stream: Callable[..., TaskStream]) -> None:
        stream = make_stream(kinds=("default", "a"))
        await stream.open()
        await stream.publish([task_id(0, n) for n in range(30)])
        await stream.publish([task_id(1, n) for n in range(30)], Lane("a"))

        first = [ids_of(await stream.read("w", 1, 1)) for _ in range(16)]
        assert Counter(str(id)[0] for (id,) in first) == {"0": 8, "1": 8}

    async def test_other_kinds_are_left_alone(
        self, stream: TaskStream, make_stream: Callable[..., TaskStream]
    ) -> None:
        other = make_stream(kinds=(OTHER.kind,))
        await other.open()
        await stream.publish(TASKS[:2], OTHER)
        await stream.publish(TASKS[2:3])

        assert ids_of(await stream.read("w", 1, 10)) == TASKS[2:3]
        entries = await other.read("v", 1, 10)
        assert ids_of(entries) == TASKS[:2]
        assert await stream.measure() == (3, 3)
        await other.acknowledge([entry for entry, _ in entries])
        assert await stream.measure() == (1, 1)

    async def test_lanes_do_not_share_their_room(
        self, make_stream: Callable[..., TaskStream]
    ) -> None:
        stream = make_stream(max_entries=3)
        await stream.open()
        assert await stream.publish(TASKS[:5], LOW) == 3

        assert not stream.is_open(LOW)
        assert stream.is_open()
        assert await stream.publish(TASKS[5:7]) == 2
        assert await stream.look(LOW) == (0, pytest.approx(0, abs=10))
        assert await stream.look() == (1, pytest.approx(0, abs=10))
        assert await stream.look(HIGH) == (3, 0.0)

    async def test_what_was_given_is_read_again_from_every_lane(
        self, make_stream: Callable[..., TaskStream]
    ) -> None:
        stream = make_stream(kinds=("default", OTHER.kind))
        await stream.open()
        for lane, ids in ((LOW, TASKS[:3]), (OTHER, TASKS[3:5]), (DEFAULT_LANE, TASKS[5:8])):
            await stream.publish(ids, lane)
        await stream.read("w", 1, 10)

        found: list[str | None] = []
        after = "0"
        while entries := await stream.read_again("w", 1, 2, after):
            found += ids_of(entries)
            assert len(entries) <= 2
            after = entries[-1][0]
        assert sorted(map(str, found)) == sorted(TASKS[:8])

    async def test_gone_worker_leaves_every_lane(
        self, stream: TaskStream, make_stream: Callable[..., TaskStream]
    ) -> None:
        other = make_stream(kinds=("default", OTHER.kind))
        await other.open()
        await stream.publish(TASKS[:2], OTHER)
        await stream.publish(TASKS[2:4])
        await other.read("gone", 1, 10)

        assert await stream.worker_ids() == {"gone"}
        assert sorted(await stream.remove_consumers("gone")) == sorted(TASKS[:4])
        assert await stream.worker_ids() == set()
        assert await stream.measure() == (0, 0)
