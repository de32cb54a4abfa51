"""Every collector, declared once.

The user's own names come first and stay as they are. Ours are `tasksvc_<noun>_<unit|total>`. Label
values come from closed sets: aioprometheus does not escape them.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import psutil
from aioprometheus import Counter, Gauge, Histogram, Registry, render

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
_HTTP_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]
_SIZES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]

_PRIORITIES = ("high", "normal", "low")

_SCHEDULE_OUTCOMES = ("made", "skipped")

_CLOSED_REASONS = ("refused", "idle", "unread")
_NONE: dict[str, str] = {}


def _escaped(kind: str) -> str:
    """As the text format has it. Line breaks are in no kind that a process can serve."""
    return kind.replace("\\", r"\\").replace('"', r"\"")


class Count:
    """A number that only grows. Plain on the hot path; the registry takes it at each scrape."""

    __slots__ = ("_counter", "_labels", "value")

    def __init__(self, counter: Counter, **labels: str) -> None:
        self._counter = counter
        self._labels = labels
        self.value = 0

    def add(self, count: int = 1) -> None:
        self.value += count

    def collect(self) -> None:
        self._counter.set(self._labels, self.value)


class _Buckets:
    """What aioprometheus reads of a histogram. An observation counts in one bucket; they are added
    up when they are asked for."""

    __slots__ = ("_bounds", "_counts", "observations", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = [*map(float, bounds), float("inf")]
        self._counts = [0] * len(self._bounds)
        self.observations = 0
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.observations += 1
        self.sum += value

    def add(self, other: _Buckets) -> None:
        """Takes over what another with the same bounds has observed."""
        self._counts = [sum(each) for each in zip(self._counts, other._counts, strict=True)]
        self.observations += other.observations
        self.sum += other.sum

    @property
    def buckets(self) -> dict[float, int]:
        return dict(zip(self._bounds, accumulate(self._counts), strict=True))


class Distribution:
    """A histogram, one series for each value of its labels."""

    def __init__(self, registry: Registry, name: str, doc: str, buckets: Sequence[float]) -> None:
        self._histogram = Histogram(name, doc, registry=registry, buckets=buckets)

    def series(self, **labels: str) -> Callable[[float], None]:
        """What observes a value of this series; keep it where it is used often."""
        series = _Buckets(self._histogram.upper_bounds)
        self._histogram.set_value(labels, series)
        return series.observe

    def add_up(self, other: Distribution) -> None:
        """Its one series is all that the other has observed, whatever the labels."""
        total = _Buckets(self._histogram.upper_bounds)
        for series in other._histogram.values.values():
            total.add(series)
        self._histogram.set_value(_NONE, total)


class Metrics:
    """One registry for each application, so that a test can make many."""

    def __init__(self, version: str) -> None:
        self._registry = Registry()
        self._counts: list[Count] = []
        self._collectors: list[Callable[[], None]] = []
        self._process = psutil.Process()

        # The user's own.
        self._task_status = self._gauge("task_status", "Tasks that are in this status now")
        self.task_get_requests = self._count("task_get_request_count", "Requests for a task")
        self.task_create_requests = self._count(
            "task_create_request_count", "Requests to create a task"
        )
        self.task_create_successes = self._count("task_create_success_count", "Tasks created")
        self.task_create_fails = self._count(
            "task_create_fail_count", "Requests to create a task that were refused or failed"
        )
        self.task_cancel_requests = self._count(
            "task_cancel_request_count", "Requests to cancel a task"
        )
        self.task_cancel_successes = self._count("task_cancel_success_count", "Tasks canceled")
        self.task_cancel_fails = self._count(
            "task_cancel_fail_count", "Requests to cancel a task that were refused or failed"
        )
        self._task_processing_duration = self._distribution(
            "task_processing_duration", "Seconds that a handler ran", _SECONDS
        )
        self.task_processing_successes = self._count(
            "task_processing_success_count", "Runs of a handler that completed their task"
        )
        self.task_processing_fails = self._count(
            "task_processing_fail_count", "Runs of a handler that raised"
        )

        # The way of a task.
        wait_seconds = self._distribution(
            "tasksvc_task_wait_seconds", "Seconds from created or due to claimed", _SECONDS
        )
        self.task_wait_seconds = {
            priority: wait_seconds.series(priority=priority) for priority in _PRIORITIES
        }
        self._attempt_seconds = self._distribution(
            "tasksvc_attempt_seconds", "Seconds that a handler ran, by the kind of task", _SECONDS
        )
        self._attempts_failed = self._counter(
            "tasksvc_attempts_failed_total", "Runs that failed: was the task tried again?"
        )
        self.tasks_expired = self._count(
            "tasksvc_tasks_expired_total", "Tasks that could not start in time"
        )
        schedule_runs = self._counter(
            "tasksvc_schedule_runs_total", "Moments of schedules: was a task made or none?"
        )
        self.schedule_runs = {
            outcome: self._series(schedule_runs, outcome=outcome) for outcome in _SCHEDULE_OUTCOMES
        }
        self._oldest_pending_age_seconds = self._gauge(
            "tasksvc_oldest_pending_age_seconds", "Age of the oldest task that could be claimed"
        )
        self._queues_paused = self._gauge("tasksvc_queues_paused", "Queues that are paused")
        self.tasks_republished = self._count(
            "tasksvc_tasks_republished_total", "Tasks that the relay put into the stream"
        )
        self.tasks_rescued = self._count(
            "tasksvc_tasks_rescued_total", "Tasks taken back from workers that died"
        )
        self.tasks_released = self._count(
            "tasksvc_tasks_released_total", "Runs that were handed back without a charge"
        )
        self.results_fenced = self._count(
            "tasksvc_results_fenced_total", "Results refused: the attempt was no longer current"
        )
        self._group_size = self._distribution(
            "tasksvc_group_commit_size", "Tasks in one statement", _SIZES
        )
        self._running = self._gauge("tasksvc_running", "Handlers that run in this process")
        self._places = self._gauge(
            "tasksvc_places", "Tasks that may run at a time, by where their handlers run"
        )
        self._places_in_use = self._gauge(
            "tasksvc_places_in_use", "Places that a task has, by where its handler runs"
        )
        self._threads_lingering = self._gauge(
            "tasksvc_threads_lingering", "Threads that go on although their task is over"
        )
        self._stream_depth = self._gauge("tasksvc_stream_depth", "Entries in the stream")
        self._stream_pending = self._gauge(
            "tasksvc_stream_pending", "Entries of the stream that a consumer has in hand"
        )

        # Process and HTTP.
        self._http_seconds = self._distribution(
            "tasksvc_http_request_seconds", "Seconds to answer a request", _HTTP_SECONDS
        )
        self._http_series: dict[tuple[str, str, int], Callable[[float], None]] = {}
        self.connections = 0
        self._connections = self._gauge(
            "tasksvc_connections", "HTTP connections that are open in this process"
        )
        closed = self._counter(
            "tasksvc_connections_closed_total",
            "Connections closed by a limit: refused, idle to make room, or an answer left unread",
        )
        self.connections_closed = {
            reason: self._series(closed, reason=reason) for reason in _CLOSED_REASONS
        }
        self._redis_up = self._gauge("tasksvc_redis_up", "1 when Redis answers")
        self._postgres_up = self._gauge("tasksvc_postgres_up", "1 when PostgreSQL answers")
        self._log_lines_dropped = self._counter(
            "tasksvc_log_lines_dropped_total", "Lines of the log that were lost: where, and why"
        )
        self._event_loop_lag_seconds = self._gauge(
            "tasksvc_event_loop_lag_seconds", "How late the event loop was at its last tick"
        )
        self.set_event_loop_lag(0.0)  # it ticks every second
        self.loop_blocks = self._count(
            "tasksvc_event_loop_blocked_total",
            "Times that the event loop was blocked for over a second",
        )
        self._resident_memory_bytes = self._gauge(
            "process_resident_memory_bytes", "Resident memory size in bytes"
        )
        self._cpu_seconds = self._counter(
            "process_cpu_seconds_total", "Total user and system CPU time spent in seconds"
        )
        self._open_fds = self._gauge("process_open_fds", "Number of open file descriptors")
        self._max_fds = self._gauge("process_max_fds", "Maximum number of open file descriptors")
        self._gauge(
            "process_start_time_seconds", "Start time of the process since unix epoch in seconds"
        ).set(_NONE, self._process.create_time())
        self._gauge("tasksvc_build_info", "1, with the version as a label").set(
            {"version": version}, 1
        )

    def group_size(self, group: str) -> Callable[[float], None]:
        return self._group_size.series(group=group)

    def attempt_seconds(self, kind: str) -> Callable[[float], None]:
        return self._attempt_seconds.series(kind=_escaped(kind))

    def attempts_failed(self, kind: str, then: str) -> Count:
        """Those after which the task was `failed`, or is tried again: `retried`."""
        return self._series(self._attempts_failed, kind=_escaped(kind), then=then)

    def observe_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """`route` is the pattern and never the path; `method` is one that the route has."""
        key = (route, method, code)
        observe = self._http_series.get(key)
        if observe is None:
            observe = self._http_seconds.series(route=route, method=method, code=str(code))
            self._http_series[key] = observe
        observe(seconds)

    def set_store(self, measures: tuple[Mapping[str, int], float, int] | None) -> None:
        """Tasks by status, the age of the oldest that waits, and how many queues are paused; None
        while it is unknown."""
        self._postgres_up.set(_NONE, int(measures is not None))
        self._task_status.values.clear()
        self._oldest_pending_age_seconds.values.clear()
        self._queues_paused.values.clear()
        if measures is not None:
            tasks, oldest_seconds, paused_queues = measures
            for status, count in tasks.items():
                self._task_status.set({"status": status}, count)
            self._oldest_pending_age_seconds.set(_NONE, oldest_seconds)
            self._queues_paused.set(_NONE, paused_queues)

    def set_stream(self, measures: tuple[int, int] | None) -> None:
        """Entries in the stream, and those in hand; None while it is unknown."""
        self._redis_up.set(_NONE, int(measures is not None))
        self._stream_depth.values.clear()
        self._stream_pending.values.clear()
        if measures is not None:
            self._stream_depth.set(_NONE, measures[0])
            self._stream_pending.set(_NONE, measures[1])

    def set_running(self, tasks: int) -> None:
        self._running.set(_NONE, tasks)

    def set_places(self, places: Mapping[str, tuple[int, int]], lingering: int) -> None:
        """Of each way to run handlers, how many places there are and how many are in use; and the
        threads that go on although their task is over."""
        for run_in, (total, in_use) in places.items():
            self._places.set({"run_in": run_in}, total)
            self._places_in_use.set({"run_in": run_in}, in_use)
        self._threads_lingering.set(_NONE, lingering)

    def before_scrape(self, collect: Callable[[], None]) -> None:
        """Calls the function before each scrape, to bring what it knows up to date."""
        self._collectors.append(collect)

    def set_log_lines_dropped(self, counts: Mapping[tuple[str, str], int]) -> None:
        """By where they should have gone and why they did not."""
        for (place, reason), count in counts.items():
            self._log_lines_dropped.set({"place": place, "reason": reason}, count)

    def set_event_loop_lag(self, seconds: float) -> None:
        self._event_loop_lag_seconds.set(_NONE, seconds)

    def render(self, accept: list[str]) -> tuple[bytes, dict[str, str]]:
        """The exposition of all that is known now, and its headers."""
        for collect in self._collectors:
            collect()
        for count in self._counts:
            count.collect()
        self._task_processing_duration.add_up(self._attempt_seconds)
        self._connections.set(_NONE, self.connections)
        self._measure_process()
        body, headers = render(self._registry, accept)
        return body, headers

    def _measure_process(self) -> None:
        """Each of it takes a descriptor, and there may be none left: that is then what is known."""
        most = self._process.rlimit(psutil.RLIMIT_NOFILE)[0]
        self._max_fds.set(_NONE, most)
        try:
            with self._process.oneshot():
                cpu = self._process.cpu_times()
                self._cpu_seconds.set(_NONE, cpu.user + cpu.system)
                self._resident_memory_bytes.set(_NONE, self._process.memory_info().rss)
                self._open_fds.set(_NONE, self._process.num_fds())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._open_fds.set(_NONE, most)

    def _count(self, name: str, doc: str) -> Count:
        return self._series(self._counter(name, doc))

    def _series(self, counter: Counter, **labels: str) -> Count:
        count = Count(counter, **labels)
        self._counts.append(count)
        return count

    def _counter(self, name: str, doc: str) -> Counter:
        return Counter(name, doc, registry=self._registry)

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(name, doc, registry=self._registry)

    def _distribution(self, name: str, doc: str, buckets: Sequence[float]) -> Distribution:
        return Distribution(self._registry, name, doc, buckets)
