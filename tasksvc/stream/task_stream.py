"""The streams in Redis: they carry the ids of due tasks, and may be lost at any moment.

Nothing here retries by itself: the caller repeats a command whose answer was lost. Retries of
redis-py would publish twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count as counting
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from tasksvc.domain.errors import StreamUnavailable
from tasksvc.domain.task import DEFAULT_KIND, DEFAULT_LANE, Lane, Priority
from tasksvc.stream.keys import (
    FIELD,
    GROUP,
    Keys,
    consumer_name,
    lane_name,
    lane_of,
    worker_of,
)
from tasksvc.stream.reasons import is_lasting, reason_of

log = structlog.get_logger(__name__)

Entry = tuple[str, str | None]
"""The entry's id, to acknowledge it, and the task's id; None when the entry is not one of ours."""

_BATCH = 1000

_START = "0"
"""Where a group begins. It is not `$`, which would skip the entries that exist already."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

COMMAND_TIMEOUT_SECONDS = 1.0
BLOCK_MARGIN_SECONDS = 2.0
"""How much longer than a blocked read its connection waits for the answer."""

# Many ids travel as one argument: to pack a hundred of them costs redis-py more than all the rest.

_HIGH_FIRST = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
_READ_ORDERS = (
    *(_HIGH_FIRST, _HIGH_FIRST, _HIGH_FIRST, (Priority.NORMAL, Priority.HIGH, Priority.LOW)),
    *(_HIGH_FIRST, _HIGH_FIRST, _HIGH_FIRST, (Priority.LOW, Priority.NORMAL, Priority.HIGH)),
)
"""The order of the lanes in consecutive reads: high comes first, and no lane starves."""

# KEYS: the stream, and the set of lanes. ARGV: the most entries that it may hold, ids, the lane's
# name. Returns how many of the ids went in; the rest did not fit.
_PUBLISH = """
if ARGV[3] ~= '' then redis.call('SADD', KEYS[2], ARGV[3]) end
local room = tonumber(ARGV[1]) - redis.call('XLEN', KEYS[1])
local count = 0
for id in string.gmatch(ARGV[2], '[^,]+') do
  if count >= room then break end
  redis.call('XADD', KEYS[1], '*', 'FIELD', id)
  count = count + 1
end
return count
""".replace("FIELD", FIELD)

# KEYS and ARGV: the same, then the group and one of its consumers, which receives the entries.
# Returns each entry with its id. Adds nothing where others wait: those would be delivered first.
_PUBLISH_TO = """
local given = redis.call('XPENDING', KEYS[1], ARGV[4])[1]
if redis.call('XLEN', KEYS[1]) > given then return {} end
""" + _PUBLISH.replace(
    "return count",
    """
if count == 0 then return {} end
local answer = {}
local read = redis.call(
  'XREADGROUP', 'GROUP', ARGV[4], ARGV[5], 'COUNT', count, 'STREAMS', KEYS[1], '>')
for _, entry in ipairs(read[1][2]) do
  table.insert(answer, entry[1])
  table.insert(answer, entry[2][2])
end
return answer
""",
)

# KEYS: the streams. ARGV: the group. Returns how many entries of each are undelivered: a hint,
# since what was trimmed after its delivery is counted there still. (To read here, for the first
# lanes first, would cost five times as much: what Redis answers goes through Lua and back.)
_WAITING = """
local waiting = {}
for number, stream in ipairs(KEYS) do
  local given = redis.call('XPENDING', stream, ARGV[1])[1]
  waiting[number] = math.max(0, redis.call('XLEN', stream) - given)
end
return waiting
"""

# KEYS: the default stream. ARGV: the group, entries of that stream, and those of others, each with
# its lane's name. (One pattern for both would take twice as long.)
_ACKNOWLEDGE = """
local function done(stream, entry)
  redis.call('XACK', stream, ARGV[1], entry)
  redis.call('XDEL', stream, entry)
end
for entry in string.gmatch(ARGV[2], '[^,]+') do done(KEYS[1], entry) end
for entry, lane in string.gmatch(ARGV[3], '([^,@]+)@([^,]+)') do
  done(KEYS[1] .. ':' .. lane, entry)
end
"""


class TaskStream:
    """The streams of due tasks, one for each lane, and the channel of canceled tasks.

    Every method raises StreamUnavailable when Redis is away or refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        readers: int,
        block_seconds: float,
        max_entries: int,
        kinds: Iterable[str] = (DEFAULT_KIND,),
    ) -> None:
        """`kinds` are the kinds to read; `max_entries` is the limit of one lane."""
        self._keys = Keys(prefix)
        self._kinds = tuple(kinds)
        own = [Lane(kind, priority) for kind in self._kinds for priority in Priority]
        self._own_lanes = sorted(own, key=lambda lane: lane != DEFAULT_LANE)
        self._turns = counting()
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
        """Whether Redis answered the last command."""
        self._is_outage_said = False
        self.refusing: set[Lane] = set()
        """The lanes whose last publication did not fit as a whole: no room, or no memory."""
        self.waiting: dict[int, int] = {}
        """The consumers whose read is blocked, each with how many entries the read may return."""
        self.lost_at: dict[Lane, float] = {}
        """When (`time.monotonic`) a lane's group was recreated: whatever was
        published there before may be lost. The publisher clears the entry after republishing."""

    def is_open(self, lane: Lane = DEFAULT_LANE) -> bool:
        """Returns whether a publication now is likely to succeed."""
        return self.is_up and lane not in self.refusing

    async def open(self) -> None:
        async with self._answers():
            await self._make_groups()

    async def close(self) -> None:
        await self._unsubscribe()
        await self._commands.aclose()
        await self._readers.aclose()

    # Publishing.

    async def publish(self, ids: Sequence[str], lane: Lane = DEFAULT_LANE) -> int:
        """Publishes the ids, and returns how many of them, from the first on, are in the stream;
        the others did not fit."""
        count: int = await self._publish(_PUBLISH, ids, lane)
        self._refuses(lane, count < len(ids))
        return count

    async def publish_to(
        self, worker_id: str, number: int, ids: Sequence[str], lane: Lane = DEFAULT_LANE
    ) -> list[Entry]:
        """Publishes the ids as delivered to this consumer, so that no other consumer reads them.
        Returns the entries: of the ids that fit, and of no id where other entries wait in the
        lane."""
        name = consumer_name(worker_id, number)
        given = await self._publish(_PUBLISH_TO, ids, lane, GROUP, name)
        stream = self._keys.stream(lane)
        return [
            (self._entry(stream, entry), id)
            for entry, id in zip(given[::2], given[1::2], strict=True)
        ]

    async def publish_canceled(self, ids: Sequence[str]) -> None:
        """Notifies every process that listens that these tasks are canceled."""
        async with self._answers():
            await self._commands.publish(self._keys.canceled, ",".join(ids))

    async def read_canceled(self) -> list[str]:
        """Returns the ids of tasks that were canceled in any process. Waits for the first one, at
        most `block_seconds`."""
        async with self._answers(may_be_silent=True):
            try:
                if self._pubsub is None:
                    self._pubsub = self._readers.pubsub()
                    await self._pubsub.subscribe(self._keys.canceled)
                asked_at = time.monotonic()
                message = await self._pubsub.get_message(timeout=self._block_seconds)
                # redis-py takes the ETIMEDOUT of a dead connection for the end of its own wait, and
                # would answer at once from then on: both are a TimeoutError.
                if message is None and time.monotonic() - asked_at < self._block_seconds / 2:
                    raise ConnectionError("The subscription answers without a wait.")
            except BaseException:
                await self._unsubscribe()
                raise
        if message is not None:
            self._mark_up()
        is_ours = message is not None and message["type"] == "message"
        return message["data"].split(",") if is_ours else []

    # Consuming.

    async def read(
        self,
        worker_id: str,
        number: int,
        count: int,
        rooms: Mapping[str, int] | None = None,
    ) -> list[Entry]:
        """Returns new entries for a consumer, high priority first. Waits for the first one, at most
        `block_seconds`.

        There are at most `count` entries, or one for each lane where several arrive at once after a
        wait. `rooms` are the kinds to read, each with the most entries wanted; None reads all kinds
        of this process.
        """
        if rooms is None:
            rooms = dict.fromkeys(self._kinds, self._max_entries)
        streams = self._streams_to_read(rooms)
        entries = await self._read_waiting(worker_id, number, count, streams, rooms)
        if entries:
            return entries
        # One place fewer than there are: `waiting` counts the rest. The limit of a read applies to
        # each stream, so it is that of the kind with the least room. More than one stream seldom
        # answers.
        share = max(1, min((count - 1) // len(streams), *rooms.values()))
        self.waiting[number] = min(share * len(streams), max(1, count - 1))
        async with self._answers():
            try:
                return await self._read_group(
                    self._readers,
                    consumer_name(worker_id, number),
                    dict.fromkeys(streams, ">"),
                    share,
                    round(self._block_seconds * 1000),
                )
            finally:
                self.waiting.pop(number, None)

    async def read_now(
        self, worker_id: str, number: int, count: int, rooms: Mapping[str, int]
    ) -> list[Entry]:
        """Returns the entries that `read` would return, without a wait."""
        streams = self._streams_to_read(rooms)
        return await self._read_waiting(worker_id, number, count, streams, rooms)

    def kind_of(self, entry: str) -> str:
        """Returns the kind of the entry's lane."""
        _, _, name = entry.partition("@")
        lane = lane_of(name) if name else None
        return lane.kind if lane is not None else DEFAULT_KIND

    async def read_again(
        self,
        worker_id: str,
        number: int,
        count: int,
        after: str,
        kinds: Collection[str] | None = None,
    ) -> list[Entry]:
        """Returns what was delivered to the consumer before, after this entry, and is not
        acknowledged.

        An answer that was lost leaves entries that no consumer has seen. `kinds` are the kinds that
        the consumer reads; None: all kinds of this process.
        """
        name = consumer_name(worker_id, number)
        lanes = [lane for lane in self._own_lanes if kinds is None or lane.kind in kinds]
        entry, _, of = after.partition("@")
        last = lane_of(of) if of else DEFAULT_LANE
        first = lanes.index(last) if last in lanes else 0
        starts = dict.fromkeys(map(self._keys.stream, lanes[first:]), "0")
        starts[self._keys.stream(lanes[first])] = entry if last in lanes else "0"
        async with self._answers():
            entries = await self._read_group(self._commands, name, starts, count, None)
        return entries[:count]

    async def unblock(self) -> None:
        """Ends this object's blocked reads, without losing entries that are being delivered."""
        async with self._answers():
            for client in await self._commands.client_list():
                if client["name"] == self._readers_name:
                    await self._commands.client_unblock(int(client["id"]))

    async def acknowledge(self, entries: Sequence[str]) -> None:
        """Removes the entries from the group's pending list and from the stream."""
        async with self._answers():
            await self._commands.eval(
                _ACKNOWLEDGE,
                1,
                self._keys.tasks,
                GROUP,
                ",".join(entry for entry in entries if "@" not in entry),
                ",".join(entry for entry in entries if "@" in entry),
            )

    async def worker_ids(self) -> set[str]:
        """Returns the ids of the workers that have consumers in a lane's group."""
        async with self._answers():
            return {
                worker_of(consumer["name"])
                for stream in await self._streams()
                for consumer in await self._commands.xinfo_consumers(stream, GROUP)
            }

    async def remove_consumers(self, worker_id: str) -> list[str]:
        """Removes a worker's consumers from the groups, and returns the ids of the tasks that they
        had not acknowledged."""
        ids: list[str] = []
        async with self._answers():
            for stream in await self._streams():
                for consumer in await self._commands.xinfo_consumers(stream, GROUP):
                    name = consumer["name"]
                    if worker_of(name) == worker_id:
                        while entries := await self._read_group(
                            self._commands, name, {stream: "0"}, _BATCH, None
                        ):
                            ids += [id for _, id in entries if id is not None]
                            await self.acknowledge([entry for entry, _ in entries])
                        await self._commands.xgroup_delconsumer(stream, GROUP, name)
        return ids

    # Looking.

    async def look(self, lane: Lane = DEFAULT_LANE) -> tuple[int, float]:
        """Returns the room for more entries, and the age in seconds of the first undelivered entry.

        The age is by Redis's clock; 0 when no entry waits. A lane is first in, first out: what was
        published before that entry was delivered, or lost.
        """
        async with self._answers():
            stream = self._keys.stream(lane)
            async with self._commands.pipeline(transaction=False) as pipeline:
                pipeline.sadd(self._keys.lanes, lane_name(lane))
                pipeline.xlen(stream)
                pipeline.time()
                pipeline.xinfo_groups(stream)
                _, length, (seconds, microseconds), groups = await pipeline.execute()
            room = self._max_entries - length
            self._refuses(lane, room <= 0)
            delivered = next((g["last-delivered-id"] for g in groups if g["name"] == GROUP), None)
            if delivered is None:
                await self._make_group(lane)
                return room, 0.0
            waiting = await self._commands.xrange(stream, f"({delivered}", "+", count=1)
        if not waiting:
            return room, 0.0
        published = int(str(waiting[0][0]).partition("-")[0]) / 1000
        return room, float(max(0.0, seconds + microseconds / 1e6 - published))

    async def measure(self) -> tuple[int, int]:
        """Returns the number of entries in all lanes, and of those that are delivered and not
        acknowledged."""
        async with self._answers():
            streams = await self._streams()
            async with self._commands.pipeline(transaction=False) as pipeline:
                for stream in streams:
                    pipeline.xlen(stream)
                    pipeline.xpending(stream, GROUP)
                answers = await pipeline.execute()
        return sum(answers[::2]), sum(pending["pending"] for pending in answers[1::2])

    # Below.

    async def _publish(self, script: str, ids: Sequence[str], lane: Lane, *others: str) -> Any:
        try:
            async with self._answers():
                return await self._commands.eval(
                    script,
                    2,
                    self._keys.stream(lane),
                    self._keys.lanes,
                    str(self._max_entries),
                    ",".join(ids),
                    "" if lane == DEFAULT_LANE else lane_name(lane),
                    *others,
                )
        except StreamUnavailable:
            self.refusing.add(lane)  # out of memory, it still lets itself be read
            raise

    async def _read_group(
        self, client: Redis, name: str, after: dict[Any, Any], count: int, block: int | None
    ) -> list[Entry]:
        """Returns at most `count` entries of each stream."""
        answer: Any = await client.xreadgroup(GROUP, name, after, count=count, block=block)
        return [
            (self._entry(stream, entry), _task_id(fields))
            for stream, entries in answer or ()
            for entry, fields in entries
        ]

    def _entry(self, stream: str, entry: str) -> str:
        return entry if stream == self._keys.tasks else f"{entry}@{self._keys.lane_name_of(stream)}"

    async def _read_waiting(
        self,
        worker_id: str,
        number: int,
        count: int,
        streams: Mapping[str, str],
        rooms: Mapping[str, int],
    ) -> list[Entry]:
        """Returns undelivered entries of the streams: at most `count` in all, and of each kind at
        most its room."""
        name = consumer_name(worker_id, number)
        entries: list[Entry] = []
        rooms = dict(rooms)
        async with self._answers():
            waiting = await self._commands.eval(_WAITING, len(streams), *streams, GROUP)
            for (stream, kind), length in zip(streams.items(), waiting, strict=True):
                wanted = min(length, count - len(entries), rooms[kind])
                if wanted > 0:
                    found = await self._read_group(
                        self._commands, name, {stream: ">"}, wanted, None
                    )
                    rooms[kind] -= len(found)
                    entries += found
        return entries

    def _streams_to_read(self, kinds: Iterable[str]) -> dict[str, str]:
        """Returns the streams of these kinds in the order of this read, each with its kind."""
        turn = next(self._turns)
        # One kind's tasks must not keep those of another waiting either.
        kinds = list(kinds)
        start = turn % len(kinds)
        kinds = kinds[start:] + kinds[:start]
        order = _READ_ORDERS[turn % len(_READ_ORDERS)]
        return {
            self._keys.stream(Lane(kind, priority)): kind for priority in order for kind in kinds
        }

    def _refuses(self, lane: Lane, is_so: bool) -> None:
        (self.refusing.add if is_so else self.refusing.discard)(lane)

    async def _lanes(self) -> list[Lane]:
        """Returns this process's lanes, and those that any other process has used."""
        names: Any = await self._commands.smembers(self._keys.lanes)
        others = [lane for name in sorted(names) if (lane := lane_of(name))]
        return list(dict.fromkeys([*self._own_lanes, *others]))

    async def _streams(self) -> list[str]:
        return [self._keys.stream(lane) for lane in await self._lanes()]

    async def _unsubscribe(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(RedisError, OSError, RuntimeError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _make_groups(self) -> None:
        """Creates the groups that are missing."""
        if await self._commands.type(self._keys.lanes) not in ("none", "set"):
            await self._put_aside(self._keys.lanes)
        lanes = await self._lanes()
        async with self._commands.pipeline(transaction=False) as pipeline:
            pipeline.sadd(self._keys.lanes, *map(lane_name, lanes))
            for lane in lanes:
                pipeline.xgroup_create(self._keys.stream(lane), GROUP, id=_START, mkstream=True)
            _, *answers = await pipeline.execute(raise_on_error=False)
        answered = list(zip(lanes, answers, strict=True))
        self._note_made(
            [lane for lane, answer in answered if not isinstance(answer, ResponseError)]
        )
        for lane, answer in answered:
            if isinstance(answer, ResponseError) and "BUSYGROUP" not in str(answer):
                await self._make_group(lane)

    async def _make_group(self, lane: Lane) -> None:
        stream = self._keys.stream(lane)
        try:
            await self._commands.xgroup_create(stream, GROUP, id=_START, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" in str(error):
                return
            if "WRONGTYPE" not in str(error):
                raise
            await self._put_aside(stream)
            await self._commands.xgroup_create(stream, GROUP, id=_START, mkstream=True)
        self._note_made([lane])

    def _note_made(self, lanes: list[Lane]) -> None:
        if lanes:
            log.info("Consumer groups created", action="group_made", streams=len(lanes))
            self.lost_at.update(dict.fromkeys(lanes, time.monotonic()))

    async def _put_aside(self, key: str) -> None:
        """Renames a key of this service that another client overwrote. The value is not deleted."""
        await self._commands.rename(key, f"{key}:wrong-type")

    @asynccontextmanager
    async def _answers(self, *, may_be_silent: bool = False) -> AsyncIterator[None]:
        """Translates the errors of Redis, and recreates a stream that is gone. With
        `may_be_silent`, an end without an error does not prove that Redis answered."""
        try:
            yield
        except ResponseError as error:
            if _is_gone(error):
                self._mark_up()
                with suppress(RedisError, OSError):
                    await self._make_groups()
            else:
                # Out of memory, read-only, no replicas: it answers, and refuses.
                self._mark_down(error)
            raise StreamUnavailable from None  # its text may hold an address
        except (RedisError, OSError, RuntimeError) as error:  # RuntimeError: a closed transport
            self._mark_down(error)
            raise StreamUnavailable from None  # its text may hold an address
        else:
            if not may_be_silent:
                self._mark_up()

    def _mark_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            self._is_outage_said = False
            log.info("Redis answers", action="redis_up")

    def _mark_down(self, error: BaseException) -> None:
        """Logs an outage once. The error's own text is left out: it may hold an address."""
        self.is_up = False
        if not self._is_outage_said:
            self._is_outage_said = True
            say = log.error if is_lasting(error) else log.warning
            say(
                "Redis does not answer",
                action="redis_down",
                error=type(error).__name__,
                reason=reason_of(error),
            )


def _task_id(fields: dict[str, str] | None) -> str | None:
    id = fields.get(FIELD) if fields else None
    return id if id is not None and _UUID.fullmatch(id) else None


def _client(url: str, timeout_seconds: float, connections: int, name: str) -> Redis:
    """Makes the client. The URL says where Redis is and as which user; it does not choose the
    protocol."""
    ours: dict[str, Any] = {
        "decode_responses": True,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": COMMAND_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "max_connections": connections,
        "client_name": name,
        "protocol": 2,
    }
    return Redis.from_pool(ConnectionPool(**{**parse_url(url), **ours}))


def _is_gone(error: ResponseError) -> bool:
    text = str(error)
    return any(word in text for word in ("NOGROUP", "WRONGTYPE", "no longer exists", "no such key"))
