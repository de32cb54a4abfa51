"""Whatever the network does, between the service and its servers or before its door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from typing import Any

import pytest

from tasksvc.domain.errors import StoreUnavailable
from tasksvc.store.database import CONNECT_TIMEOUT_SECONDS, Database
from tests.faults.conftest import StartServant, proxied_postgres, proxied_redis
from tests.faults.nemesis import FAULTS
from tests.faults.proxy import Mode, Proxy
from tests.faults.trial import charge_nobody, survive
from tests.faults.world import World
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120)  # packets that were dropped may be sent again half a minute later
@pytest.mark.parametrize("name", sorted(name for name in FAULTS if name.startswith("network.")))
def test_nothing_is_lost_by(world: World, name: str) -> None:
    evidence = survive(world, FAULTS[name], name)

    charge_nobody(evidence)


def offsets(whole: range, parts: int) -> list[Any]:
    """The bytes of an answer after which it is cut, in portions of about the same time."""
    portions = [list(whole)[part::parts] for part in range(parts)]
    return [pytest.param(each, id=f"{each[0]}...{each[-1]}") for each in portions]


async def cut_at_each(
    service: ServiceProcess, proxy: Proxy, cuts: list[int], *, reset: bool, must_create: bool
) -> list[str]:
    """Creates a task before each cut, and another one after it; the ids of those taken."""
    ids: list[str] = []
    for cut in cuts:
        proxy.set(Mode(cut_after_bytes=cut, reset=reset))
        assert try_create(service, ids) or not must_create
        proxy.heal()
        await eventually(lambda: try_create(service, ids), 5)
        await eventually(lambda: try_status(service, ids[-1]) == "completed", 5)
    return ids


def try_create(service: ServiceProcess, ids: list[str]) -> bool:
    status, _, body = service.request(
        "POST", "/task", b'{"content": "x"}', {"Content-Type": "application/json"}
    )
    assert status in (201, 503), body
    if status == 201:
        ids.append(json.loads(body)["id"])
    return status == 201


def try_status(service: ServiceProcess, id: str) -> str | None:
    status, _, body = service.get(f"/task/{id}")
    assert status in (200, 503), body
    return json.loads(body)["status"] if status == 200 else None


async def all_ended_once(service: ServiceProcess, url: str, ids: list[str]) -> None:
    await eventually(
        lambda: query(url, "SELECT count(*) FROM task WHERE status <> 'completed'") == [(0,)]
    )
    kept = {id for (id,) in query(url, "SELECT id::text FROM task")}
    assert set(ids) <= kept
    assert query(url, "SELECT max(failures) FROM task") == [(0,)]
    assert service.metric("task_processing_success_count") == len(kept)
    await eventually(lambda: service.metric("tasksvc_stream_depth") == 0)
    await eventually(lambda: service.metric("tasksvc_stream_pending") == 0)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("cuts", offsets(range(0, 1500, 31), 3))
async def test_answer_of_postgres_cut_after_so_many_bytes(
    start_servant: StartServant, postgres_proxy: Proxy, own_postgres, cuts: list[int], reset: bool
) -> None:
    service = start_servant(
        DATABASE_URL=proxied_postgres(postgres_proxy),
        TASKSVC_LEASE_SECONDS=10,
        # Right after a reset the kernel may hold an answer back for seconds, to a busy machine's
        # new connection: the statement is given up by its time limit, and run again.
        TASKSVC_STATEMENT_TIMEOUT_SECONDS=1,
    )

    ids = await cut_at_each(service, postgres_proxy, cuts, reset=reset, must_create=False)

    await all_ended_once(service, own_postgres.url, ids)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("cuts", offsets(range(0, 260, 5), 2))
async def test_answer_of_redis_cut_after_so_many_bytes(
    start_servant: StartServant, redis_proxy: Proxy, cuts: list[int], reset: bool
) -> None:
    service = start_servant(REDIS_URL=proxied_redis(redis_proxy))

    ids = await cut_at_each(service, redis_proxy, cuts, reset=reset, must_create=True)

    url = service.env["DATABASE_URL"]
    await all_ended_once(service, url, ids)
    assert query(url, "SELECT max(attempt) FROM task") == [(1,)]


async def test_half_closed_servers_are_left(
    start_servant: StartServant, postgres_proxy: Proxy, redis_proxy: Proxy, own_postgres
) -> None:
    service = start_servant(
        DATABASE_URL=proxied_postgres(postgres_proxy), REDIS_URL=proxied_redis(redis_proxy)
    )
    ids: list[str] = []
    for proxy in (postgres_proxy, redis_proxy, postgres_proxy, redis_proxy):
        proxy.half_close()
        await eventually(lambda: try_create(service, ids), 5)
        await eventually(lambda: try_status(service, ids[-1]) == "completed", 5)

    await all_ended_once(service, own_postgres.url, ids)


async def test_connection_that_is_tried_again_without_tls_is_not_lost_sight_of() -> None:
    """libpq takes another socket for it, with the number of the first."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))
        if len(seen) == 1:
            writer.write(b"S")  # yes, TLS; and then none
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        session = Database(f"postgresql://x@127.0.0.1:{port}/x?sslmode=prefer").session("test")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await session.run("SELECT 1")
    assert len(seen) == 2
    assert time.monotonic() - started < CONNECT_TIMEOUT_SECONDS / 2


REQUEST = (
    b"POST /task HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 16\r\n\r\n{"content": "x"}'
)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_client_that_hangs_up_at_any_byte_of_a_create(
    start_servant: StartServant, reset: bool
) -> None:
    """The row exists or it does not, and the next request is served."""
    service = start_servant()
    for sent in range(len(REQUEST) + 1):
        with socket.create_connection(("127.0.0.1", service.port), 5) as client:
            client.sendall(REQUEST[:sent])
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for read in range(1, 200, 20):
        with socket.create_connection(("127.0.0.1", service.port), 5) as client:
            client.sendall(REQUEST)
            client.recv(read)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    ids: list[str] = []
    await eventually(lambda: try_create(service, ids))

    url = service.env["DATABASE_URL"]
    rows = "SELECT count(*) FROM task"
    assert (11,) <= query(url, rows)[0] <= (12,)
    await eventually(lambda: query(url, rows + " WHERE status = 'completed'") == query(url, rows))
    assert "Traceback" not in service.output()


async def test_clients_that_send_half_and_stay_are_no_burden(start_servant: StartServant) -> None:
    service = start_servant(TASKSVC_BODY_TIMEOUT_SECONDS=1)
    with contextlib.ExitStack() as stack:
        for sent in range(0, len(REQUEST), 2):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))
            client.sendall(REQUEST[:sent])
        id = service.create()["id"]
        await eventually(lambda: service.task(id)["status"] == "completed", 5)
    assert query(service.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(1,)]
