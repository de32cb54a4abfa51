"""The queues in PostgreSQL: one method, one named query."""

from __future__ import annotations

from tasksvc.domain.queue import Queue
from tasksvc.store.database import Database
from tasksvc.store.store import Store


class QueueStore(Store):
    """Every method raises StoreUnavailable when PostgreSQL is away or too slow."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "queues.sql", ["queue"])

    async def put_queue(self, name: str, concurrency: int | None) -> bool:
        """Whether it is new."""
        ((is_new,),) = await self._run("queue", "put_queue", name=name, concurrency=concurrency)
        return bool(is_new)

    async def pause_queue(self, name: str, *, is_paused: bool) -> bool:
        """Whether there is such a queue."""
        return bool(await self._run("queue", "pause_queue", name=name, is_paused=is_paused))

    async def find_queues(self, after: str, limit: int, only: str | None = None) -> list[Queue]:
        """Those after a name, in order; or the one of a name alone."""
        rows = await self._run("queue", "find_queues", after=after, limit=limit, only=only)
        return [Queue(*row) for row in rows]

    async def delete_queue(self, name: str) -> bool:
        """Whether it was there, without live tasks, and is gone."""
        return bool(await self._run("queue", "delete_queue", name=name))

    async def forget_queues(self, seconds: float, after: str, limit: int) -> tuple[int, str | None]:
        """Of so many queues after a name, those that were not used for so long: how many, and the
        last name that was looked at; None after the last of all."""
        ((count, last),) = await self._run(
            "queue", "forget_queues", seconds=seconds, after=after, limit=limit
        )
        return count, last

    async def sample_queues(self) -> None:
        """Once a minute, for the rates."""
        await self._run("queue", "sample_queues")
