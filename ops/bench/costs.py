"""What tasks cost in bytes: of the write-ahead log, of the table, of the service's memory."""

from __future__ import annotations

import time
from typing import Any

from ops.bench import backlog
from ops.bench.children import BenchError
from ops.bench.measures import Bench
from ops.bench.servers import Found

_REST_SECONDS = 3.0
"""Until a service that has its tasks in hand has done its duties once more."""

_START_SECONDS = 60.0

# Its tasks never end by themselves, and are not waited for at the end.
_SLEEPING: dict[str, Any] = {"TASK_SIMULATED_SECONDS": 60, "TASKSVC_GRACE_SECONDS": 0}


def on_disk(bench: Bench) -> Found:
    """For one whole life: bytes of the log, and of the table with its indexes as it is then."""
    bench.forget("bench_working")
    before = _log_position(bench)
    count = max(1, bench.lives()["answers"])
    ((table_bytes,),) = bench.query(
        "SELECT pg_total_relation_size('task')::float8", database="bench_working"
    )
    return {
        "count": count,
        "wal_bytes": (_log_position(bench) - before) / count,
        "table_bytes": table_bytes / count,
    }


def with_waiting(bench: Bench, count: int) -> Found:
    """Resident memory of a service for which so many tasks wait, while it runs a hundred."""
    return _with_backlog(bench, "bench_waiting_many", count, concurrency=100, running=100)


def with_running(bench: Bench, count: int) -> Found:
    """Resident memory of a service that runs so many handlers, which sleep."""
    return _with_backlog(bench, "bench_running_many", count, concurrency=count, running=count)


def _with_backlog(
    bench: Bench, database: str, count: int, *, concurrency: int, running: int
) -> Found:
    backlog.fill(bench, bench.database(database), count)
    service = bench.service(
        database,
        workers=1,
        database=database,
        TASK_CONSUMER_CONCURRENCY=concurrency,
        **_SLEEPING,
    )
    with service:
        deadline = time.monotonic() + _START_SECONDS
        while service.metric("tasksvc_running") < running:
            if time.monotonic() > deadline:
                raise BenchError(f"{running} tasks were never running at a time.")
            time.sleep(0.1)
        time.sleep(_REST_SECONDS)
        return {
            "count": count,
            "resident_bytes": service.resident_bytes,
            "peak_resident_bytes": service.peak_resident_bytes,
        }


def _log_position(bench: Bench) -> float:
    """Bytes of the write-ahead log so far."""
    ((position,),) = bench.query("SELECT (pg_current_wal_lsn() - '0/0')::float8")
    return float(position)
