"""The registry by itself: its text is what a scraper can read, whatever it is fed."""

from __future__ import annotations

import math
import os
import re
import resource
from contextlib import suppress

import pytest

from tasksvc.domain.task import Status
from tasksvc.metrics import Metrics

LABEL = r'[a-z_]+="([^"\\\n]|\\["\\])*"'

LINE = re.compile(
    r"# (HELP|TYPE) [a-z_]+ .+"
    rf"|[a-z_]+(\{{{LABEL}(,{LABEL})*\}})? (\d|\.|e[+-]|\+Inf|NaN|-)+"
)


def lines(metrics: Metrics) -> list[str]:
    body, _ = metrics.render([])
    return body.decode().splitlines()


def value(metrics: Metrics, series: str) -> float:
    (line,) = [line for line in lines(metrics) if line.startswith(series + " ")]
    return float(line.rsplit(" ", 1)[1])


def has(metrics: Metrics, name: str) -> bool:
    return any(line.startswith((name + " ", name + "{")) for line in lines(metrics))


def test_every_line_can_be_read(metrics: Metrics) -> None:
    metrics.observe_request("/task", "POST", 201, 0.01)
    metrics.group_size("create")(3)
    metrics.attempt_seconds('say "\\"')(0.1)
    metrics.attempts_failed('say "\\"', "failed").add()
    metrics.set_store((dict.fromkeys(Status, 1), 0.5, 0))
    metrics.set_stream((1, 2))

    assert [line for line in lines(metrics) if not LINE.fullmatch(line)] == []


def test_every_series_has_a_type_and_help(metrics: Metrics) -> None:
    metrics.observe_request("/task", "POST", 201, 0.01)
    declared: dict[str, set[str]] = {}
    for line in lines(metrics):
        if line.startswith("# "):
            _, kind, name, _ = line.split(" ", 3)
            declared.setdefault(name, set()).add(kind)
        else:
            name = re.split(r"[ {]", line)[0]
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert declared.get(name, declared.get(base)) == {"HELP", "TYPE"}, name


def test_registries_are_apart() -> None:
    first, second = Metrics("1"), Metrics("2")
    first.task_create_requests.add()

    assert value(first, "task_create_request_count") == 1
    assert value(second, "task_create_request_count") == 0
    assert value(second, 'tasksvc_build_info{version="2"}') == 1


def test_count_begins_at_zero_and_adds(metrics: Metrics) -> None:
    assert value(metrics, "task_create_request_count") == 0

    metrics.task_create_requests.add()
    metrics.task_create_requests.add(41)

    assert value(metrics, "task_create_request_count") == 42
    assert value(metrics, "task_create_request_count") == 42  # a scrape changes nothing


def test_histogram_is_cumulative_and_ends_with_all(metrics: Metrics) -> None:
    observe = metrics.attempt_seconds("default")
    for seconds in (0.0005, 0.003, 0.003, 7, 1000):
        observe(seconds)

    buckets = [
        (float(match[1]), float(match[2]))
        for line in lines(metrics)
        if (match := re.fullmatch(r'task_processing_duration_bucket\{le="(.+)"\} (.+)', line))
    ]
    bounds, counts = [bound for bound, _ in buckets], [count for _, count in buckets]
    assert bounds == sorted(bounds)
    assert counts == sorted(counts)
    assert dict(buckets)[0.001] == 1
    assert dict(buckets)[0.005] == 3
    assert dict(buckets)[10] == 4
    assert buckets[-1] == (math.inf, 5)
    assert value(metrics, "task_processing_duration_count") == 5
    assert value(metrics, "task_processing_duration_sum") == pytest.approx(1007.0065)


def test_duration_of_all_kinds_is_the_sum(metrics: Metrics) -> None:
    first, second = metrics.attempt_seconds("first"), metrics.attempt_seconds("second")
    first(0.002)
    second(2)
    second(3)

    for _ in range(2):  # a scrape changes nothing
        assert value(metrics, 'tasksvc_attempt_seconds_count{kind="first"}') == 1
        assert value(metrics, 'tasksvc_attempt_seconds_sum{kind="second"}') == 5
        assert value(metrics, "task_processing_duration_count") == 3
        assert value(metrics, "task_processing_duration_sum") == pytest.approx(5.002)
        assert value(metrics, 'task_processing_duration_bucket{le="2.5"}') == 2


def test_count_has_a_series_for_each_of_its_labels(metrics: Metrics) -> None:
    metrics.attempts_failed("a", "retried").add(2)
    metrics.attempts_failed("a", "failed")

    name = "tasksvc_attempts_failed_total"
    assert value(metrics, f'{name}{{kind="a",then="retried"}}') == 2
    assert value(metrics, f'{name}{{kind="a",then="failed"}}') == 0


def test_histogram_without_a_value_is_there(metrics: Metrics) -> None:
    assert value(metrics, "task_processing_duration_count") == 0
    assert value(metrics, 'tasksvc_task_wait_seconds_count{priority="low"}') == 0


def test_requests_are_apart_by_route_method_and_code(metrics: Metrics) -> None:
    metrics.observe_request("/task", "POST", 201, 0.01)
    metrics.observe_request("/task", "POST", 201, 0.01)
    metrics.observe_request("/task", "POST", 422, 0.01)

    name = "tasksvc_http_request_seconds_count"
    assert value(metrics, f'{name}{{code="201",method="POST",route="/task"}}') == 2
    assert value(metrics, f'{name}{{code="422",method="POST",route="/task"}}') == 1


def test_what_nobody_can_say_is_left_out(metrics: Metrics) -> None:
    metrics.set_store(({"pending": 1}, 2.5, 0))
    metrics.set_stream((3, 4))
    assert value(metrics, 'task_status{status="pending"}') == 1
    assert value(metrics, "tasksvc_oldest_pending_age_seconds") == 2.5
    assert value(metrics, "tasksvc_stream_depth") == 3
    assert value(metrics, "tasksvc_stream_pending") == 4
    assert value(metrics, "tasksvc_postgres_up") == 1
    assert value(metrics, "tasksvc_redis_up") == 1

    metrics.set_store(None)
    metrics.set_stream(None)

    assert value(metrics, "tasksvc_postgres_up") == 0
    assert value(metrics, "tasksvc_redis_up") == 0
    for name in (
        "task_status",
        "tasksvc_oldest_pending_age_seconds",
        "tasksvc_stream_depth",
        "tasksvc_stream_pending",
    ):
        assert not has(metrics, name)


def test_process_is_measured(metrics: Metrics) -> None:
    assert 10e6 < value(metrics, "process_resident_memory_bytes") < 1e9
    assert value(metrics, "process_open_fds") > 0
    assert value(metrics, "process_max_fds") > value(metrics, "process_open_fds")
    assert value(metrics, "process_cpu_seconds_total") > 0
    assert value(metrics, "process_start_time_seconds") > 1.7e9


def test_without_a_file_descriptor_all_are_known_to_be_in_use(metrics: Metrics) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        shown = lines(metrics)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert "process_open_fds 200" in shown
    assert "process_max_fds 200" in shown
    assert "tasksvc_connections 0" in shown
