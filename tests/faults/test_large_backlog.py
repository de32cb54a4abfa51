"""A hundred thousand tasks wait, and Redis loses them all."""

from __future__ import annotations

import time

import pytest
import redis

from tasksvc.embedded import EmbeddedPostgres
from tests.faults.conftest import StartServant
from tests.harness import eventually, query

pytestmark = pytest.mark.slow

TASKS = 100_000
SECONDS = 10

FILL = """
INSERT INTO task (id, content, max_attempts)
SELECT gen_random_uuid(), '{}', 3 FROM generate_series(1, %s)
"""


@pytest.mark.timeout(180)
async def test_flushed_backlog_is_on_its_way_again_in_seconds_and_only_once(
    start_servant: StartServant,
    own_postgres: EmbeddedPostgres,
    redis_client: redis.Redis,
    redis_prefix: str,
) -> None:
    service = start_servant(
        DATABASE_URL=own_postgres.url, TASK_CONSUMER_WORKERS=0, LOG_LEVEL="info"
    )
    key = f"{redis_prefix}:tasks"
    query(own_postgres.url, FILL, TASKS)
    await eventually(lambda: redis_client.xlen(key) == TASKS, 60)
    published = service.metric("tasksvc_tasks_republished_total")

    redis_client.delete(key)
    lost_at = time.monotonic()

    await eventually(lambda: redis_client.exists(key) and redis_client.xlen(key) == TASKS, 60)
    assert time.monotonic() - lost_at < SECONDS
    # And it stays so: none is published a second time while it waits for its turn.
    await eventually(lambda: time.monotonic() - lost_at > SECONDS + 2, SECONDS + 5)
    assert redis_client.xlen(key) == TASKS
    assert service.metric("tasksvc_tasks_republished_total") - published == TASKS
