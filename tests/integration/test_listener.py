"""The listener: hears at once what is canceled elsewhere."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import redis

from tasksvc.domain.errors import StreamUnavailable
from tasksvc.domain.task import Claim
from tasksvc.duties.listener import Listener
from tasksvc.embedded import EmbeddedRedis
from tasksvc.loop import Loop
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually
from tests.integration.conftest import MakeWorker, Row


class Heard:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def __call__(self, ids: Sequence[str]) -> int:
        self.ids += ids
        return len(ids)


StopLost = Callable[[Sequence[str]], Awaitable[int]]


@asynccontextmanager
async def listening(stream: TaskStream, heard: StopLost) -> AsyncIterator[Loop]:
    loop = Loop(Listener(stream, heard))
    loop.start()
    try:
        yield loop
    finally:
        await loop.stop(1)


async def tell(stream: TaskStream, heard: Heard, id: str, within_seconds: float = 15.0) -> None:
    """Repeats it until it is heard: the message is lost while the connection is being made."""

    async def is_heard() -> bool:
        await stream.publish_canceled([id])
        return id in heard.ids

    await eventually(is_heard, within_seconds)


async def test_many_ids_in_one_message(stream: TaskStream) -> None:
    heard = Heard()
    async with listening(stream, heard):
        await tell(stream, heard, "first")
        await stream.publish_canceled(["a", "b", "c"])

        await eventually(lambda: heard.ids[-3:] == ["a", "b", "c"])


async def test_every_message_is_heard_at_once(stream: TaskStream) -> None:
    """Though a read that finds nothing lies between them."""
    heard = Heard()
    async with listening(stream, heard):
        await tell(stream, heard, "first")
        for number in range(30):
            await stream.publish_canceled([str(number)])
            await eventually(lambda number=number: str(number) in heard.ids, 0.5)


async def test_it_listens_again_after_its_connection_was_cut(
    own_stream: TaskStream, own_redis: EmbeddedRedis
) -> None:
    heard = Heard()
    async with listening(own_stream, heard):
        await tell(own_stream, heard, "before")
        with redis.Redis.from_url(own_redis.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        await tell(own_stream, heard, "after")


async def test_it_listens_again_after_a_restart_of_redis(
    own_stream: TaskStream, own_redis: EmbeddedRedis
) -> None:
    heard = Heard()
    async with listening(own_stream, heard):
        await tell(own_stream, heard, "before")
        own_redis.kill()
        own_redis.start()

        async def is_heard() -> bool:
            with suppress(StreamUnavailable):  # over a connection of before
                await own_stream.publish_canceled(["after"])
            return "after" in heard.ids

        await eventually(is_heard, 5)


async def test_cancel_in_one_process_stops_the_handler_in_another(
    make_worker: MakeWorker, rows: Callable[[], list[Row]], stream: TaskStream
) -> None:
    async def wait(claim: Claim) -> None:
        await asyncio.Event().wait()

    front, worker = make_worker(), make_worker(wait)
    await worker.service.register()
    task = await front.create()
    await worker.take()
    async with listening(stream, worker.service.stop_lost):
        await eventually(lambda: stream._pubsub is not None and stream._pubsub.subscribed)

        await front.tasks.cancel(task.id)

        await eventually(lambda: not len(worker.running), 2)
    await worker.finisher.run_once()
    assert rows() == [("canceled", 1, 0)]


async def test_false_message_stops_nothing(make_worker: MakeWorker, stream: TaskStream) -> None:
    """Anybody who reaches Redis can publish one; PostgreSQL knows whose the task is."""

    async def wait(claim: Claim) -> None:
        await asyncio.Event().wait()

    worker = make_worker(wait)
    await worker.service.register()
    task = await worker.create()
    await worker.take()
    heard = Heard()

    async def stop(ids: Sequence[str]) -> int:
        count = await worker.service.stop_lost(ids)
        await heard(ids)
        return count

    async with listening(stream, stop):
        for id in (task.id, "x", "", task.id.upper()):
            await tell(stream, heard, id)

    assert len(worker.running) == 1
    assert worker.service.held == {task.id: 1}


async def test_many_false_messages_delay_no_other(stream: TaskStream) -> None:
    heard = Heard()

    async def stop(ids: Sequence[str]) -> int:
        await heard(ids)
        return 0  # none of them runs here

    async with listening(stream, stop):
        await tell(stream, heard, "first")
        for number in range(200):
            await stream.publish_canceled([f"false {number}"])
        await stream.publish_canceled(["last"])

        await eventually(lambda: "last" in heard.ids, 5)


async def test_dead_subscription_is_renewed_and_does_not_hold_the_loop(
    own_stream: TaskStream,
) -> None:
    """TCP's keepalive ends a connection whose packets are dropped with ETIMEDOUT, at each read."""
    heard = Heard()
    async with listening(own_stream, heard):
        await tell(own_stream, heard, "before")
        assert own_stream._pubsub is not None
        connection = own_stream._pubsub.connection
        calls = []

        async def dead(**options: object) -> None:
            calls.append(options)
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

        disconnect = connection.disconnect

        async def mended(*args: object, **options: object) -> None:
            vars(connection).pop("_read_response_from_parser", None)
            await disconnect(*args, **options)

        connection._read_response_from_parser, connection.disconnect = dead, mended

        await tell(own_stream, heard, "after")
        assert len(calls) <= 3
