"""The stream on a real Redis, and all that can go wrong there."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis
import structlog

from tasksvc.domain.errors import StreamUnavailable
from tasksvc.domain.task import DEFAULT_LANE
from tasksvc.embedded import EmbeddedRedis
from tasksvc.stream import task_stream
from tasksvc.stream.keys import GROUP
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually

MakeStream = Callable[..., TaskStream]


def new_ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis that may be broken, as long as it is mended."""
    with EmbeddedRedis(tmp_path_factory.mktemp("own-redis")) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _no_connection_is_lost() -> Iterator[None]:
    yield
    gc.collect()  # a connection that was left open warns now


@pytest.fixture
def own_client(own_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_server.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
async def make_stream(own_server: EmbeddedRedis) -> AsyncIterator[MakeStream]:
    streams = []

    def make(url: str = own_server.url, **overrides: Any) -> TaskStream:
        defaults: dict[str, Any] = {"prefix": "p", "readers": 4, "block_seconds": 0.1}
        stream = TaskStream(url, **({"max_entries": 100} | defaults | overrides))
        streams.append(stream)
        return stream

    yield make
    for stream in streams:
        await stream.close()


@pytest.fixture
async def stream(make_stream: MakeStream, own_client: redis.Redis) -> TaskStream:
    stream = make_stream()
    await stream.open()
    return stream


def pending(client: redis.Redis) -> int:
    found: Any = client.xpending("p:tasks", GROUP)
    return int(found["pending"])


async def read_all(stream: TaskStream, count: int, worker_id: str = "w") -> list[str | None]:
    """What a consumer gets that goes on whatever happens."""
    ids: list[str | None] = []

    async def read() -> bool:
        try:
            entries = await stream.read(worker_id, 1, 100)
        except StreamUnavailable:
            return False
        ids.extend(id for _, id in entries)
        await stream.acknowledge([entry for entry, _ in entries]) if entries else None
        return len(ids) >= count

    await eventually(read)
    return ids


async def blocked(client: redis.Redis) -> None:
    await eventually(lambda: [each for each in client.client_list() if "b" in each["flags"]])


class TestLife:
    async def test_acknowledged_entries_are_gone_from_redis(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        ids = new_ids(5)
        await stream.publish(ids)
        assert own_client.xlen("p:tasks") == 5
        entries = await stream.read("w", 1, 10)
        assert pending(own_client) == 5
        await stream.acknowledge([entry for entry, _ in entries])

        assert own_client.xlen("p:tasks") == 0
        assert pending(own_client) == 0

    async def test_publications_of_many_are_bounded_together(
        self, make_stream: MakeStream, own_client: redis.Redis
    ) -> None:
        streams = [make_stream(max_entries=50) for _ in range(5)]
        await asyncio.gather(*(stream.open() for stream in streams))
        counts = await asyncio.gather(*(stream.publish(new_ids(20)) for stream in streams))

        assert own_client.xlen("p:tasks") == sum(counts) == 50

    async def test_entries_that_are_not_ours_are_seen_as_none(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        (id,) = new_ids(1)
        fields: list[dict[Any, Any]] = [
            {"id": "junk"},
            {"other": id},
            {"id": id.upper()},
            {"id": id + "'"},
            {"id": id},
        ]
        for each in fields:
            own_client.xadd("p:tasks", each)

        assert [found for _, found in await stream.read("w", 1, 10)] == [None] * 4 + [id]

    async def test_answer_that_was_lost_is_read_again(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        ids = new_ids(3)
        await stream.publish(ids)
        own_client.xreadgroup(GROUP, "w/1", {"p:tasks": ">"})

        assert [id for _, id in await stream.read_again("w", 1, 10, "0")] == ids

    async def test_removed_consumers_leave_nothing(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        ids = new_ids(6)
        await stream.publish(ids)
        own_client.xadd("p:tasks", {"id": "junk"})
        await stream.read("gone", 1, 3)
        await stream.read("gone", 2, 10)

        assert sorted(await stream.remove_consumers("gone")) == sorted(ids)
        assert own_client.xinfo_consumers("p:tasks", GROUP) == []
        assert (own_client.xlen("p:tasks"), pending(own_client)) == (0, 0)

    async def test_many_entries_are_removed_in_steps(
        self, stream: TaskStream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_stream, "_BATCH", 2)
        ids = new_ids(5)
        await stream.publish(ids)
        await stream.read("gone", 1, 10)

        assert await stream.remove_consumers("gone") == ids

    async def test_prefixes_are_apart(self, make_stream: MakeStream, stream: TaskStream) -> None:
        other = make_stream(prefix="q")
        await other.open()
        await other.read_canceled()
        await stream.publish(new_ids(1))
        await stream.publish_canceled(["x"])

        assert await other.read("w", 1, 1) == []
        assert await other.read_canceled() == []


class TestUnblock:
    async def test_nothing_is_lost_that_comes_at_the_same_moment(
        self, make_stream: MakeStream, own_client: redis.Redis
    ) -> None:
        stream = make_stream(block_seconds=30)
        await stream.open()
        async with asyncio.timeout(20):
            for _ in range(30):
                (id,) = new_ids(1)
                reading = asyncio.create_task(stream.read("w", 1, 10))
                await blocked(own_client)
                await asyncio.gather(stream.unblock(), stream.publish([id]))
                entries = await reading or await stream.read("w", 1, 10)
                assert [found for _, found in entries] == [id]

    async def test_readers_of_others_go_on(
        self, make_stream: MakeStream, own_client: redis.Redis
    ) -> None:
        stream, other = make_stream(), make_stream(block_seconds=30)
        await other.open()
        reading = asyncio.create_task(other.read("w", 1, 10))
        await blocked(own_client)
        await stream.unblock()
        assert not reading.done()
        ids = new_ids(1)
        await stream.publish(ids)

        assert [id for _, id in await reading] == ids


BREAKAGES: dict[str, Callable[[redis.Redis], Any]] = {
    "flushall": lambda client: client.flushall(),
    "del": lambda client: client.delete("p:tasks"),
    "destroy": lambda client: client.xgroup_destroy("p:tasks", GROUP),
    "set": lambda client: client.set("p:tasks", "mine"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
class TestLoss:
    @pytest.mark.parametrize("is_blocked", [False, True])
    async def test_reader_heals_and_skips_nothing(
        self, stream: TaskStream, own_client: redis.Redis, breakage: str, is_blocked: bool
    ) -> None:
        stream.lost_at.clear()
        before = time.monotonic()
        reading = asyncio.create_task(stream.read("w", 1, 1)) if is_blocked else None
        if reading is not None:
            await blocked(own_client)
        BREAKAGES[breakage](own_client)
        if reading is not None:
            await asyncio.wait([reading])
            assert isinstance(reading.exception(), StreamUnavailable | None)
        # What comes before the group is recreated must not be skipped.
        if breakage != "set":
            ids = new_ids(2)
            assert await stream.publish(ids) == 2
            assert await read_all(stream, 2) == ids
        else:
            await read_all(stream, 0)

        assert stream.is_up
        assert before < stream.lost_at[DEFAULT_LANE] <= time.monotonic()

    @pytest.mark.parametrize(
        "act", ["publish_to", "read_again", "look", "worker_ids", "remove", "measure"]
    )
    async def test_everything_heals(
        self, stream: TaskStream, own_client: redis.Redis, breakage: str, act: str
    ) -> None:
        stream.lost_at.clear()
        acts: dict[str, Callable[[], Any]] = {
            "publish_to": lambda: stream.publish_to("w", 1, new_ids(1)),
            "read_again": lambda: stream.read_again("w", 1, 1, "0"),
            "look": stream.look,
            "worker_ids": stream.worker_ids,
            "remove": lambda: stream.remove_consumers("w"),
            "measure": stream.measure,
        }
        BREAKAGES[breakage](own_client)
        if (act, breakage) != ("look", "destroy"):  # which answers without a group, and makes it
            with pytest.raises(StreamUnavailable):
                await acts[act]()
        await acts[act]()

        assert stream.is_up
        assert DEFAULT_LANE in stream.lost_at


async def test_wrong_key_is_put_aside_and_not_lost(
    stream: TaskStream, own_client: redis.Redis
) -> None:
    own_client.delete("p:tasks")
    own_client.set("p:tasks", "mine")
    with pytest.raises(StreamUnavailable):
        await stream.publish(new_ids(1))

    assert own_client.get("p:tasks:wrong-type") == "mine"
    ids = new_ids(1)
    await stream.publish(ids)
    assert await read_all(stream, 1) == ids


async def test_group_that_is_there_was_not_lost(
    make_stream: MakeStream, stream: TaskStream
) -> None:
    other = make_stream()
    await other.open()

    assert stream.lost_at
    assert not other.lost_at


async def test_group_sees_what_was_there_before_it(
    make_stream: MakeStream, own_client: redis.Redis
) -> None:
    stream, ids = make_stream(), new_ids(1)
    await stream.publish(ids)
    await stream.open()

    assert [id for _, id in await stream.read("w", 1, 1)] == ids


async def test_trimmed_entries_are_none_when_read_again_and_else_gone(
    stream: TaskStream, own_client: redis.Redis
) -> None:
    await stream.publish(new_ids(4))
    entries = await stream.read("w", 1, 2)
    own_client.xtrim("p:tasks", maxlen=0, approximate=False)

    assert await stream.read("w", 1, 2) == []
    assert await stream.look() == (100, 0.0)
    again = await stream.read_again("w", 1, 9, "0")
    assert again == [(entry, None) for entry, _ in entries]
    await stream.acknowledge([entry for entry, _ in again])
    assert pending(own_client) == 0


async def test_age_is_by_the_clock_of_redis(stream: TaskStream, own_client: redis.Redis) -> None:
    seconds, _ = own_client.time()
    own_client.xadd("p:tasks", {"id": new_ids(1)[0]}, id=f"{(seconds - 100) * 1000}-0")

    assert (await stream.look())[1] == pytest.approx(100, abs=5)
    await stream.read("w", 1, 1)
    own_client.xadd("p:tasks", {"id": new_ids(1)[0]}, id=f"{(seconds + 100) * 1000}-0")
    assert (await stream.look())[1] == 0


@contextmanager
def without_memory(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", "1")
    yield
    client.config_set("maxmemory", "0")


@contextmanager
def read_only(client: redis.Redis) -> Iterator[None]:
    client.replicaof("127.0.0.1", "1")
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def without_replicas(client: redis.Redis) -> Iterator[None]:
    client.config_set("min-replicas-to-write", "1")
    yield
    client.config_set("min-replicas-to-write", "0")


@contextmanager
def with_password(client: redis.Redis) -> Iterator[None]:
    client.config_set("requirepass", "secret")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    client.config_set("requirepass", "")


class TestRefusal:
    @pytest.mark.parametrize(
        "breakage", [without_memory, read_only, without_replicas, with_password]
    )
    async def test_publication_fails_until_it_is_mended(
        self, stream: TaskStream, own_client: redis.Redis, breakage: Any
    ) -> None:
        with breakage(own_client), structlog.testing.capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(StreamUnavailable):
                    await stream.publish(new_ids(1))
                assert not stream.is_up
                assert not stream.is_open()

        assert [line["action"] for line in logs] == ["redis_down"]
        await stream.look()
        assert stream.is_open()
        assert await stream.publish(new_ids(1)) == 1

    async def test_without_memory_it_is_read_but_not_open(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        ids = new_ids(1)
        await stream.publish(ids)
        with without_memory(own_client):
            with pytest.raises(StreamUnavailable):
                await stream.publish(ids)
            entries = await stream.read("w", 1, 1)
            await stream.acknowledge([entry for entry, _ in entries])

            assert [id for _, id in entries] == ids
            assert stream.is_up
            assert not stream.is_open()


class TestOutage:
    async def test_frozen_server_is_given_up_in_time(
        self,
        own_server: EmbeddedRedis,
        own_client: redis.Redis,
        make_stream: MakeStream,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(task_stream, "COMMAND_TIMEOUT_SECONDS", 0.1)
        monkeypatch.setattr(task_stream, "BLOCK_MARGIN_SECONDS", 0.1)
        stream = make_stream()
        await stream.open()
        ids = new_ids(1)
        acts: list[Callable[[], Any]] = [
            lambda: stream.publish(ids),
            lambda: stream.read("w", 1, 1),
            lambda: stream.read_again("w", 1, 1, "0"),
            lambda: stream.acknowledge(["1-0"]),
            lambda: stream.publish_canceled(ids),
            stream.read_canceled,
            stream.unblock,
            stream.look,
            stream.measure,
            stream.worker_ids,
        ]
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                failures = await asyncio.gather(*(act() for act in acts), return_exceptions=True)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)

        assert [type(each) for each in failures] == [StreamUnavailable] * len(acts)
        assert not stream.is_up
        await eventually(lambda: heals(stream))
        assert ids[0] in await read_all(stream, 1)
        await stream.read_canceled()
        await stream.publish_canceled(["a"])
        assert await stream.read_canceled() == ["a"]

    async def test_frozen_server_ends_a_blocked_read(
        self,
        own_server: EmbeddedRedis,
        own_client: redis.Redis,
        make_stream: MakeStream,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(task_stream, "BLOCK_MARGIN_SECONDS", 0.2)
        stream = make_stream(block_seconds=0.3)
        await stream.open()
        reading = asyncio.create_task(stream.read("w", 1, 1))
        await blocked(own_client)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(StreamUnavailable):
                    await reading
        finally:
            os.kill(own_server.pid, signal.SIGCONT)

    async def test_listener_hears_again_after_its_connection_was_cut(
        self, stream: TaskStream, own_client: redis.Redis
    ) -> None:
        assert await stream.read_canceled() == []
        own_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(StreamUnavailable):
            await stream.read_canceled()
        await stream.read_canceled()
        await stream.publish_canceled(["a", "b"])

        assert await stream.read_canceled() == ["a", "b"]

    async def test_nobody_there(self, make_stream: MakeStream) -> None:
        stream = make_stream("redis://:secret@127.0.0.1:1/0")
        with structlog.testing.capture_logs() as logs, pytest.raises(StreamUnavailable) as raised:
            await stream.open()

        assert not stream.is_up
        shown = traceback.TracebackException.from_exception(raised.value)
        assert shown.__suppress_context__
        assert list(shown.format_exception_only()) == [
            "tasksvc.domain.errors.StreamUnavailable: Redis does not answer.\n"
        ]
        assert "secret" not in repr(logs)
        assert "127.0.0.1" not in repr(logs)

    async def test_no_connection_is_left(
        self, make_stream: MakeStream, own_client: redis.Redis
    ) -> None:
        def ours() -> int:
            return len([c for c in own_client.client_list() if c["name"].startswith("tasksvc")])

        stream = make_stream(block_seconds=0.01)
        await stream.open()
        for ticks in range(6):
            reading = asyncio.create_task(stream.read("w", 1, 1))
            for _ in range(ticks):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            await stream.read_canceled()
            own_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await eventually(lambda: heals(stream))
            assert ours() <= 6
        await stream.close()

        await eventually(lambda: ours() == 0)


async def heals(stream: TaskStream) -> bool:
    try:
        await stream.look()
    except StreamUnavailable:
        return False
    return stream.is_up
