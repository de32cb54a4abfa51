"""Recurring tasks, against the running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import JSON, Answer, Wire, assert_problem, assert_safe_headers, request, talk

Start = Callable[..., ServiceProcess]

YEARLY = "0 0 1 1 *"

LATE_SECONDS = 0.5
"""A task is made within so long of its moment."""


@pytest.fixture
def service(shared_service: ServiceProcess) -> ServiceProcess:
    query(shared_service.env["DATABASE_URL"], "TRUNCATE schedule, task")
    return shared_service


def put(service: ServiceProcess, name: str = "nightly", /, **body: object) -> Answer:
    document = {"cron": YEARLY, "task": {"content": "x"}} | body
    return put_body(service, name, {name: each for name, each in document.items() if each != ...})


def put_body(service: ServiceProcess, name: str, body: object) -> Answer:
    data = json.dumps(body).encode()
    return talk(service.port, request("PUT", f"/schedules/{name}", JSON, body=data))


def get(service: ServiceProcess, name: str = "nightly") -> Answer:
    return talk(service.port, request("GET", f"/schedules/{name}"))


def delete(service: ServiceProcess, name: str = "nightly") -> Answer:
    return talk(service.port, request("DELETE", f"/schedules/{name}"))


def set_due(service: ServiceProcess, seconds: float) -> datetime:
    """All schedules are due in so long; when."""
    ((moment,),) = query(
        service.env["DATABASE_URL"],
        "UPDATE schedule SET next_run_at = clock_timestamp() + make_interval(secs => %s)"
        " RETURNING next_run_at",
        seconds,
    )
    assert isinstance(moment, datetime)
    return moment


def tasks_of(service: ServiceProcess, name: str = "nightly") -> list[tuple[Any, ...]]:
    """The id, the moment, and the creation of each task that the schedule has made."""
    return query(
        service.env["DATABASE_URL"],
        "SELECT id, scheduled_for, created_at FROM task WHERE schedule = %s ORDER BY id",
        name,
    )


async def test_schedule_is_made_shown_changed_and_deleted(service: ServiceProcess) -> None:
    made = put(service, task={"content": "x", "max_attempts": 5})

    assert made.status == 201
    assert_safe_headers(made)
    assert made.headers["location"] == "/schedules/nightly"
    schedule = made.json()
    assert list(schedule) == [
        "name",
        "cron",
        "timezone",
        "task",
        "missed",
        "created_at",
        "updated_at",
        "next_run_at",
        "last_run_at",
        "last_task_id",
        "is_paused",
    ]
    assert schedule["task"] == {"content": "x", "max_attempts": 5}
    assert (schedule["timezone"], schedule["missed"], schedule["is_paused"]) == (
        "UTC",
        "last",
        False,
    )
    assert schedule["next_run_at"].endswith("-01-01T00:00:00.000000Z")
    assert get(service).json() == schedule

    changed = put(service, timezone="Europe/Berlin", missed="skip")

    assert changed.status == 200
    assert "location" not in changed.headers
    assert changed.json()["next_run_at"].endswith("-12-31T23:00:00.000000Z")
    assert changed.json()["task"] == {"content": "x"}
    assert changed.json()["updated_at"] is not None

    deleted = delete(service)

    assert (deleted.status, deleted.body) == (204, b"")
    assert_safe_headers(deleted)
    assert not {"content-length", "content-type"} & deleted.headers.keys()
    assert_problem(get(service), 404)
    assert_problem(delete(service), 404)


async def test_connection_goes_on_after_an_answer_without_a_body(service: ServiceProcess) -> None:
    put(service)
    both = request("DELETE", "/schedules/nightly") + request("GET", "/schedules/nightly")

    with Wire(service.port) as wire:
        wire.send(both)
        first, second = wire.answer(), wire.answer()

    assert first is not None
    assert first.status == 204
    assert_problem(second, 404)


async def test_schedules_are_listed_by_name(service: ServiceProcess) -> None:
    for name in ("b", "a.1", "A-_"):
        put(service, name)

    answer = talk(service.port, request("GET", "/schedules"))

    assert answer.status == 200
    assert [each["name"] for each in answer.json()["schedules"]] == ["A-_", "a.1", "b"]
    assert answer.json()["schedules"][2] == get(service, "b").json()


async def test_task_is_made_at_its_moment_and_processed(service: ServiceProcess) -> None:
    put(service)
    due = set_due(service, 0.7)
    put(service)  # wakes the service, which knows of nothing before next year

    ((id, moment, created_at),) = await eventually(lambda: tasks_of(service))

    assert moment == due
    assert 0 <= (created_at - due).total_seconds() < LATE_SECONDS
    await eventually(lambda: service.task(id)["status"] == "completed")
    task = service.task(id)
    assert list(task)[5:] == ["schedule", "scheduled_for"]
    assert task["schedule"] == "nightly"
    assert datetime.fromisoformat(task["scheduled_for"]) == due
    schedule = get(service).json()
    assert (schedule["last_task_id"], schedule["last_run_at"]) == (id, task["scheduled_for"])
    assert schedule["next_run_at"] > schedule["last_run_at"]


async def test_task_of_a_schedule_that_is_tried_once_more_still_names_it(
    service: ServiceProcess,
) -> None:
    put(service)
    set_due(service, 0)
    put(service)
    ((id, *_),) = await eventually(lambda: tasks_of(service))
    await eventually(lambda: service.task(id)["status"] == "completed")

    answer = talk(service.port, request("POST", f"/task/{id}/retry"))

    assert answer.status == 201
    assert answer.json()["schedule"] == "nightly"
    assert answer.json()["scheduled_for"] == service.task(id)["scheduled_for"]


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_every_minute_is_on_the_minute(service: ServiceProcess) -> None:
    put(service, cron="* * * * *")

    ((_, moment, created_at),) = await eventually(lambda: tasks_of(service), within_seconds=70)

    assert (moment.second, moment.microsecond) == (0, 0)
    assert 0 <= (created_at - moment).total_seconds() < LATE_SECONDS


async def test_paused_schedule(service: ServiceProcess) -> None:
    paused = put(service, is_paused=True).json()

    assert (paused["is_paused"], paused["next_run_at"]) == (True, None)
    assert put(service).json()["is_paused"] is False


async def test_options_of_a_task(shared_services: Start) -> None:
    shop = shared_services(TASKSVC_HANDLERS="tests.handlers.shop", TASK_RETRY_BASE_SECONDS=0)
    task = {"content": "you", "kind": "greet", "timeout_seconds": 30, "priority": "high"}
    assert put(shop, "greeting", task=task).status == 201
    set_due(shop, 0)
    put(shop, "greeting", task=task)

    ((id, *_),) = await eventually(lambda: tasks_of(shop, "greeting"))

    await eventually(lambda: shop.task(id)["status"] == "completed")
    assert shop.task(id)["result"]["hello"] == "you"
    shown = shop.task(id)
    assert {name: shown[name] for name in task} == task


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"cron": ...}, "/cron"),
        ({"cron": None}, "/cron"),
        ({"cron": 5}, "/cron"),
        ({"cron": ""}, "/cron"),
        ({"cron": "* * * *"}, "/cron"),
        ({"cron": "0 * * * * *"}, "/cron"),
        ({"cron": "61 * * * *"}, "/cron"),
        ({"cron": "0 0 30 2 *"}, "/cron"),
        ({"cron": "@daily"}, "/cron"),
        ({"cron": "*,"}, "/cron"),
        ({"cron": "1," * 200 + "1 * * * *"}, "/cron"),
        ({"timezone": "Mars/Olympus"}, "/timezone"),
        ({"timezone": "../../etc/passwd"}, "/timezone"),
        ({"timezone": ""}, "/timezone"),
        ({"timezone": "nul \0"}, "/timezone"),
        ({"timezone": 1}, "/timezone"),
        ({"missed": "all"}, "/missed"),
        ({"is_paused": "yes"}, "/is_paused"),
        ({"is_paused": 1}, "/is_paused"),
        ({"is_paused": 0}, "/is_paused"),
        ({"is_paused": []}, "/is_paused"),
        ({"name": "other"}, "/name"),
        ({"task": ...}, "/task"),
        ({"task": None}, "/task"),
        ({"task": "x"}, "/task"),
        ({"task": []}, "/task"),
        ({"task": {}}, "/task/content"),
        ({"task": {"content": 1}}, "/task/content"),
        ({"task": {"content": "nul \0"}}, "/task/content"),
        ({"task": {"content": "x" * 16_383}}, "/task/content"),
        ({"task": {"content": "\1" * 2731}}, "/task/content"),
        ({"task": {"content": "x", "kind": "unknown-kind"}}, "/task/kind"),
        ({"task": {"content": "x", "max_attempts": 0}}, "/task/max_attempts"),
        ({"task": {"content": "x", "priority": "urgent"}}, "/task/priority"),
        ({"task": {"content": "x", "timeout_seconds": -1}}, "/task/timeout_seconds"),
        ({"task": {"content": "x", "unique_key": ""}}, "/task/unique_key"),
        ({"task": {"content": "x", "retry_max_seconds": -1}}, "/task/retry_max_seconds"),
        ({"task": {"content": "x", "delay_seconds": 1}}, "/task/delay_seconds"),
        ({"task": {"content": "x", "run_at": "2030-01-01T00:00:00Z"}}, "/task/run_at"),
        ({"task": {"content": "x", "expires_at": "2030-01-01T00:00:00Z"}}, "/task/expires_at"),
        ({"task": {"content": "x", "typo": 1}}, "/task/typo"),
    ],
    ids=str,
)
async def test_what_will_not_do_is_named_and_nothing_is_done(
    service: ServiceProcess, change: dict[str, object], pointer: str
) -> None:
    answer = put(service, **change)

    errors = answer.json()["errors"]
    assert_problem(answer, 422, errors=errors)
    assert [error["pointer"] for error in errors] == [pointer]
    assert_problem(get(service), 404)


async def test_null_is_not_given(service: ServiceProcess) -> None:
    nulls = dict.fromkeys(["timezone", "missed", "is_paused"])

    schedule = put(service, task={"content": "x", "kind": None, "run_at": None}, **nulls).json()

    assert schedule["task"] == {"content": "x"}
    assert (schedule["timezone"], schedule["missed"], schedule["is_paused"]) == (
        "UTC",
        "last",
        False,
    )


async def test_content_as_long_as_it_may_be(service: ServiceProcess) -> None:
    for content in ("x" * 16_382, "ä" * 8191, "\1" * 2730):
        assert put(service, task={"content": content}).json()["task"] == {"content": content}


@pytest.mark.parametrize("body", [[], "x", 1, None])
async def test_body_that_is_no_object(service: ServiceProcess, body: object) -> None:
    errors = [{"pointer": "", "detail": "Must be an object."}]

    assert_problem(put_body(service, "nightly", body), 422, errors=errors)


async def test_body_that_is_not_json(service: ServiceProcess) -> None:
    path = "/schedules/nightly"

    assert_problem(talk(service.port, request("PUT", path, JSON, body=b"{")), 400)
    assert_problem(talk(service.port, request("PUT", path, body=b"{}")), 415)


@pytest.mark.parametrize("name", ["a" * 101, "a%20b", "%C3%A9", "a%00", "a%2Fb", "a:b", "..", "."])
async def test_what_is_no_name(service: ServiceProcess, name: str) -> None:
    answer = put(service, name)

    assert answer.status in (404, 422)
    if answer.status == 422:
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/name"]
    assert_problem(get(service, name), 404)
    assert_problem(delete(service, name), 404)
    assert query(service.env["DATABASE_URL"], "SELECT count(*) FROM schedule") == [(0,)]


async def test_methods_of_a_schedule(service: ServiceProcess) -> None:
    answer = talk(service.port, request("POST", "/schedules/nightly", JSON, body=b"{}"))

    assert_problem(answer, 405)
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


async def test_there_are_a_thousand_at_most(service: ServiceProcess) -> None:
    query(
        service.env["DATABASE_URL"],
        """INSERT INTO schedule (name, cron, timezone, task, missed)
        SELECT n, '0 0 1 1 *', 'UTC', '{"content": "x"}', 'last'
        FROM generate_series(1, 1000) AS n""",
    )

    assert_problem(put(service, "one.more"), 409)
    assert put(service, "7").status == 200
    pages = []
    path = "/schedules"
    while path:
        answer = talk(service.port, request("GET", path))
        pages.append([each["name"] for each in answer.json()["schedules"]])
        path, _, rel = answer.headers.get("link", "").removeprefix("<").partition(">; ")
        assert rel == ('rel="next"' if path else "")
    assert [len(page) for page in pages] == [100] * 10
    assert [name for page in pages for name in page] == sorted(str(n) for n in range(1, 1001))


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("limit=2", ["a", "b"]),
        ("after=a", ["b", "c"]),
        ("after=a&limit=1", ["b"]),
        ("after=b.5", ["c"]),
        ("after=c", []),
    ],
)
async def test_page_of_schedules(service: ServiceProcess, search: str, names: list[str]) -> None:
    for name in ("a", "b", "c"):
        put(service, name)

    answer = talk(service.port, request("GET", f"/schedules?{search}"))

    assert [each["name"] for each in answer.json()["schedules"]] == names
    assert ("link" in answer.headers) is ("limit" in search)


@pytest.mark.parametrize(
    ("search", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=-1", "/limit"),
        ("limit=1_0", "/limit"),
        ("limit=", "/limit"),
        ("limit=1&limit=2", "/limit"),
        ("after=", "/after"),
        ("after=a%00", "/after"),
        ("after=a%0A", "/after"),
        ("after=%FF", "/after"),
        ("cursor=x", "/cursor"),
    ],
)
async def test_page_that_will_not_do(service: ServiceProcess, search: str, pointer: str) -> None:
    answer = talk(service.port, request("GET", f"/schedules?{search}"))

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_each_moment_has_one_task_though_processes_die(start_service: Start) -> None:
    """Three of them are due together, again and again, and one of them is killed."""
    services = [start_service() for _ in range(3)]
    names = [f"s{number}" for number in range(10)]
    url = services[0].env["DATABASE_URL"]
    for name in names:
        assert put(services[0], name).status == 201
    moments = set()
    for round_ in range(4):
        ((moment, *_), *_) = query(
            url,
            "WITH t AS (SELECT clock_timestamp() + interval '0.3 s' AS at)"
            " UPDATE schedule SET next_run_at = t.at FROM t RETURNING t.at",
        )
        moments.add(moment)
        for each in services:
            put(each, names[0])
        if round_ == 1:
            services.pop().kill()
        await eventually(
            lambda moment=moment: (
                query(url, "SELECT count(*) FROM task WHERE scheduled_for = %s", moment)
                == [(len(names),)]
            )
        )

    found = query(url, "SELECT schedule, scheduled_for FROM task")
    assert sorted(found) == sorted((name, moment) for name in names for moment in moments)
    await eventually(
        lambda: query(url, "SELECT DISTINCT status::text FROM task") == [("completed",)]
    )
