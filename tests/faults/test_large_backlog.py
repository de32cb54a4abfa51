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
RELAY_SECONDS = 3.0
TIMES = 2
"""As long as it took to publish them at first, on this very machine, it may take at most."""

FILL = """
INSERT INTO task (id, content, max_attempts)
SELECT gen_random_uuid(), '{}', 3 FROM generate_series(1, %s)
"""


@pytest.mark.timeout(180)
async def test_flushed_backlog_is_on_its_way_again_soon_and_only_once(
    start_servant: StartServant,
    own_postgres: EmbeddedPostgres,
    redis_client: redis.Redis,
    redis_prefix: str,
) -> None:
    service = start_servant(
        DATABASE_URL=own_postgres.url,
        TASK_CONSUMER_WORKERS=0,
        TASKSVC_RELAY_SECONDS=RELAY_SECONDS,
        LOG_LEVEL="info",
    )
    key = f"{redis_prefix}:tasks"
    query(own_postgres.url, FILL, TASKS)
    filled_at = time.monotonic()
    await eventually(lambda: redis_client.xlen(key) == TASKS, 60)
    first_seconds = time.monotonic() - filled_at
    published = service.metric("tasksvc_tasks_republished_total")

    redis_client.delete(key)
    lost_at = time.monotonic()

    await eventually(lambda: redis_client.exists(key) and redis_client.xlen(key) == TASKS, 60)
    again_seconds = time.monotonic() - lost_at
    assert again_seconds < TIMES * first_seconds
    # And it stays so: none is published a second time while it waits for its turn.
    await eventually(lambda: time.monotonic() - lost_at > again_seconds + 2 * RELAY_SECONDS, 30)
    assert redis_client.xlen(key) == TASKS
    assert service.metric("tasksvc_tasks_republished_total") - published == TASKS
