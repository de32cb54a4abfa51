"""What operators can do with a queue."""

from __future__ import annotations

from tasksvc.domain.errors import QueueInUse, QueueNotFound
from tasksvc.domain.queue import Queue
from tasksvc.services.publisher import Publisher
from tasksvc.services.sharing import Line
from tasksvc.store.queue_store import QueueStore

_LINE_SECONDS = 5.0
"""The longest wait in the line."""


class QueueService:
    """put, pause, get, find, delete.

    Every method raises Unavailable when PostgreSQL is away or the line is full.
    """

    def __init__(self, store: QueueStore, publisher: Publisher, *, max_waiting: int) -> None:
        self._store = store
        self._publisher = publisher
        self._line = Line(max_waiting, _LINE_SECONDS)

    async def put(self, name: str, concurrency: int | None) -> tuple[Queue, bool]:
        """The queue with that limit, and whether it is new."""
        is_new = await self._line.run(lambda: self._store.put_queue(name, concurrency))
        self._publisher.wake_relay_in(0.0)
        return await self.get(name), is_new

    async def pause(self, name: str, *, is_paused: bool) -> Queue:
        """Pauses or resumes the queue, and returns it. Raises QueueNotFound."""
        pause = self._store.pause_queue
        if not await self._line.run(lambda: pause(name, is_paused=is_paused)):
            raise QueueNotFound
        self._publisher.wake_relay_in(0.0)
        return await self.get(name)

    async def get(self, name: str) -> Queue:
        """Raises QueueNotFound."""
        found = await self._line.run(lambda: self._store.find_queues("", 1, name))
        if not found:
            raise QueueNotFound
        return found[0]

    async def delete(self, name: str) -> None:
        """Its limit, its pause and its name. Final tasks keep the name.

        Raises QueueNotFound, and QueueInUse when it has live tasks.
        """
        if not await self._line.run(lambda: self._store.delete_queue(name)):
            await self.get(name)
            raise QueueInUse

    async def find(self, after: str, limit: int) -> list[Queue]:
        """Those after a name, in order."""
        return await self._line.run(lambda: self._store.find_queues(after, limit))
