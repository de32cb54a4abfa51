"""Servers that say nothing: neither an answer nor an end. Nothing spins, grows or hangs for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.faults.conftest import StartServant, proxied_postgres, proxied_redis
from tests.faults.proxy import Mode, Proxy
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

LEASE_SECONDS = 3.0
STATEMENT_SECONDS = 1.0
GRACE_SECONDS = 1.0
LIMITS = {
    "TASKSVC_LEASE_SECONDS": LEASE_SECONDS,
    "TASKSVC_STATEMENT_TIMEOUT_SECONDS": STATEMENT_SECONDS,
    "TASKSVC_GRACE_SECONDS": GRACE_SECONDS,
}

MOST_CONNECTIONS = 20
"""Of one process to one server. It has up to 15, and few of them wait for one that is given up."""

BODY = b'{"content": "{\\"seconds\\": 0}"}'


def try_create(service: ServiceProcess) -> int:
    status, *_ = service.request("POST", "/task", BODY, {"Content-Type": "application/json"})
    assert status in (201, 503)
    return status


def try_statuses(service: ServiceProcess, ids: list[str]) -> set[str]:
    try:
        return service.statuses(ids)
    except AssertionError:  # 503
        return set()


def watch(service: ServiceProcess, seconds: float, connections: Callable[[], int]) -> set[int]:
    """What creates are answered with meanwhile. The process neither spins nor grows."""
    process = psutil.Process(service.process.pid)
    cpu, size = sum(process.cpu_times()[:2]), process.memory_info().rss
    answers: set[int] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answers.add(try_create(service))
        assert connections() <= MOST_CONNECTIONS
        time.sleep(0.1)
    assert sum(process.cpu_times()[:2]) - cpu < seconds / 3
    assert process.memory_info().rss - size < 30e6
    return answers


def stop_in_time(service: ServiceProcess) -> None:
    since = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - since < GRACE_SECONDS + 5


async def test_postgres_is_silent(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, postgres_proxy: Proxy
) -> None:
    service = start_servant(DATABASE_URL=proxied_postgres(postgres_proxy), **LIMITS)
    id = service.create('{"seconds": 7}')["id"]
    await eventually(lambda: service.task(id)["status"] == "processing")

    postgres_proxy.set(Mode(silence=True))
    answers = watch(service, 2 * LEASE_SECONDS, lambda: postgres_proxy.connections)
    postgres_proxy.heal()

    assert answers == {503}
    await eventually(lambda: try_create(service) == 201)
    await eventually(lambda: try_statuses(service, [id]) == {"completed"})
    assert query(own_postgres.url, "SELECT attempt, failures FROM task WHERE id = %s", id) == [
        (1, 0)
    ]
    postgres_proxy.set(Mode(silence=True))
    stop_in_time(service)


async def test_redis_is_silent(
    start_servant: StartServant, own_redis: EmbeddedRedis, redis_proxy: Proxy
) -> None:
    service = start_servant(REDIS_URL=proxied_redis(redis_proxy), **LIMITS)
    await eventually(lambda: redis_proxy.connections > 1)

    redis_proxy.set(Mode(silence=True))
    answers = watch(service, 2 * LEASE_SECONDS, lambda: redis_proxy.connections)

    assert answers == {201}
    assert [each["action"] for each in service.events()].count("redis_down") == 1
    id = service.create('{"seconds": 0}')["id"]
    await eventually(lambda: service.task(id)["status"] == "completed")
    stop_in_time(service)


@contextlib.contextmanager
def standby_away(url: str) -> Iterator[None]:
    """Commits wait for a synchronous standby that does not come."""

    def say(names: str) -> None:
        query(url, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        query(url, "SELECT pg_reload_conf()")

    say("nobody")
    try:
        yield
    finally:
        say("")


async def test_standby_is_away(start_servant: StartServant, own_postgres: EmbeddedPostgres) -> None:
    url = own_postgres.url
    first, second = (start_servant(DATABASE_URL=url, **LIMITS) for _ in range(2))
    ids = [each.create('{"seconds": 10}')["id"] for each in (first, second)]
    await eventually(lambda: try_statuses(first, ids) == {"processing"})

    def connections() -> int:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        ((count,),) = query(url, statement, f"tasksvc-{first.process.pid}-%")
        # It lives, and its lease says so.
        name = f"%:{first.process.pid}"
        lease = "SELECT expires_at > clock_timestamp() FROM worker WHERE name LIKE %s"
        assert query(url, lease, name) == [(True,)]
        return int(count)

    with standby_away(url):
        answers = watch(first, 2.5 * LEASE_SECONDS, connections)
        assert 503 in answers
        stop_in_time(second)

    await eventually(lambda: try_create(first) == 201)
    await eventually(lambda: try_statuses(first, ids) == {"completed"}, 30)
    assert query(url, "SELECT failures FROM task WHERE failures > 0") == []
    statement = "SELECT attempt FROM task WHERE id = %s"
    assert query(url, statement, ids[0]) == [(1,)]
    await eventually(
        lambda: query(url, "SELECT count(*) FROM task WHERE status <> 'completed'") == [(0,)], 30
    )
