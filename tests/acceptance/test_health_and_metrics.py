"""What operators and their Prometheus see."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

import pytest

from tasksvc.web.routes import OPS, TASKS
from tests.harness import ServiceProcess, eventually, query
from tests.wire import JSON, assert_safe_headers, post, request, talk

Start = Callable[..., ServiceProcess]

CANARY = "canary_7f3a"

ENDPOINTS = TASKS + OPS

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

TYPES = {
    "task_status": GAUGE,
    "task_get_request_count": COUNTER,
    "task_create_request_count": COUNTER,
    "task_create_success_count": COUNTER,
    "task_create_fail_count": COUNTER,
    "task_cancel_request_count": COUNTER,
    "task_cancel_success_count": COUNTER,
    "task_cancel_fail_count": COUNTER,
    "task_processing_duration": HISTOGRAM,
    "task_processing_success_count": COUNTER,
    "task_processing_fail_count": COUNTER,
    "tasksvc_task_wait_seconds": HISTOGRAM,
    "tasksvc_attempt_seconds": HISTOGRAM,
    "tasksvc_attempts_failed_total": COUNTER,
    "tasksvc_tasks_expired_total": COUNTER,
    "tasksvc_schedule_runs_total": COUNTER,
    "tasksvc_oldest_pending_age_seconds": GAUGE,
    "tasksvc_queues_paused": GAUGE,
    "tasksvc_tasks_republished_total": COUNTER,
    "tasksvc_tasks_rescued_total": COUNTER,
    "tasksvc_results_fenced_total": COUNTER,
    "tasksvc_group_commit_size": HISTOGRAM,
    "tasksvc_http_request_seconds": HISTOGRAM,
    "tasksvc_connections": GAUGE,
    "tasksvc_connections_closed_total": COUNTER,
    "tasksvc_redis_up": GAUGE,
    "tasksvc_postgres_up": GAUGE,
    "tasksvc_log_lines_dropped_total": COUNTER,
    "tasksvc_event_loop_lag_seconds": GAUGE,
    "tasksvc_running": GAUGE,
    "tasksvc_stream_depth": GAUGE,
    "tasksvc_stream_pending": GAUGE,
    "process_resident_memory_bytes": GAUGE,
    "process_cpu_seconds_total": COUNTER,
    "process_open_fds": GAUGE,
    "process_start_time_seconds": GAUGE,
    "tasksvc_build_info": GAUGE,
}
"""The contract's names."""

LABELS = {
    "reason": {
        *("idle", "refused", "unread"),  # of closed connections
        *("full", "failed", "unrenderable", "nested"),  # of lines of the log
    },
    "run_in": {"loop", "thread", "process"},
    "priority": {"high", "normal", "low"},
    "status": {"pending", "processing", "completed", "failed", "canceled"},
    "route": {*(each.path for each in ENDPOINTS), "none"},
    "method": {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"},
    "code": {
        *(str(code) for each in ENDPOINTS for code in (*each.answers, *each.errors)),
        *("405", "408", "413", "415", "417", "500", "501"),  # of any endpoint
    },
    "kind": {"default"},
    "then": {"retried", "failed"},
    "outcome": {"made", "skipped"},
    "place": {"file", "terminal"},
    "group": {"create", "get", "cancel", "claim", "finish", "progress", "create_with_options"},
}
"""Every value that a label may have, but for `le` and `version`."""


def scrape(service: ServiceProcess) -> list[str]:
    status, _, body = service.get("/metrics")
    assert status == 200
    return body.decode().splitlines()


def statuses(service: ServiceProcess) -> dict[str, float]:
    """The task_status of each status that has tasks."""
    counts = {
        match[1]: float(match[2])
        for line in scrape(service)
        if (match := re.fullmatch(r'task_status\{status="(\w+)"\} (\S+)', line))
    }
    assert set(counts) == LABELS["status"]
    return {status: count for status, count in counts.items() if count}


# Health.


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_is_one_word(shared_service: ServiceProcess, path: str) -> None:
    answer = talk(shared_service.port, request("GET", path))

    assert answer.status == 200
    assert answer.json() == {"status": "ok"}
    assert answer.headers["content-type"] == "application/json"
    assert_safe_headers(answer)


async def test_redis_away_fails_no_request_and_is_named(start_service: Start) -> None:
    service = start_service(REDIS_URL="redis://127.0.0.1:1")

    id = service.create()["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")
    answer = talk(service.port, request("GET", "/health"))
    assert answer.status == 200
    assert answer.json() == {"status": "ok", "degraded": ["redis"]}
    assert talk(service.port, request("GET", "/health/ready")).status == 200
    lines = scrape(service)
    assert "tasksvc_redis_up 0" in lines
    assert not [line for line in lines if line.startswith("tasksvc_stream_")]


# Metrics.


async def test_metrics_have_every_name_of_the_contract(shared_service: ServiceProcess) -> None:
    talk(
        shared_service.port, request("GET", "/metrics")
    )  # the first request of all is counted later
    answer = talk(shared_service.port, request("GET", "/metrics"))
    lines = answer.body.decode().splitlines()

    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert_safe_headers(answer)
    types = dict(line.split(" ")[2:] for line in lines if line.startswith("# TYPE "))
    assert {name: types.get(name) for name in TYPES} == TYPES
    values = {re.split("[ {]", line)[0] for line in lines if not line.startswith("#")}
    for name, kind in types.items():
        assert (f"{name}_bucket" if kind == HISTOGRAM else name) in values
    assert [line for line in lines if line.startswith("tasksvc_build_info{version=")]
    assert answer.body.endswith(b"\n")


async def test_labels_come_from_closed_sets_whatever_is_asked(
    shared_service: ServiceProcess,
) -> None:
    port = shared_service.port
    for method in ("GET", "HEAD", "POST", "PUT", "PROPFIND", "PURGE", "CONNECT", "TRACE", "MKCOL"):
        for path in (
            f"/{CANARY}",
            f"/task/{CANARY}",
            f"/task/{uuid4()}/cancel",
            "/task",
            "/health",
        ):
            talk(port, request(method, path) if method != "HEAD" else request("HEAD", path))
    talk(port, request("GET", f"/health?{CANARY}", f"X-Request-ID: {CANARY}", f"Host: {CANARY}"))
    talk(port, request("POST", "/task", f"Content-Type: {CANARY}/x", body=b""))
    talk(port, request("GET", '/task/"} 1%0a%22%7D%201'))
    talk(port, post(f'{{"{CANARY}": 1}}'.encode()))

    lines = scrape(shared_service)

    assert CANARY not in "\n".join(lines)
    series = [line for line in lines if not line.startswith("#")]
    for line in series:
        for label, value in re.findall(r'([a-z_]+)="([^"]*)"', line):
            assert label in ("le", "version") or value in LABELS[label], line
    assert len(series) < 3000


async def test_series_stop_growing(shared_service: ServiceProcess) -> None:
    def ask() -> int:
        for number in range(20):
            talk(shared_service.port, request("GET", f"/task/{uuid4()}"))
            talk(shared_service.port, request("GET", f"/{number}"))
            talk(shared_service.port, post(b'{"%d": 1}' % number))
        return len(scrape(shared_service))

    ask()

    assert ask() == ask()


async def test_task_status_follows_every_change_in_every_process(start_service: Start) -> None:
    first = start_service(TASK_CONSUMER_WORKERS=0)
    second = start_service(TASK_CONSUMER_WORKERS=0)
    assert statuses(first) == {}

    ids = [service.create()["id"] for service in (first, second, first)]

    for service in (first, second):
        await eventually(lambda service=service: statuses(service) == {"pending": 3})

    second.request("PATCH", f"/task/{ids[0]}/cancel")
    for service in (first, second):
        await eventually(lambda service=service: statuses(service) == {"pending": 2, "canceled": 1})

    # Its janitor comes at the start.
    third = start_service(TASK_CONSUMER_WORKERS=0, TASK_RETENTION_SECONDS=0.001)
    await eventually(lambda: third.get(f"/task/{ids[0]}")[0] == 404)
    for service in (first, second, third):
        await eventually(lambda service=service: statuses(service) == {"pending": 2})

    url = first.env["DATABASE_URL"]
    query(url, "DELETE FROM task WHERE id = %s", ids[1])
    for service in (first, second, third):
        await eventually(lambda service=service: statuses(service) == {"pending": 1})

    query(url, "TRUNCATE task")
    for service in (first, second, third):
        await eventually(lambda service=service: statuses(service) == {})


async def test_counters_count_what_they_say(start_service: Start) -> None:
    service = start_service(TASK_CONSUMER_WORKERS=0)
    port = service.port
    ids = [service.create()["id"] for _ in range(3)]
    for refused in (post(b"{"), post(b"{}"), request("POST", "/task", body=b"{}")):
        talk(port, refused)
    for id, times in ((ids[0], 2), (str(uuid4()), 1), ("x", 1)):
        for _ in range(times):
            talk(port, request("GET", f"/task/{id}"))
    for id in (ids[0], ids[0], str(uuid4()), "x"):
        talk(port, request("PATCH", f"/task/{id}/cancel"))

    assert service.metric("task_create_request_count") == 6
    assert service.metric("task_create_success_count") == 3
    assert service.metric("task_create_fail_count") == 3
    assert service.metric("task_get_request_count") == 4
    assert service.metric("task_cancel_request_count") == 4
    assert service.metric("task_cancel_success_count") == 1
    assert service.metric("task_cancel_fail_count") == 3
    name = "tasksvc_http_request_seconds_count"
    assert service.metric(f'{name}{{code="201",method="POST",route="/task"}}') == 3
    assert service.metric(f'{name}{{code="415",method="POST",route="/task"}}') == 1
    assert service.metric(f'{name}{{code="404",method="GET",route="/task/{{task_id}}"}}') == 2
    cancel = 'method="PATCH",route="/task/{task_id}/cancel"'
    assert service.metric(f'{name}{{code="400",{cancel}}}') == 1


async def test_processing_is_counted_and_timed(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=0.06)
    assert service.metric("task_processing_duration_count") == 0

    ids = [service.create()["id"] for _ in range(5)]
    await eventually(lambda: service.statuses(ids) == {"completed"})

    await eventually(lambda: statuses(service) == {"completed": 5})
    await eventually(lambda: service.metric("task_processing_success_count") == 5)
    assert service.metric("task_processing_fail_count") == 0
    assert service.metric("task_processing_duration_count") == 5
    assert service.metric("task_processing_duration_sum") > 5 * 0.05
    assert service.metric('task_processing_duration_bucket{le="0.05"}') == 0
    assert service.metric('tasksvc_task_wait_seconds_count{priority="normal"}') == 5
    assert service.metric("tasksvc_running") == 0


async def test_failures_are_counted_by_kind(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.shop")
    failed = 'tasksvc_attempts_failed_total{kind="%s",then="%s"}'
    assert service.metric(failed % ("fail", "retried")) == 0  # it is there before the first

    ids = [service.create(content, kind="fail")["id"] for content in ("retry", "permanent")]
    await eventually(lambda: service.statuses(ids) == {"failed"})

    await eventually(lambda: service.metric(failed % ("fail", "failed")) == 2)
    assert service.metric(failed % ("fail", "retried")) == 1
    assert service.metric(failed % ("greet", "failed")) == 0
    assert service.metric("task_processing_fail_count") == 3
    assert service.metric('tasksvc_attempt_seconds_count{kind="fail"}') == 3
    assert service.metric('tasksvc_attempt_seconds_count{kind="greet"}') == 0


async def test_task_that_expires_is_counted(start_service: Start) -> None:
    service = start_service()

    id = service.create(delay_seconds=3600, expires_at="2020-01-01T00:00:00Z")["id"]

    await eventually(lambda: service.task(id)["status"] == "failed")
    await eventually(lambda: service.metric("tasksvc_tasks_expired_total") == 1)


async def test_paused_queues_are_gauged(start_service: Start) -> None:
    service = start_service()
    service.create(queue="reports")
    assert service.metric("tasksvc_queues_paused") == 0

    assert service.request("POST", "/queues/reports/pause")[0] == 200

    await eventually(lambda: service.metric("tasksvc_queues_paused") == 1)


async def test_running_and_waiting_tasks_are_gauged(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASK_CONSUMER_CONCURRENCY=2)
    for _ in range(3):
        service.create()

    await eventually(lambda: service.metric("tasksvc_running") == 2)

    await eventually(lambda: statuses(service) == {"processing": 2, "pending": 1})
    assert service.metric("tasksvc_stream_depth") == 3
    assert 2 <= service.metric("tasksvc_stream_pending") <= 3
    oldest = service.metric("tasksvc_oldest_pending_age_seconds")
    assert oldest > 0
    await eventually(lambda: service.metric("tasksvc_oldest_pending_age_seconds") > oldest)


async def test_metrics_survive_a_body_that_is_none(shared_service: ServiceProcess) -> None:
    answer = talk(shared_service.port, request("GET", "/metrics", JSON, body=b"{"))

    assert answer.status == 200
