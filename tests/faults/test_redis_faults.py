"""Whatever happens to Redis, no task is lost, run twice, late for long, or charged."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest
import redis

from tasksvc.embedded import EmbeddedRedis
from tests.faults.conftest import StartServant
from tests.faults.nemesis import FAULTS
from tests.faults.proxy import Proxy
from tests.faults.trial import charge_nobody, survive
from tests.faults.world import World
from tests.harness import eventually, query

pytestmark = pytest.mark.slow

KEY = "redis-faults:tasks"


@pytest.mark.parametrize("name", sorted(name for name in FAULTS if name.startswith("redis.")))
def test_nothing_is_lost_by(world: World, name: str) -> None:
    evidence = survive(world, FAULTS[name], name)

    charge_nobody(evidence)
    attempts = Counter(each.id for each in evidence.effects if each.event == "start")
    stopped = Counter(each.id for each in evidence.effects if each.event == "stop")
    for row in evidence.rows:
        assert row.failures <= stopped[row.id]
        assert attempts[row.id] <= 1 + stopped[row.id], "nothing but its handler ends an attempt"


@pytest.fixture
def environment(environment: dict[str, str], own_redis: EmbeddedRedis) -> dict[str, str]:
    return environment | {
        "REDIS_URL": own_redis.url,
        "TASKSVC_REDIS_PREFIX": "redis-faults",
    }


def client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


@pytest.mark.parametrize("loss", ["trim", "delete", "flush", "destroy group", "wrong type", "kill"])
async def test_backlog_that_is_lost_is_published_again(
    start_servant: StartServant, own_redis: EmbeddedRedis, loss: str
) -> None:
    front = start_servant(TASK_CONSUMER_WORKERS=0)
    url = front.env["DATABASE_URL"]
    ids = [front.create()["id"] for _ in range(300)]
    await eventually(lambda: front.metric("tasksvc_stream_depth") == 300)
    with client(own_redis) as there:
        match loss:
            case "trim":
                there.xtrim(KEY, maxlen=0, approximate=False)
            case "delete":
                there.delete(KEY)
            case "flush":
                there.flushall()
            case "destroy group":
                there.xgroup_destroy(KEY, "tasksvc")
            case "wrong type":
                there.set(KEY, "not a stream")
            case "kill":
                own_redis.kill()
                own_redis.start()

    start_servant()

    await eventually(
        lambda: query(url, "SELECT count(*) FROM task WHERE status = 'completed'") == [(300,)], 5
    )
    assert query(url, "SELECT DISTINCT attempt, failures FROM task") == [(1, 0)]
    assert front.statuses(ids[:20]) == {"completed"}


async def test_redis_that_is_away_for_the_whole_run(
    start_servant: StartServant, own_redis: EmbeddedRedis
) -> None:
    own_redis.kill()
    services = [start_servant(), start_servant()]

    ids = [services[number % 2].create()["id"] for number in range(60)]

    await eventually(lambda: services[0].statuses(ids) == {"completed"})
    health = json.loads(services[0].get("/health")[2])
    assert health == {"status": "ok", "degraded": ["redis"]}
    url = services[0].env["DATABASE_URL"]
    assert query(url, "SELECT DISTINCT attempt, failures FROM task") == [(1, 0)]


async def test_creates_are_answered_and_worked_on_while_redis_is_frozen(
    start_servant: StartServant, own_redis: EmbeddedRedis
) -> None:
    service = start_servant()
    url = service.env["DATABASE_URL"]
    first = service.create()["id"]
    await eventually(lambda: service.task(first)["status"] == "completed")
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        ids = [service.create()["id"] for _ in range(30)]
        await eventually(lambda: service.statuses(ids) == {"completed"})
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)

    last = service.create()["id"]

    await eventually(lambda: service.task(last)["status"] == "completed", 5)
    assert query(url, "SELECT DISTINCT attempt, failures FROM task") == [(1, 0)]
    await eventually(lambda: service.metric("tasksvc_redis_up") == 1)
    await eventually(lambda: service.metric("tasksvc_stream_depth") == 0)


async def test_append_only_file_keeps_the_backlog(start_servant: StartServant, tmp_path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedRedis(tmp_path / "kept-redis", options=options) as server:
        front = start_servant(REDIS_URL=server.url, TASK_CONSUMER_WORKERS=0)
        for _ in range(50):
            front.create()
        await eventually(lambda: front.metric("tasksvc_stream_depth") == 50)
        server.kill()
        server.start()
        with client(server) as there:
            assert there.xlen(KEY) == 50

        worker = start_servant(REDIS_URL=server.url)

        url = front.env["DATABASE_URL"]
        await eventually(
            lambda: query(url, "SELECT count(*) FROM task WHERE status = 'completed'") == [(50,)], 5
        )
        assert worker.metric("task_processing_success_count") == 50
        assert front.metric("tasksvc_tasks_republished_total") == 0
        assert worker.metric("tasksvc_tasks_republished_total") == 0


async def test_replica_that_is_promoted_without_the_tail_loses_nothing(
    start_servant: StartServant, own_redis: EmbeddedRedis, redis_proxy: Proxy, tmp_path
) -> None:
    """Replication is asynchronous: what the old master took last is not there."""
    with EmbeddedRedis(tmp_path / "replica") as replica:
        front = start_servant(TASK_CONSUMER_WORKERS=0)
        for _ in range(20):
            front.create()
        with client(replica) as there:
            there.execute_command("REPLICAOF", "127.0.0.1", str(redis_proxy.port))
            await eventually(lambda: there.xlen(KEY) == 20)
            there.execute_command("REPLICAOF", "NO", "ONE")
        for _ in range(20):
            front.create()
        own_redis.kill()
        front.stop()

        service = start_servant(REDIS_URL=replica.url)

        url = service.env["DATABASE_URL"]
        await eventually(
            lambda: query(url, "SELECT count(*) FROM task WHERE status = 'completed'") == [(40,)], 5
        )
    assert query(url, "SELECT DISTINCT attempt, failures FROM task") == [(1, 0)]
