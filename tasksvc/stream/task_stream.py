"""The doorbell in Redis: it tells the ids of tasks that are due, and may be lost at any moment.

Nothing here retries by itself: a command whose answer was lost is the caller's to repeat, and
redis-py's retries would publish twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from tasksvc.domain.errors import StreamUnavailable
from tasksvc.stream.keys import FIELD, GROUP, Keys, consumer_name, worker_of

log = structlog.get_logger(__name__)

Entry = tuple[str, str | None]
"""An entry's id in the stream, and the task's id; None for an entry that is not one of ours."""

_BATCH = 1000

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

COMMAND_TIMEOUT_SECONDS = 1.0
BLOCK_MARGIN_SECONDS = 2.0
"""How much longer than a blocked read its connection waits before it is given up."""

# Many ids travel as one argument: to pack a hundred of them costs redis-py more than all the rest.

# KEYS: the stream. ARGV: the most entries that it may hold, and ids.
# Returns how many of the ids went in; the rest did not fit.
_PUBLISH = """
local room = tonumber(ARGV[1]) - redis.call('XLEN', KEYS[1])
local count = 0
for id in string.gmatch(ARGV[2], '[^,]+') do
  if count >= room then break end
  redis.call('XADD', KEYS[1], '*', 'FIELD', id)
  count = count + 1
end
return count
""".replace("FIELD", FIELD)

# KEYS: the stream. ARGV: the group, and entries.
_ACKNOWLEDGE = """
for entry in string.gmatch(ARGV[2], '[^,]+') do
  redis.call('XACK', KEYS[1], ARGV[1], entry)
  redis.call('XDEL', KEYS[1], entry)
end
"""


class TaskStream:
    """The stream of due tasks, its one consumer group, and the channel of the canceled.

    Every method raises StreamUnavailable when Redis is away or refuses.
    """

    def __init__(
        self, url: str, *, prefix: str, readers: int, block_seconds: float, max_entries: int
    ) -> None:
        self._keys = Keys(prefix)
        self._block_seconds = block_seconds
        self._max_entries = max_entries
        self._commands = _client(url, COMMAND_TIMEOUT_SECONDS, readers + 16, "tasksvc")
        # A blocked read holds its connection, and its time limit has to be longer than its block.
        # The name is this object's alone: `unblock` finds the connections by it.
        self._readers_name = f"tasksvc-reader-{uuid4().hex}"
        self._readers = _client(
            url, block_seconds + BLOCK_MARGIN_SECONDS, readers + 1, self._readers_name
        )
        self._pubsub: PubSub | None = None
        self.is_up = False
        """Whether the last command found Redis there."""
        self.is_refusing = False
        """Whether the last publication did not go in, all of it: no room, or no memory."""
        self.lost_at: float | None = None
        """When (`time.monotonic`) the group was found missing and made anew: whatever was published
        before may be lost. Whoever has published it again sets this back to None."""

    @property
    def is_open(self) -> bool:
        """Whether a publication now is likely to succeed."""
        return self.is_up and not self.is_refusing

    async def open(self) -> None:
        async with self._answers():
            await self._make_group()

    async def close(self) -> None:
        await self._unsubscribe()
        await self._commands.aclose()
        await self._readers.aclose()

    # Publishing.

    async def publish(self, ids: Sequence[str]) -> int:
        """How many of the ids, from the first on, are in the stream now; the rest did not fit."""
        try:
            async with self._answers():
                count: int = await self._commands.eval(
                    _PUBLISH, 1, self._keys.tasks, str(self._max_entries), ",".join(ids)
                )
        except StreamUnavailable:
            self.is_refusing = True  # out of memory, it still lets itself be read
            raise
        self.is_refusing = count < len(ids)
        return count

    async def publish_canceled(self, ids: Sequence[str]) -> None:
        """Tells every process that these are canceled; whoever is not listening misses it."""
        async with self._answers():
            await self._commands.publish(self._keys.canceled, ",".join(ids))

    async def read_canceled(self) -> list[str]:
        """The ids of tasks that were canceled anywhere; waits for the first, but not for long."""
        async with self._answers():
            try:
                if self._pubsub is None:
                    self._pubsub = self._readers.pubsub(ignore_subscribe_messages=True)
                    await self._pubsub.subscribe(self._keys.canceled)
                message = await self._pubsub.get_message(timeout=self._block_seconds)
            except BaseException:
                await self._unsubscribe()
                raise
        return message["data"].split(",") if message else []

    # Consuming.

    async def read(self, worker_id: str, number: int, count: int) -> list[Entry]:
        """New entries for a consumer, at most `count`; waits for the first, but not for long."""
        async with self._answers():
            name = consumer_name(worker_id, number)
            block = round(self._block_seconds * 1000)
            return await self._read_group(self._readers, name, ">", count, block)

    async def read_again(self, worker_id: str, number: int, count: int, after: str) -> list[Entry]:
        """What the consumer was given before and has not acknowledged, after an entry's id.

        An answer that was lost on its way leaves entries that nobody has seen.
        """
        async with self._answers():
            name = consumer_name(worker_id, number)
            return await self._read_group(self._commands, name, after, count, None)

    async def unblock(self) -> None:
        """Ends this object's blocked reads, without losing what one is just being given."""
        async with self._answers():
            for client in await self._commands.client_list():
                if client["name"] == self._readers_name:
                    await self._commands.client_unblock(int(client["id"]))

    async def acknowledge(self, entries: Sequence[str]) -> None:
        """Done with these: out of the group's pending list, and out of the stream."""
        async with self._answers():
            await self._commands.eval(_ACKNOWLEDGE, 1, self._keys.tasks, GROUP, ",".join(entries))

    async def worker_ids(self) -> set[str]:
        """The workers whose consumers are in the group."""
        async with self._answers():
            consumers = await self._commands.xinfo_consumers(self._keys.tasks, GROUP)
        return {worker_of(consumer["name"]) for consumer in consumers}

    async def remove_consumers(self, worker_id: str) -> list[str]:
        """Takes a worker's consumers out of the group; the tasks that they left unacknowledged."""
        ids: list[str] = []
        async with self._answers():
            for consumer in await self._commands.xinfo_consumers(self._keys.tasks, GROUP):
                name = consumer["name"]
                if worker_of(name) == worker_id:
                    while entries := await self._read_group(
                        self._commands, name, "0", _BATCH, None
                    ):
                        ids += [id for _, id in entries if id is not None]
                        await self.acknowledge([entry for entry, _ in entries])
                    await self._commands.xgroup_delconsumer(self._keys.tasks, GROUP, name)
        return ids

    # Looking.

    async def look(self) -> tuple[int, float]:
        """The room for more entries, and the age of the first that nobody was given yet.

        The age is by Redis's clock, in seconds; 0 when nothing waits. The stream is first in, first
        out: what was published before that entry was delivered, or lost.
        """
        async with self._answers():
            stream = self._keys.tasks
            async with self._commands.pipeline(transaction=False) as pipeline:
                pipeline.xlen(stream)
                pipeline.time()
                pipeline.xinfo_groups(stream)
                length, (seconds, microseconds), groups = await pipeline.execute()
            room = self._max_entries - length
            self.is_refusing = room <= 0
            delivered = next((g["last-delivered-id"] for g in groups if g["name"] == GROUP), None)
            if delivered is None:
                await self._make_group()
                return room, 0.0
            waiting = await self._commands.xrange(stream, f"({delivered}", "+", count=1)
        if not waiting:
            return room, 0.0
        published = int(str(waiting[0][0]).partition("-")[0]) / 1000
        return room, float(max(0.0, seconds + microseconds / 1e6 - published))

    async def measure(self) -> tuple[int, int]:
        """The entries in the stream, and those of them that a consumer has in hand."""
        async with self._answers(), self._commands.pipeline(transaction=False) as pipeline:
            pipeline.xlen(self._keys.tasks)
            pipeline.xpending(self._keys.tasks, GROUP)
            length, pending = await pipeline.execute()
        return length, pending["pending"]

    # Below.

    async def _read_group(
        self, client: Redis, name: str, after: str, count: int, block: int | None
    ) -> list[Entry]:
        answer: Any = await client.xreadgroup(
            GROUP, name, {self._keys.tasks: after}, count=count, block=block
        )
        return [
            (entry, _task_id(fields)) for _, entries in answer or () for entry, fields in entries
        ]

    async def _unsubscribe(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(RedisError, OSError, RuntimeError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _make_group(self) -> None:
        # From 0, never from $: what is in the stream already would be skipped.
        try:
            await self._commands.xgroup_create(self._keys.tasks, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" in str(error):
                return
            if "WRONGTYPE" not in str(error):
                raise
            # Somebody wrote over our key. It is put aside, not deleted.
            await self._commands.rename(self._keys.tasks, f"{self._keys.tasks}:wrong-type")
            await self._commands.xgroup_create(self._keys.tasks, GROUP, id="0", mkstream=True)
        log.info("The consumer group is made", action="group_made")
        self.lost_at = time.monotonic()

    @asynccontextmanager
    async def _answers(self) -> AsyncIterator[None]:
        """Translates what Redis may answer, and heals a stream that is gone."""
        try:
            yield
        except ResponseError as error:
            if _is_gone(error):
                self._mark_up()
                with suppress(RedisError, OSError):
                    await self._make_group()
            else:
                # Out of memory, read-only, no replicas: it answers, and refuses.
                self._mark_down(error)
            raise StreamUnavailable from None  # its text may hold an address
        except (RedisError, OSError, RuntimeError) as error:  # RuntimeError: a closed transport
            self._mark_down(error)
            raise StreamUnavailable from None  # its text may hold an address
        else:
            self._mark_up()

    def _mark_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            log.info("Redis answers", action="redis_up")

    def _mark_down(self, error: BaseException) -> None:
        """Said once for each outage; the error's text may hold an address, so only its kind."""
        if self.is_up:
            self.is_up = False
            log.warning("Redis does not answer", action="redis_down", error=type(error).__name__)


def _task_id(fields: dict[str, str] | None) -> str | None:
    id = fields.get(FIELD) if fields else None
    return id if id is not None and _UUID.fullmatch(id) else None


def _client(url: str, timeout_seconds: float, connections: int, name: str) -> Redis:
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=COMMAND_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=connections,
        client_name=name,
        protocol=2,
    )


def _is_gone(error: ResponseError) -> bool:
    text = str(error)
    return any(word in text for word in ("NOGROUP", "WRONGTYPE", "no longer exists", "no such key"))
