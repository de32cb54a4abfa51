"""After a burst with faults in it, everything is back where it was."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import psutil
import pytest
import redis
from aiohttp import web

from tasksvc.app import BACKGROUND, create_app
from tasksvc.domain.errors import Unavailable
from tasksvc.domain.task import Claim
from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.settings import Settings
from tasksvc.web.app_keys import SERVICE
from tests.faults.conftest import StartServant
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

KEY = "leaks:tasks"
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Held:
    """What a service holds."""

    connections: int
    descriptors: int
    clients: int
    consumers: int
    workers: int


def held(service: ServiceProcess, postgres: EmbeddedPostgres, server: EmbeddedRedis) -> Held:
    process = psutil.Process(service.process.pid)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tasksvc-%'"
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        clients = [each for each in client.client_list() if each["name"].startswith("tasksvc")]
        consumers = client.xinfo_consumers(KEY, "tasksvc")
    ((connections,),) = query(postgres.url, ours)
    return Held(
        connections=connections,
        descriptors=process.num_fds(),
        clients=len(clients),
        consumers=len(consumers),
        workers=query(postgres.url, "SELECT count(*) FROM worker")[0][0],
    )


def burst(service: ServiceProcess, tasks: int) -> None:
    """So many creates, eight at a time; what is refused is not tried again."""

    def create(number: int) -> None:
        with contextlib.suppress(OSError, AssertionError):
            service.create("x" * 100)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(create, range(tasks)))


@contextlib.contextmanager
def fault(name: str, postgres: EmbeddedPostgres, server: EmbeddedRedis) -> Iterator[None]:
    """The burst is within it."""
    match name:
        case "redis killed":
            server.kill()
            yield
            server.start()
        case "redis frozen":
            os.kill(server.pid, signal.SIGSTOP)
            yield
            os.kill(server.pid, signal.SIGCONT)
        case "postgres killed":
            postgres.kill()
            yield
            postgres.start()
        case "postgres terminates":
            query(
                postgres.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tasksvc-%'",
            )
            yield


async def drained(url: str) -> None:
    await eventually(
        lambda: query(url, "SELECT count(*) FROM task WHERE finished_at IS NULL") == [(0,)], 20
    )


async def test_service_holds_no_more_after_bursts_with_faults_than_before(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    service = start_servant(
        DATABASE_URL=own_postgres.url,
        REDIS_URL=own_redis.url,
        TASKSVC_REDIS_PREFIX="leaks",
        TASKSVC_LEASE_SECONDS=10,
        TASKSVC_KEEPALIVE_SECONDS=1,
        LOG_LEVEL="info",
    )
    burst(service, 1000)
    await drained(own_postgres.url)
    service.get("/metrics")
    before = held(service, own_postgres, own_redis)
    memory = psutil.Process(service.process.pid).memory_info().rss

    for name in ("redis killed", "postgres killed", "redis frozen", "postgres terminates") * 2:
        with fault(name, own_postgres, own_redis):
            burst(service, 150)
        await eventually(lambda: service.get("/health")[0] == 200, 5)
        burst(service, 150)
        await drained(own_postgres.url)

    def is_back() -> bool:
        now = held(service, own_postgres, own_redis)
        return (
            now.connections <= before.connections + 1  # a session is opened when it's needed
            and now.descriptors <= before.descriptors + 3
            and now.clients <= before.clients + 2
            and (now.consumers, now.workers) == (before.consumers, before.workers)
        )

    try:
        await eventually(is_back, 10)
    except AssertionError:
        pytest.fail(f"{before} became {held(service, own_postgres, own_redis)}")
    grown = psutil.Process(service.process.pid).memory_info().rss - memory
    assert grown < 16 * _MEGABYTE, f"{grown / _MEGABYTE:.1f} MB"
    with redis.Redis.from_url(own_redis.url) as client:
        await eventually(lambda: client.xlen(KEY) == 0)
        assert client.xpending(KEY, "tasksvc")["pending"] == 0


async def test_processes_that_come_and_go_leave_nothing_in_redis_or_postgres(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    where = {
        "DATABASE_URL": own_postgres.url,
        "REDIS_URL": own_redis.url,
        "TASKSVC_REDIS_PREFIX": "leaks",
    }
    last = start_servant(**where)
    for round_number in range(6):
        guest = start_servant(**where)
        burst(guest, 50)
        guest.kill() if round_number % 2 else guest.stop()

    await drained(own_postgres.url)
    await eventually(lambda: held(last, own_postgres, own_redis).workers == 1)
    await eventually(lambda: held(last, own_postgres, own_redis).consumers == 1)
    with redis.Redis.from_url(own_redis.url) as client:
        await eventually(lambda: client.xlen(KEY) == 0)
        assert client.xpending(KEY, "tasksvc")["pending"] == 0


async def test_asyncio_tasks_are_back_after_a_burst(
    settings: Settings, own_redis: EmbeddedRedis
) -> None:
    async def handle(claim: Claim) -> None:
        await asyncio.sleep(0)

    app = create_app(replace(settings, redis_url=own_redis.url), handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        service = app[SERVICE]
        await service.create("x")
        await service.flush()
        before = len(asyncio.all_tasks())

        for is_away in (False, True, False):
            if is_away:
                own_redis.kill()
            created = await asyncio.gather(
                *(service.create("x") for _ in range(500)), return_exceptions=True
            )
            assert not [each for each in created if isinstance(each, Unavailable)]
            await asyncio.gather(*(service.get(each.task.id) for each in created[:100]))
            if is_away:
                own_redis.start()
        url = settings.database_url
        assert url is not None
        await drained(url)

        await eventually(lambda: len(asyncio.all_tasks()) <= before)
        await eventually(lambda: app[BACKGROUND]._worker.held == {})
        assert not service._publisher._waiting
        gc.collect()
    finally:
        await runner.cleanup()
