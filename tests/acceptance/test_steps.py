"""Canceled, and tried once more, by filter: step by step."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import JSON, Answer, assert_problem, assert_safe_headers, request, talk

VERBS = ["cancel", "retry"]


def step(service: ServiceProcess, verb: str, **body: object) -> Answer:
    return talk(
        service.port, request("POST", f"/tasks/{verb}", JSON, body=json.dumps(body).encode())
    )


def done(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert_safe_headers(answer)
    found: dict[str, Any] = answer.json()
    return found


def create(service: ServiceProcess, count: int, **options: object) -> list[str]:
    body = json.dumps({"tasks": [{"content": f"{n}", **options} for n in range(count)]}).encode()
    answer = talk(service.port, request("POST", "/tasks", JSON, body=body))
    assert answer.status == 201, answer.body
    return [task["id"] for task in answer.json()["tasks"]]


def start(service: ServiceProcess, ids: list[str]) -> None:
    """As if a worker ran them."""
    query(
        service.env["DATABASE_URL"],
        "UPDATE task SET status = 'processing', attempt = 1, worker_id = id, updated_at = now()"
        " WHERE id = ANY(%s::uuid[])",
        ids,
    )


def end(service: ServiceProcess, status: str, ids: list[str]) -> None:
    start(service, ids)
    query(
        service.env["DATABASE_URL"],
        "UPDATE task SET status = %s::task_status, worker_id = NULL, finished_at = now(),"
        " error = CASE %s WHEN 'failed' THEN '{}'::jsonb END,"
        " canceled_at = CASE %s WHEN 'canceled' THEN now() END WHERE id = ANY(%s::uuid[])",
        status,
        status,
        status,
        ids,
    )


def steps(service: ServiceProcess, verb: str, **body: object) -> list[dict[str, Any]]:
    """All of them, by their cursors."""
    found = [done(step(service, verb, **body))]
    while found[-1]["next"]:
        cursor = found[-1]["next_cursor"]
        found.append(done(step(service, verb, **body, cursor=cursor)))
    assert "next_cursor" not in found[-1]
    return found


# Cancel.


async def test_what_passes_the_filter_is_canceled(idle: ServiceProcess) -> None:
    final, *ids = create(idle, 4)
    end(idle, "completed", [final])
    requests, successes = (
        idle.metric(f"task_cancel_{name}_count") for name in ("request", "success")
    )

    found = done(step(idle, "cancel", filter={"status": "pending"}))

    assert found == {"matched": 3, "canceled": 3, "ids": ids[::-1], "next": False}
    assert idle.statuses(ids) == {"canceled"}
    assert idle.task(final)["status"] == "completed"
    assert idle.metric("task_cancel_request_count") == requests + 1
    assert idle.metric("task_cancel_success_count") == successes + 3


async def test_null_is_not_given(idle: ServiceProcess) -> None:
    ids = create(idle, 2)
    nulls = dict.fromkeys(["kind", "queue", "created_after", "created_before"])

    dry = {"filter": {"status": None, "kind": "default"}, "dry_run": True}
    assert done(step(idle, "cancel", **dry))["ids"] == ids[::-1]
    body = {"filter": {"status": "pending", **nulls}, "dry_run": None, "limit": None}
    assert done(step(idle, "cancel", **body, cursor=None))["canceled"] == 2


async def test_without_a_status_all_live_ones_are_canceled(idle: ServiceProcess) -> None:
    failed, running, waiting = ids = create(idle, 3)
    end(idle, "failed", [failed])
    start(idle, [running])

    assert done(step(idle, "cancel", filter={"kind": "default"}))["ids"] == [waiting, running]
    assert idle.task(failed)["status"] == "failed"
    assert idle.statuses(ids[1:]) == {"canceled"}


async def test_filters_go_together(idle: ServiceProcess) -> None:
    ids = create(idle, 5)
    query(idle.env["DATABASE_URL"], "UPDATE task SET kind = 'greet' WHERE content IN ('1', '3')")
    moments = [datetime.fromisoformat(idle.task(id)["created_at"]) for id in ids]
    after = (moments[0] - timedelta(microseconds=1)).isoformat()

    filter = {"kind": "greet", "created_after": after, "created_before": moments[3].isoformat()}
    assert done(step(idle, "cancel", filter=filter))["ids"] == [ids[1]]
    later = (moments[4] + timedelta(seconds=1)).isoformat()
    assert done(step(idle, "cancel", filter={"created_after": later}))["matched"] == 0


async def test_running_handlers_are_stopped_here_and_elsewhere(
    start_service: Callable[..., ServiceProcess],
) -> None:
    here = start_service(TASK_SIMULATED_SECONDS=60)
    elsewhere = start_service(TASK_CONSUMER_WORKERS=0)
    for door in (here, elsewhere):
        ids = create(door, 3)
        await eventually(lambda ids=ids: here.statuses(ids) == {"processing"})

        assert done(step(door, "cancel", filter={"status": "processing"}))["canceled"] == 3
        await eventually(lambda: here.metric("tasksvc_running") == 0)
        assert here.statuses(ids) == {"canceled"}


# Retry.


async def test_failed_tasks_are_tried_once_more(idle: ServiceProcess) -> None:
    completed, *ids = create(idle, 3, timeout_seconds=5, max_attempts=7, delay_seconds=0)
    end(idle, "failed", ids)
    end(idle, "completed", [completed])
    successes = idle.metric("task_create_success_count")

    found = done(step(idle, "retry", filter={"kind": "default"}))

    assert found == {"matched": 2, "retried": 2, "ids": ids[::-1], "next": False}
    new = [idle.task(id)["retried_as"] for id in ids]
    assert new == sorted(new), "in the order of their creation"
    for old_id, new_id in zip(ids, new, strict=True):
        task = idle.task(new_id)
        assert (task["status"], task["retry_of"]) == ("pending", old_id)
        assert (task["content"], task["timeout_seconds"]) == (idle.task(old_id)["content"], 5)
        assert idle.task(old_id)["status"] == "failed"
    assert "retried_as" not in idle.task(completed)
    assert idle.metric("task_create_success_count") == successes + 2
    again = done(step(idle, "retry", filter={"kind": "default"}))
    assert again == {"matched": 0, "retried": 0, "ids": [], "next": False}


@pytest.mark.parametrize("status", ["completed", "canceled", "failed"])
async def test_final_tasks_of_a_status_run_again(
    shared_service: ServiceProcess, status: str
) -> None:
    query(shared_service.env["DATABASE_URL"], "TRUNCATE task")
    ids = create(shared_service, 2, delay_seconds=3600)
    end(shared_service, status, ids)

    assert done(step(shared_service, "retry", filter={"status": status}))["retried"] == 2

    new = {shared_service.task(id)["retried_as"] for id in ids}
    await eventually(lambda: shared_service.statuses(new) == {"completed"})


async def test_of_several_with_one_unique_key_one_is_retried(idle: ServiceProcess) -> None:
    ids = []
    for _ in range(2):
        ids += create(idle, 1, unique_key="u")
        end(idle, "failed", ids[-1:])

    found = done(step(idle, "retry", filter={"status": "failed"}))

    assert (found["matched"], found["retried"]) == (2, 1)
    (retried,) = found["ids"]
    assert idle.task(idle.task(retried)["retried_as"])["unique_key"] == "u"


# Both.


@pytest.mark.parametrize(("verb", "name"), [("cancel", "canceled"), ("retry", "retried")])
async def test_dry_run_tells_and_changes_nothing(
    idle: ServiceProcess, verb: str, name: str
) -> None:
    ids = create(idle, 3)
    if verb == "retry":
        end(idle, "failed", ids)
    before = [idle.task(id) for id in ids]

    found = done(step(idle, verb, filter={"kind": "default"}, dry_run=True, limit=2))

    cursor = found.pop("next_cursor")
    assert found == {"matched": 2, name: 2, "ids": ids[:0:-1], "next": True}
    assert [idle.task(id) for id in ids] == before
    assert query(idle.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(3,)]
    rest = done(step(idle, verb, filter={"kind": "default"}, limit=2, cursor=cursor))
    assert rest == {"matched": 1, name: 1, "ids": ids[:1], "next": False}


@pytest.mark.parametrize("verb", VERBS)
async def test_step_after_step_does_all(idle: ServiceProcess, verb: str) -> None:
    ids = create(idle, 5)
    if verb == "retry":
        end(idle, "failed", ids)

    found = steps(idle, verb, filter={"kind": "default"}, limit=2)

    assert [each["matched"] for each in found] == [2, 2, 1]
    assert [id for each in found for id in each["ids"]] == ids[::-1]


@pytest.mark.parametrize("verb", VERBS)
async def test_step_is_a_thousand_tasks_at_most(idle: ServiceProcess, verb: str) -> None:
    ids = create(idle, 1000) + create(idle, 1)
    if verb == "retry":
        end(idle, "failed", ids)

    assert [each["matched"] for each in steps(idle, verb, filter={"kind": "default"})] == [1000, 1]


@pytest.mark.parametrize("verb", VERBS)
async def test_step_finds_what_is_rare(idle: ServiceProcess, verb: str) -> None:
    (rare,) = create(idle, 1)
    url = idle.env["DATABASE_URL"]
    query(url, "UPDATE task SET kind = 'rare'")
    if verb == "retry":
        end(idle, "failed", [rare])
    query(
        url,
        """INSERT INTO task (id, content, max_attempts)
        SELECT ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'x', 3
        FROM generate_series(1, 15000) AS n""",
    )

    found = steps(idle, verb, filter={"kind": "rare"})

    assert [each["ids"] for each in found] == [[rare]]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/filter"),
        ({"filter": {}}, "/filter"),
        ({"filter": None}, "/filter"),
        ({"filter": "all"}, "/filter"),
        ({"filter": {"status": "done"}}, "/filter/status"),
        ({"filter": {"status": None}}, "/filter"),
        ({"filter": {"status": 1}}, "/filter/status"),
        ({"filter": {"kind": ""}}, "/filter/kind"),
        ({"filter": {"kind": "nul \0"}}, "/filter/kind"),
        ({"filter": {"created_after": "yesterday"}}, "/filter/created_after"),
        ({"filter": {"created_before": "2030-W01"}}, "/filter/created_before"),
        ({"filter": {"color": "red"}}, "/filter/color"),
        ({"filter": {"kind": "x"}, "limit": 0}, "/limit"),
        ({"filter": {"kind": "x"}, "limit": 1001}, "/limit"),
        ({"filter": {"kind": "x"}, "limit": "1"}, "/limit"),
        ({"filter": {"kind": "x"}, "dry_run": "false"}, "/dry_run"),
        ({"filter": {"kind": "x"}, "dry_run": 0}, "/dry_run"),
        ({"filter": {"kind": "x"}, "cursor": 5}, "/cursor"),
        ({"filter": {"kind": "x"}, "more": 1}, "/more"),
    ],
)
async def test_body_that_will_not_do_is_named_and_does_nothing(
    idle: ServiceProcess, verb: str, body: dict[str, Any], pointer: str
) -> None:
    waiting, failed = create(idle, 2)
    end(idle, "failed", [failed])

    answer = step(idle, verb, **body)

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert idle.task(waiting)["status"] == "pending"
    assert "retried_as" not in idle.task(failed)


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        *(("cancel", status) for status in ("completed", "failed", "canceled")),
        *(("retry", status) for status in ("pending", "processing")),
    ],
)
async def test_status_that_the_verb_can_not_leave(
    idle: ServiceProcess, verb: str, status: str
) -> None:
    answer = step(idle, verb, filter={"status": status})

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/filter/status"]


@pytest.mark.parametrize("verb", VERBS)
async def test_cursor_is_bound_to_its_filters(idle: ServiceProcess, verb: str) -> None:
    ids = create(idle, 3)
    if verb == "retry":
        end(idle, "failed", ids)
    filter = {"kind": "default"}
    cursor = done(step(idle, verb, filter=filter, limit=1))["next_cursor"]

    assert_problem(step(idle, verb, filter={"kind": "other"}, cursor=cursor), 400)
    for wrong in ("x", "", "ü", cursor[:-4]):
        assert_problem(step(idle, verb, filter=filter, cursor=wrong), 400)


@pytest.mark.parametrize("verb", VERBS)
async def test_body_that_is_no_object(idle: ServiceProcess, verb: str) -> None:
    for body, status in ((b"{", 400), (b"[]", 422)):
        answer = talk(idle.port, request("POST", f"/tasks/{verb}", JSON, body=body))
        assert answer.status == status
    assert talk(idle.port, request("POST", f"/tasks/{verb}", body=b"{}")).status == 415
    assert talk(idle.port, request("GET", f"/tasks/{verb}")).headers["allow"] == "POST"


@pytest.mark.slow
async def test_retry_of_large_tasks_is_done_in_several_statements(idle: ServiceProcess) -> None:
    """It ends early rather than never, writes nothing for nothing, and holds up no create."""
    url = idle.env["DATABASE_URL"]
    query(
        url,
        "INSERT INTO task (id, content, max_attempts, status, finished_at, canceled_at)"
        " SELECT gen_random_uuid(), text, 3, 'canceled', now(), now() FROM generate_series(1, 400),"
        " (SELECT string_agg(md5(n::text), '') AS text FROM generate_series(1, 8000) AS n) AS x",
    )
    retried: set[str] = set()
    cursor: dict[str, str] = {}
    waits = []
    while True:
        body = {"filter": {"status": "canceled"}, **cursor}
        stepping = asyncio.create_task(asyncio.to_thread(step, idle, "retry", **body))
        while not stepping.done():
            started = time.perf_counter()
            await asyncio.to_thread(idle.create, delay_seconds=3600)
            waits.append(time.perf_counter() - started)
        answer = done(await stepping)
        assert answer["matched"] == answer["retried"] == len(answer["ids"])
        retried |= set(answer["ids"])
        if not answer["next"]:
            break
        cursor = {"cursor": answer["next_cursor"]}

    assert len(retried) == 400
    assert query(url, "SELECT count(*) FROM task WHERE retry_of IS NOT NULL") == [(400,)]
    assert max(waits) < 3
