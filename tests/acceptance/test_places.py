"""Two processes with work that holds the CPU: what waits is pending, and belongs to neither."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import post, request, talk

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]

PLACES = 2

PROCESSING = """
SELECT worker.name, count(*) FROM task JOIN worker ON worker.id = worker_id
WHERE status = 'processing' AND kind = 'sleep-process' GROUP BY worker.name
"""

DONE_BY = "SELECT progress->>'message', status FROM task WHERE kind = 'sleep-process'"


@pytest.fixture
def two(start_service: Start) -> list[ServiceProcess]:
    return [
        start_service(
            TASKSVC_HANDLERS="tests.handlers.shop", TASKSVC_PROCESSES=PLACES, TASKSVC_THREADS=1
        )
        for _ in range(2)
    ]


def create(service: ServiceProcess, kind: str, content: str, **options: object) -> str:
    body = json.dumps({"content": content, "kind": kind, **options}).encode()
    answer = talk(service.port, post(body))
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


def in_hand(service: ServiceProcess) -> list[int]:
    rows: list[tuple[str, int]] = query(service.env["DATABASE_URL"], PROCESSING)
    return [count for _, count in rows]


async def test_both_work_and_neither_hoards(two: list[ServiceProcess]) -> None:
    one, _ = two
    for _ in range(8):
        create(one, "sleep-process", "1.5")

    most: Counter[int] = Counter()

    def are_both_busy() -> bool:
        most.update(in_hand(one))
        return in_hand(one) == [PLACES, PLACES]

    await eventually(are_both_busy, 20)
    assert query(one.env["DATABASE_URL"], "SELECT count(*) FROM task WHERE status = 'pending'") == [
        (8 - 2 * PLACES,)
    ]
    assert max(most, default=0) <= PLACES
    for service in two:
        assert service.metric('tasksvc_places_in_use{run_in="process"}') == PLACES
        assert service.metric('tasksvc_places{run_in="process"}') == PLACES


async def test_high_priority_starts_next_and_a_pause_stops_all_starts(
    two: list[ServiceProcess],
) -> None:
    one, _ = two
    url = one.env["DATABASE_URL"]
    for _ in range(10):
        create(one, "sleep-process", "1", queue="slow", priority="low")
    await eventually(lambda: in_hand(one) == [PLACES, PLACES], 20)

    high = create(one, "sleep-process", "0", priority="high")
    assert talk(one.port, request("POST", "/queues/slow/pause")).status == 200
    started = query(url, "SELECT count(*) FROM task WHERE queue = 'slow' AND attempt > 0")

    await eventually(lambda: one.task(high)["status"] == "completed", 20)
    await eventually(lambda: in_hand(one) == [], 20)
    assert query(url, "SELECT count(*) FROM task WHERE queue = 'slow' AND attempt > 0") == started
    assert started == [(2 * PLACES,)]


async def test_threads_that_hang_keep_no_coroutine_waiting(two: list[ServiceProcess]) -> None:
    one, _ = two
    for _ in range(6):
        create(one, "stubborn-thread", "20", timeout_seconds=0.1, max_attempts=1)

    ids = [create(one, "greet", "x") for _ in range(10)]

    for id in ids:
        await eventually(lambda id=id: one.task(id)["status"] == "completed", 10)
    waiting = "SELECT count(*) FROM task WHERE kind = 'stubborn-thread' AND status = 'pending'"
    await eventually(lambda: query(one.env["DATABASE_URL"], waiting) == [(4,)], 10)
    for service in two:
        await eventually(
            lambda service=service: service.metric("tasksvc_threads_lingering") == 1, 10
        )


async def test_task_that_starts_where_it_is_created_takes_a_place_on_the_loop(
    start_service: Start,
) -> None:
    service = start_service(
        TASKSVC_HANDLERS="tests.handlers.shop", TASK_CONSUMER_CONCURRENCY=1, TASKSVC_THREADS=20
    )
    service_ids = [create(service, "sleep", "2") for _ in range(4)]

    await eventually(lambda: service.task(service_ids[0])["status"] == "processing")

    statuses = sorted(service.task(id)["status"] for id in service_ids)
    assert statuses == ["pending"] * 3 + ["processing"]
    assert service.metric('tasksvc_places_in_use{run_in="thread"}') == 0
