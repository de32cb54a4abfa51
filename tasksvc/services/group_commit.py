"""Group commit: many callers, one statement.

A statement for one row costs a round trip, a parse, a commit and an fsync; one for a hundred rows
costs little more. Callers leave their items and wait; whenever the writer is free it takes all that
is waiting. There is no timer: an idle service writes at once, and under load the groups grow by
themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from copy import copy
from typing import Any, Generic, NamedTuple, TypeVar

from tasksvc.domain.errors import (
    DataRejected,
    Overloaded,
    StoreUnavailable,
    TaskServiceError,
    Unreadable,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_ABOUT_AN_ITEM = (DataRejected, Unreadable)
"""What fails a statement because of one of its items: without that one it would pass."""


class _Entry(NamedTuple):
    """One caller: what it brought, and where it waits for the results."""

    items: Sequence[Any]
    weight: int
    results: asyncio.Future[Any]
    is_one: bool = False
    """Its result is the one of its item, rather than a list."""
    is_whole: bool = False
    """Its items are written by one statement, or no item is."""

    def pieces(self) -> Sequence[Sequence[Any]]:
        """What a statement may leave out."""
        return [self.items] if self.is_whole else [[item] for item in self.items]


class _Failed(NamedTuple):
    """In the place of a result: the statement failed, and not because of an item."""

    error: Exception


class Group(Generic[Item, Result]):
    """One kind of statement. `write` takes many items and gives one result for each, in order; an
    error among them is the result of its item alone. When it raises DataRejected or Unreadable,
    the items are halved until the culprits stand alone: the others are written.

    An item counts as `weigh` says, or as one: a group holds `max_size`, the line `max_waiting`.
    The statement runs in an asyncio task of the group's own: a caller that is canceled or goes away
    never cancels it. A single item whose caller is canceled while it waits is left out.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[list[Item]], Awaitable[Sequence[Result | TaskServiceError]]],
        *,
        max_size: int = 500,
        max_waiting: int = 10_000,
        weigh: Callable[[Item], int] | None = None,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._name = name
        self._write = write
        self._max_size = max_size
        self._max_waiting = max_waiting
        self._weigh = weigh
        self._observe = observe
        self._waiting: deque[_Entry] = deque()
        self._when_given: list[Callable[[], None]] = []
        self._weight = 0
        self._writer: asyncio.Task[None] | None = None

    def join(self, item: Item) -> asyncio.Future[Result]:
        """The item's result, once its group is committed. Here, and in the future:

        Raises:
            Overloaded: the waiting line is full; nothing was done.
            DataRejected: the database does not take this very item.
            Unreadable: what it has of this very item can't be read.
            StoreUnavailable: and anything else that `write` raises, or gives for the item.
        """
        self.check_room()
        return self._enter((item,), is_one=True)

    def check_room(self) -> None:
        """Raises Overloaded: the waiting line is full."""
        if self._weight >= self._max_waiting:
            raise Overloaded

    def join_all(
        self, items: Sequence[Item]
    ) -> asyncio.Future[Sequence[Result | TaskServiceError]]:
        """The results of many items, in order; an error is the result of its item.

        For callers that are bounded by themselves: it never raises Overloaded. The future raises
        StoreUnavailable, and anything else that `write` raises about no single item.
        """
        return self._enter(items)

    def join_whole(self, items: Sequence[Item]) -> asyncio.Future[Sequence[Result]]:
        """The same for items that are written together or not at all: the future raises the first
        of their errors."""
        return self._enter(items, is_whole=True)

    def when_given(self, call: Callable[[], None]) -> None:
        """Calls the function once the callers of the group that is being written have run on with
        their results. To be called by `write`.

        A caller is resumed by a callback that the event loop has when its result is given. asyncio
        runs callbacks in their order, so this one comes after all of those.
        https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.loop.call_soon
        """
        self._when_given.append(call)

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def _enter(
        self, items: Sequence[Item], *, is_one: bool = False, is_whole: bool = False
    ) -> asyncio.Future[Any]:
        weight = len(items) if self._weigh is None else sum(map(self._weigh, items))
        # A bare future: to resume a coroutine for each caller would cost more than its statement.
        results: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(items, weight, results, is_one, is_whole))
        self._weight += weight
        if self._writer is None:
            self._start_writer()
        return results

    def _start_writer(self) -> None:
        # An empty context: no caller owns the group.
        self._writer = asyncio.get_running_loop().create_task(
            self._write_waiting(), name=f"group-{self._name}", context=Context()
        )
        self._writer.add_done_callback(self._ended)

    def _ended(self, writer: asyncio.Task[None]) -> None:
        # Here, and not at the end of the writer: one that is killed before its first step has none.
        self._writer = None
        if self._waiting:
            self._start_writer()

    async def _write_waiting(self) -> None:
        group: list[_Entry] = []
        try:
            while self._waiting:
                group = self._take()
                if group:
                    await self._commit(group)
        finally:
            # A writer that was killed has left these callers.
            _fail(group, StoreUnavailable())
            self._call_when_given()

    def _take(self) -> list[_Entry]:
        group: list[_Entry] = []
        weight = 0
        while self._waiting and (not group or weight + self._waiting[0].weight <= self._max_size):
            entry = self._waiting.popleft()
            self._weight -= entry.weight
            if not (entry.is_one and entry.results.cancelled()):
                group.append(entry)
                weight += entry.weight
        if group:
            self._observe(sum(len(entry.items) for entry in group))
        return group

    async def _commit(self, group: list[_Entry]) -> None:
        results: Sequence[Any]
        try:
            results = await self._write([item for entry in group for item in entry.items])
        except _ABOUT_AN_ITEM as error:
            results = await self._halve(
                [piece for entry in group for piece in entry.pieces()], error
            )
        except Exception as error:
            _fail(group, error)
            return
        start = 0
        for entry in group:
            end = start + len(entry.items)
            if not entry.results.done():
                _give(entry, results[start:end])
            start = end
        self._call_when_given()

    def _call_when_given(self) -> None:
        calls, self._when_given = self._when_given, []
        for call in calls:
            asyncio.get_running_loop().call_soon(call)

    async def _halve(self, pieces: Sequence[Sequence[Item]], error: Exception) -> list[Any]:
        """One result for each item of the pieces, which failed together. One bad item must not fail
        its neighbours: they are halved until the culprit stands alone."""
        if len(pieces) == 1:
            return [_own(error) for _ in pieces[0]]
        middle = len(pieces) // 2
        return [
            *await self._write_pieces(pieces[:middle]),
            *await self._write_pieces(pieces[middle:]),
        ]

    async def _write_pieces(self, pieces: Sequence[Sequence[Item]]) -> Sequence[Any]:
        items = [item for piece in pieces for item in piece]
        try:
            return await self._write(items)
        except _ABOUT_AN_ITEM as error:
            return await self._halve(pieces, error)
        except Exception as error:
            return [_Failed(error) for _ in items]


def _give(entry: _Entry, results: Sequence[Any]) -> None:
    for result in results:
        if isinstance(result, _Failed):
            entry.results.set_exception(_own(result.error))
            return
        if isinstance(result, TaskServiceError) and (entry.is_one or entry.is_whole):
            entry.results.set_exception(result)
            return
    entry.results.set_result(results[0] if entry.is_one else results)


def _fail(group: list[_Entry], error: Exception) -> None:
    for entry in group:
        if not entry.results.done():
            entry.results.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    """A copy: an exception that many share collects everybody's traceback."""
    return copy(error).with_traceback(error.__traceback__)
