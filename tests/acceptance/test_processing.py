"""Tasks are processed: by several consumers and processes, and whatever dies in between."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that the test may kill."""
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        yield server


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that the test may kill."""
    with EmbeddedPostgres(tmp_path / "own-postgres") as server:
        yield server


def count(url: str, status: str) -> int:
    ((tasks,),) = query(url, "SELECT count(*) FROM task WHERE status = %s::task_status", status)
    return tasks


async def completed(url: str, tasks: int, within_seconds: float = 15.0) -> None:
    await eventually(lambda: count(url, "completed") == tasks, within_seconds)


async def test_four_consumers_finish_300_tasks_together(start_service: Start) -> None:
    service = start_service(
        TASK_CONSUMER_WORKERS=4, TASK_CONSUMER_CONCURRENCY=20, TASK_SIMULATED_SECONDS=0.2
    )

    for _ in range(300):
        service.create()

    await completed(service.env["DATABASE_URL"], 300)
    assert service.metric("task_processing_success_count") == 300
    assert service.metric("tasksvc_results_fenced_total") == 0


async def test_each_consumer_has_a_name_of_its_own(
    start_service: Start, redis_client: redis.Redis, redis_prefix: str
) -> None:
    start_service(TASK_CONSUMER_WORKERS=3)

    def names() -> set[str]:
        return {
            each["name"]
            for each in redis_client.xinfo_consumers(f"{redis_prefix}:tasks", "tasksvc")
        }

    await eventually(lambda: len(names()) == 3)


async def test_stream_is_empty_when_all_is_done(
    service: ServiceProcess, redis_client: redis.Redis, redis_prefix: str
) -> None:
    for _ in range(20):
        service.create()
    await completed(service.env["DATABASE_URL"], 20)

    key = f"{redis_prefix}:tasks"
    await eventually(lambda: redis_client.xlen(key) == 0)
    assert redis_client.xpending(key, "tasksvc")["pending"] == 0


async def test_service_without_consumers_accepts_and_one_without_routes_consumes(
    start_service: Start,
) -> None:
    front = start_service(TASK_CONSUMER_WORKERS=0)
    id = front.create()["id"]
    assert front.task(id)["status"] == "pending"

    start_service(TASKSVC_HTTP="off")

    await eventually(lambda: front.task(id)["status"] == "completed")


async def test_processes_share_the_work(start_service: Start) -> None:
    one = start_service(TASK_CONSUMER_CONCURRENCY=5, TASK_SIMULATED_SECONDS=0.1)
    two = start_service(TASK_CONSUMER_CONCURRENCY=5, TASK_SIMULATED_SECONDS=0.1)

    for _ in range(40):
        one.create()

    await completed(one.env["DATABASE_URL"], 40)
    shares = [each.metric("task_processing_success_count") for each in (one, two)]
    assert sum(shares) == 40
    assert min(shares) > 0


async def test_cancel_stops_the_handler_in_another_process(start_service: Start) -> None:
    front = start_service(TASK_CONSUMER_WORKERS=0)
    # The lease is so long that the heartbeat is not what stops it.
    worker = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_LEASE_SECONDS=300)
    id = front.create()["id"]
    await eventually(lambda: worker.metric("tasksvc_running") == 1)

    assert front.request("PATCH", f"/task/{id}/cancel")[0] == 200

    await eventually(lambda: worker.metric("tasksvc_running") == 0, 5)
    assert front.task(id)["status"] == "canceled"


async def test_killed_service_completes_its_tasks_after_a_restart(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=0.5)
    ids = [service.create()["id"] for _ in range(10)]
    await eventually(lambda: "processing" in service.statuses(ids))

    service.kill()
    service.start()

    await completed(service.env["DATABASE_URL"], 10)
    assert service.metric("tasksvc_tasks_rescued_total") > 0


async def test_tasks_of_a_killed_process_run_again_within_its_lease_and_two_seconds(
    start_service: Start,
) -> None:
    doomed = start_service(TASK_SIMULATED_SECONDS=60)
    id = doomed.create()["id"]
    await eventually(lambda: doomed.task(id)["status"] == "processing")
    other = start_service()

    doomed.kill()
    killed_at = time.monotonic()

    await eventually(lambda: other.task(id)["status"] == "completed")
    lease_seconds = 2
    assert time.monotonic() - killed_at < lease_seconds + 2


async def test_frozen_worker_changes_nothing_when_it_comes_back(start_service: Start) -> None:
    zombie = start_service(TASK_SIMULATED_SECONDS=1)
    id = zombie.create()["id"]
    await eventually(lambda: zombie.task(id)["status"] == "processing")
    os.kill(zombie.process.pid, signal.SIGSTOP)
    other = start_service(TASK_SIMULATED_SECONDS=4)
    await eventually(lambda: other.metric("tasksvc_running") == 1)

    os.kill(zombie.process.pid, signal.SIGCONT)

    await eventually(lambda: zombie.metric("tasksvc_running") == 0)
    await eventually(lambda: "was declared dead" in zombie.output())
    await eventually(lambda: other.task(id)["status"] == "completed")
    assert other.metric("task_processing_success_count") == 1
    assert zombie.metric("task_processing_success_count") == 0
    ((attempt,),) = query(other.env["DATABASE_URL"], "SELECT attempt FROM task")
    assert attempt == 2


async def test_tasks_are_processed_while_redis_is_away(
    start_service: Start, own_redis: EmbeddedRedis
) -> None:
    service = start_service(REDIS_URL=own_redis.url)
    own_redis.kill()

    ids = [service.create()["id"] for _ in range(10)]

    await eventually(lambda: service.statuses(ids) == {"completed"})
    health = json.loads(service.get("/health")[2])
    assert health == {"status": "ok", "degraded": ["redis"]}
    assert service.metric("tasksvc_redis_up") == 0

    own_redis.start()

    await eventually(lambda: service.metric("tasksvc_redis_up") == 1)
    id = service.create()["id"]
    await eventually(lambda: service.task(id)["status"] == "completed")


async def test_service_starts_without_redis(start_service: Start, own_redis: EmbeddedRedis) -> None:
    own_redis.stop()
    service = start_service(REDIS_URL=own_redis.url)

    id = service.create()["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")


async def test_flushed_stream_loses_no_task(start_service: Start, own_redis: EmbeddedRedis) -> None:
    front = start_service(REDIS_URL=own_redis.url, TASK_CONSUMER_WORKERS=0)
    for _ in range(50):
        front.create()
    with redis.Redis.from_url(own_redis.url) as client:
        client.flushall()

    start_service(REDIS_URL=own_redis.url)

    await completed(front.env["DATABASE_URL"], 50, 5)


async def test_everything_goes_on_when_postgres_is_back(
    start_service: Start, own_postgres: EmbeddedPostgres
) -> None:
    service = start_service(DATABASE_URL=own_postgres.url, TASK_SIMULATED_SECONDS=0.3)
    ids = [service.create()["id"] for _ in range(20)]
    own_postgres.kill()

    status, headers, body = service.request(
        "POST", "/task", b'{"content": "x"}', {"Content-Type": "application/json"}
    )
    assert status == 503
    assert headers["Retry-After"]
    assert json.loads(body)["status"] == 503
    assert service.get("/health")[0] == 503
    assert service.get("/health/live")[0] == 200
    assert service.metric("tasksvc_postgres_up") == 0

    own_postgres.start()

    await eventually(lambda: service.get("/health")[0] == 200, 5)
    await completed(own_postgres.url, 20, 5)
    assert service.statuses(ids) == {"completed"}
    assert service.create()["status"] == "pending"


async def test_service_waits_for_postgres_at_its_start(
    environment: dict[str, str], tmp_path: Path, own_postgres: EmbeddedPostgres
) -> None:
    own_postgres.stop()
    service = ServiceProcess(tmp_path, environment | {"DATABASE_URL": own_postgres.url})
    service.spawn()
    try:
        service.wait_for_line("Waiting for PostgreSQL")

        own_postgres.start()

        service.wait_for_line("Ready")
        assert service.create()["status"] == "pending"
    finally:
        service.end()
