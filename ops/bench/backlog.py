"""A backlog of tasks that wait, and how fast it is drained."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import redis
from redis.exceptions import ResponseError

from ops.bench.children import BenchError
from ops.bench.load import CONTENT_BYTES, content
from ops.bench.servers import Servers
from tasksvc.stream.keys import FIELD, GROUP, Keys

_DRAIN_SECONDS = 120.0
_BATCH = 1000

# An id begins with the milliseconds at which it was made, and then counts.
_ID = """
(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0') || '7'
 || lpad(to_hex(n::bigint), 7, '0') || substr(md5(n::text), 1, 12))::uuid
"""

# As the service inserts them, but in one statement.
_FILL = f"""
INSERT INTO task (id, content, max_attempts, published_at)
SELECT {_ID.format(at="statement_timestamp()")}, %s, 3, clock_timestamp()
FROM generate_series(1, %s) AS n
RETURNING id::text
"""  # noqa: S608 - of constants alone

_FINISHED = f"""
INSERT INTO task (
    id, created_at, due_at, published_at, updated_at, finished_at,
    status, attempt, max_attempts, content
)
SELECT {_ID.format(at="at")}, at, at, at, at, at, 'completed', 1, 3, %s
FROM generate_series(%s, %s) AS n, LATERAL (
    SELECT %s::timestamptz + n * interval '1 ms' AS at
) AS moment
"""  # noqa: S608
"""One each millisecond, so that ids and pages are in the order of time."""

_FINISHED_AT_ONCE = 1_000_000

# The triggers of a statement would keep all its rows in memory.
_WITHOUT_TRIGGERS = (
    "ALTER TABLE task DISABLE TRIGGER ALL",
    "ALTER TABLE task ENABLE TRIGGER ALL",
)

_LOWEST_ID = """
SELECT (lpad(to_hex((extract(epoch FROM statement_timestamp()) * 1000)::bigint), 12, '0')
        || repeat('0', 20))::uuid::text
"""

_DRAINED = """
SELECT (SELECT count(*) FROM task WHERE id >= %(since)s::uuid),
       count(*), extract(epoch FROM max(finished_at) - begun)::float8
FROM task, (
    SELECT coalesce(
        %(begun_at)s::timestamptz, percentile_disc(0.05) WITHIN GROUP (ORDER BY finished_at)
    ) AS begun
    FROM task WHERE id >= %(since)s::uuid
) AS start
WHERE id >= %(since)s::uuid AND finished_at > begun
GROUP BY begun
"""
"""How many were drained in what time: since it began, or but for the first twentieth."""


def lowest_id(bench: Servers) -> str:
    """Not above the id of any task that is made from now on."""
    ((id,),) = bench.query(_LOWEST_ID)
    return str(id)


def fill(bench: Servers, database: str, count: int, content_bytes: int = CONTENT_BYTES) -> None:
    """So many tasks, in the table and in the stream."""
    ids = [id for (id,) in bench.query(_FILL, content(content_bytes), count, database=database)]
    key = Keys(database).tasks
    with redis.Redis.from_url(bench.redis_url) as client:
        try:
            # A service that finds no group takes the whole stream for lost, and publishes again.
            client.xgroup_create(key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        for start in range(0, count, _BATCH):
            pipeline = client.pipeline(transaction=False)
            for id in ids[start : start + _BATCH]:
                pipeline.xadd(key, {FIELD: id})
            pipeline.execute()


def drained(
    bench: Servers, database: str, since: str, begun_at: datetime | None = None
) -> dict[str, Any]:
    """The rate at which the tasks from this id on come to their end, by the table's own times.

    It counts from the moment at which it began; or, since nothing in the table tells when the first
    of all was started, without the first twentieth.
    """
    deadline = time.monotonic() + _DRAIN_SECONDS
    with bench.cursor(database) as cursor:
        while True:
            cursor.execute("SELECT EXISTS (SELECT FROM task WHERE finished_at IS NULL)")
            if not cursor.fetchone()[0]:
                break
            if time.monotonic() > deadline:
                raise BenchError("The backlog was never drained.")
            time.sleep(0.1)
        cursor.execute(_DRAINED, {"since": since, "begun_at": begun_at})
        total, count, seconds = cursor.fetchone()
    return {"rate": count / seconds, "count": total, "unexpected": {}}


def fill_finished(
    bench: Servers, database: str, count: int, content_bytes: int = CONTENT_BYTES
) -> None:
    """So many finished tasks, one each millisecond until a day ago; then as after a long rest:
    vacuumed, analyzed, written to disk."""
    before, after = _WITHOUT_TRIGGERS
    text = content(content_bytes)
    with bench.cursor(database) as cursor:
        cursor.execute(
            "SELECT statement_timestamp() - interval '1 day' - %s * interval '1 ms'", (count,)
        )
        (begun,) = cursor.fetchone()
        cursor.execute(before)
        for start in range(1, count + 1, _FINISHED_AT_ONCE):
            end = min(count, start + _FINISHED_AT_ONCE - 1)
            cursor.execute(_FINISHED, (text, start, end, begun))
        cursor.execute(after)
        cursor.execute("INSERT INTO task_tally VALUES ('completed', %s)", (count,))
        cursor.execute("VACUUM (ANALYZE) task")
        cursor.execute("CHECKPOINT")
