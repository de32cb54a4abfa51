"""What operators can do with a queue."""

from __future__ import annotations

from tasksvc.domain.errors import QueueNotFound
from tasksvc.domain.queue import Queue
from tasksvc.publisher import Publisher
from tasksvc.store.queue_store import QueueStore


class QueueService:
    """put, pause, get, find. Every method raises Unavailable when PostgreSQL is away."""

    def __init__(self, store: QueueStore, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher

    async def put(self, name: str, concurrency: int | None) -> tuple[Queue, bool]:
        """The queue with that limit, and whether it is new."""
        is_new = await self._store.put_queue(name, concurrency)
        self._publisher.on_due_in(0.0)
        return await self.get(name), is_new

    async def pause(self, name: str, *, is_paused: bool) -> Queue:
        """Lets none of its tasks start, or does again. Raises QueueNotFound."""
        if not await self._store.pause_queue(name, is_paused=is_paused):
            raise QueueNotFound
        self._publisher.on_due_in(0.0)
        return await self.get(name)

    async def get(self, name: str) -> Queue:
        """Raises QueueNotFound."""
        found = await self._store.find_queues("", 1, name)
        if not found:
            raise QueueNotFound
        return found[0]

    async def find(self, after: str, limit: int) -> list[Queue]:
        """Those after a name, in order."""
        return await self._store.find_queues(after, limit)
