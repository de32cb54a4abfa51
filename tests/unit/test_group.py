"""Group commit, over a writer that the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from traceback import extract_tb

import pytest

from tasksvc.domain.errors import (
    DataRejected,
    Overloaded,
    StoreUnavailable,
    TaskNotFound,
    TaskServiceError,
    Unreadable,
)
from tasksvc.services.group_commit import Group
from tests.harness import eventually

request_id: ContextVar[str] = ContextVar("request_id")


class Writer:
    """Writes nothing. It refuses negative numbers, waits at the gate, and keeps the groups."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, items: list[int]) -> Sequence[str]:
        self.groups.append(items)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if min(items) < 0:
            raise DataRejected
        return [f"wrote {item}" for item in items]


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def group(writer: Writer) -> Group[int, str]:
    return Group("test", writer)


async def join_while_busy(
    group: Group[int, str], writer: Writer, items: Sequence[int]
) -> list[asyncio.Task[str]]:
    """A caller for each item, all waiting behind a statement for item 0 that is under way."""
    writer.gate.clear()
    callers = [asyncio.ensure_future(group.join(0))]
    await eventually(lambda: writer.groups)
    callers += [asyncio.ensure_future(group.join(item)) for item in items]
    await asyncio.sleep(0)
    return callers


def kill_writer() -> None:
    (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "group-test"]
    task.cancel()


async def results(callers: Sequence[asyncio.Task[str]]) -> list[object]:
    return list(await asyncio.gather(*callers, return_exceptions=True))


async def test_single_item_is_written_at_once(group: Group[int, str], writer: Writer) -> None:
    assert await group.join(7) == "wrote 7"
    assert writer.groups == [[7]]


async def test_callers_travel_together_and_each_gets_its_own_result(
    group: Group[int, str], writer: Writer
) -> None:
    callers = await join_while_busy(group, writer, range(1, 50))
    writer.gate.set()

    assert await results(callers) == [f"wrote {item}" for item in range(50)]
    assert writer.groups == [[0], list(range(1, 50))]


async def test_items_of_one_caller_stay_together_and_in_order(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_size=2)

    assert await group.join_all([3, 1, 2]) == ["wrote 3", "wrote 1", "wrote 2"]
    assert writer.groups == [[3, 1, 2]]


async def test_group_is_bounded(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_size=10)
    callers = await join_while_busy(group, writer, range(1, 26))
    writer.gate.set()
    await results(callers)

    assert [len(each) for each in writer.groups] == [1, 10, 10, 5]


async def test_heavy_items_make_smaller_groups(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_size=10, weigh=lambda item: item)
    callers = await join_while_busy(group, writer, [4, 4, 4, 25, 1])
    writer.gate.set()
    await results(callers)

    assert writer.groups == [[0], [4, 4], [4], [25], [1]]


async def test_sizes_of_groups_are_observed(writer: Writer) -> None:
    sizes: list[int] = []
    group: Group[int, str] = Group("test", writer, weigh=lambda item: item, observe=sizes.append)
    callers = await join_while_busy(group, writer, [5, 6, 7])
    writer.gate.set()
    await results(callers)

    assert sizes == [1, 3]


@pytest.mark.parametrize("culprits", [[1], [8], [3, 4], [1, 8], list(range(1, 9))])
async def test_refused_item_fails_alone(
    group: Group[int, str], writer: Writer, culprits: list[int]
) -> None:
    items = [-item if item in culprits else item for item in range(1, 9)]
    callers = await join_while_busy(group, writer, items)
    writer.gate.set()
    found = await results(callers)

    assert [type(each) for each in found] == [
        str,
        *(DataRejected if item < 0 else str for item in items),
    ]
    assert [each for each in found if isinstance(each, str)] == [
        f"wrote {item}" for item in [0, *items] if item >= 0
    ]


@pytest.mark.parametrize("error", [DataRejected, Unreadable])
async def test_refused_item_is_alone_among_the_items_of_one_caller_too(
    error: type[TaskServiceError],
) -> None:
    async def write(items: list[int]) -> Sequence[str]:
        if min(items) < 0:
            raise error
        return [f"wrote {item}" for item in items]

    found = await Group("test", write).join_all([1, 2, -3, 4, -5])

    assert [each if isinstance(each, str) else type(each) for each in found] == [
        "wrote 1",
        "wrote 2",
        error,
        "wrote 4",
        error,
    ]


async def test_caller_whose_items_are_one_whole_gets_all_or_nothing(
    group: Group[int, str], writer: Writer
) -> None:
    writer.gate.clear()
    first = group.join(0)
    await eventually(lambda: writer.groups)
    refused, taken, beside = group.join_whole([1, -2]), group.join_whole([3, 4]), group.join(5)
    writer.gate.set()

    with pytest.raises(DataRejected):
        await refused
    assert await taken == ["wrote 3", "wrote 4"]
    assert [await first, await beside] == ["wrote 0", "wrote 5"]
    assert [1] not in writer.groups


async def test_database_that_goes_away_while_a_culprit_is_looked_for_fails_the_rest_alone() -> None:
    async def write(items: list[int]) -> Sequence[str]:
        if 3 in items and len(items) < 4:
            raise StoreUnavailable
        if min(items) < 0:
            raise DataRejected
        return [f"wrote {item}" for item in items]

    group: Group[int, str] = Group("test", write)
    alone, many = group.join(1), group.join_all([-2, 3, 4])

    assert await alone == "wrote 1"
    with pytest.raises(StoreUnavailable):
        await many


async def test_refused_item_among_many_takes_few_statements(
    group: Group[int, str], writer: Writer
) -> None:
    callers = await join_while_busy(group, writer, [*range(1, 100), -1])
    writer.gate.set()
    await results(callers)

    assert len(writer.groups) <= 1 + 2 * 7 + 1


async def test_full_line_refuses_and_takes_again_when_there_is_room(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_waiting=3)
    callers = await join_while_busy(group, writer, [1, 2, 3])

    with pytest.raises(Overloaded):
        await group.join(4)
    # Callers that are bounded by themselves are not refused.
    bounded = asyncio.ensure_future(group.join_all([5, 6]))
    writer.gate.set()

    assert await bounded == ["wrote 5", "wrote 6"]
    assert await results(callers) == ["wrote 0", "wrote 1", "wrote 2", "wrote 3"]
    assert await group.join(7) == "wrote 7"


async def test_line_is_bounded_by_weight(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_waiting=100, weigh=lambda item: item)
    callers = await join_while_busy(group, writer, [60, 60])

    with pytest.raises(Overloaded):
        await group.join(1)
    writer.gate.set()
    await results(callers)


@pytest.mark.parametrize("is_under_way", [True, False])
async def test_canceled_caller_cancels_neither_the_statement_nor_its_neighbours(
    group: Group[int, str], writer: Writer, is_under_way: bool
) -> None:
    callers = await join_while_busy(group, writer, [1, 2])
    canceled = callers.pop(0 if is_under_way else 1)
    canceled.cancel()
    await asyncio.wait([canceled])
    writer.gate.set()
    found = await results(callers)

    assert canceled.cancelled()
    assert all(isinstance(each, str) for each in found)
    # A caller that was canceled while it waited needs no result.
    assert writer.groups == [[0], [1, 2] if is_under_way else [2]]


async def test_canceled_callers_make_room(writer: Writer) -> None:
    group: Group[int, str] = Group("test", writer, max_waiting=3)
    callers = await join_while_busy(group, writer, [1, 2, 3])
    for caller in callers[1:]:
        caller.cancel()
    writer.gate.set()
    await asyncio.wait(callers)

    assert await group.join(4) == "wrote 4"
    assert writer.groups == [[0], [4]]


async def test_failure_reaches_every_caller_with_an_exception_of_its_own(
    group: Group[int, str], writer: Writer
) -> None:
    writer.error = Overloaded("away")
    callers = await join_while_busy(group, writer, [1, 2])
    writer.gate.set()
    errors = await results(callers)

    assert [type(each) for each in errors] == [Overloaded] * 3
    assert [str(each) for each in errors] == ["away"] * 3
    assert len(set(map(id, errors))) == 3


async def test_failure_tells_where_it_happened(group: Group[int, str], writer: Writer) -> None:
    writer.error = KeyError("a bug")

    with pytest.raises(KeyError) as raised:
        await group.join(1)

    assert "__call__" in [frame.name for frame in extract_tb(raised.tb)]


async def test_group_goes_on_after_a_failure(group: Group[int, str], writer: Writer) -> None:
    writer.error = StoreUnavailable()
    with pytest.raises(StoreUnavailable):
        await group.join(1)
    writer.error = None

    assert await group.join(2) == "wrote 2"


async def test_killed_writer_leaves_nobody_waiting(group: Group[int, str], writer: Writer) -> None:
    callers = await join_while_busy(group, writer, [1, 2])
    kill_writer()
    writer.gate.set()
    found = await results(callers)

    # The callers were not canceled, so none may get a CancelledError.
    assert [type(each) for each in found] == [StoreUnavailable, str, str]


async def test_writer_killed_while_it_looks_for_a_culprit_leaves_nobody_waiting() -> None:
    looking = asyncio.Event()

    async def write(items: list[int]) -> Sequence[int]:
        if len(items) == 4:
            raise DataRejected
        looking.set()
        await asyncio.Event().wait()
        raise AssertionError

    group = Group("test", write)
    callers = [asyncio.ensure_future(group.join(item)) for item in range(4)]
    await looking.wait()
    kill_writer()
    async with asyncio.timeout(5):
        errors = await asyncio.gather(*callers, return_exceptions=True)

    assert [type(each) for each in errors] == [StoreUnavailable] * 4


async def test_writer_killed_before_its_first_step_is_followed_by_another(
    group: Group[int, str], writer: Writer
) -> None:
    caller = asyncio.ensure_future(group.join(1))
    kill_writer()

    async with asyncio.timeout(5):
        assert await caller == "wrote 1"


async def test_drain_waits_for_all_that_was_left(group: Group[int, str], writer: Writer) -> None:
    callers = await join_while_busy(group, writer, [1, 2])
    draining = asyncio.create_task(group.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    writer.gate.set()
    await draining

    assert all(caller.done() for caller in callers)
    await results(callers)


async def test_drain_of_an_idle_group_ends_at_once(group: Group[int, str]) -> None:
    await group.drain()


async def test_statement_knows_nothing_of_its_callers_context() -> None:
    seen: list[str] = []

    async def write(items: list[int]) -> Sequence[None]:
        seen.append(request_id.get("none"))
        return [None for _ in items]

    request_id.set("the first caller's")
    await Group("test", write).join(1)

    assert seen == ["none"]


async def test_error_among_the_results_is_of_its_item_alone() -> None:
    async def write(items: list[int]) -> list[str | TaskServiceError]:
        return [TaskNotFound() if item < 0 else f"wrote {item}" for item in items]

    group: Group[int, str] = Group("test", write)
    alone, beside, together = group.join(-1), group.join(1), group.join_whole([2, -2])
    each = await group.join_all([3, -3])

    with pytest.raises(TaskNotFound):
        await alone
    assert await beside == "wrote 1"
    with pytest.raises(TaskNotFound):
        await together
    assert each[0] == "wrote 3"
    assert isinstance(each[1], TaskNotFound)


async def test_calls_come_after_the_callers_have_run_on() -> None:
    order: list[str] = []

    async def write(items: list[int]) -> Sequence[str]:
        await asyncio.sleep(0)
        group.when_given(lambda: order.append("call"))
        return [f"wrote {item}" for item in items]

    group: Group[int, str] = Group("test", write)

    async def caller(item: int) -> None:
        order.append(await group.join(item))

    await asyncio.gather(*map(caller, range(3)))
    await eventually(lambda: "call" in order)

    assert order.index("call") > order.index("wrote 0")
    assert order[-1] == "call"


async def test_calls_come_when_the_writer_is_killed_after_its_statement() -> None:
    called = asyncio.Event()

    async def write(items: list[int]) -> Sequence[str]:
        group.when_given(called.set)
        await asyncio.sleep(60)
        return []

    group: Group[int, str] = Group("test", write)
    result = group.join(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kill_writer()

    with pytest.raises(StoreUnavailable):
        await result
    await asyncio.wait_for(called.wait(), 1)
