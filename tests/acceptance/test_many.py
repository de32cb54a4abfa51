"""Many tasks at once, pages of tasks, and a final task once more."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import JSON, Answer, assert_problem, assert_safe_headers, request, talk

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"


def create(service: ServiceProcess, *tasks: object, **more: object) -> Answer:
    body = json.dumps({"tasks": tasks, **more}).encode()
    return talk(service.port, request("POST", "/tasks", JSON, body=body))


def find(service: ServiceProcess, search: str = "") -> Answer:
    return talk(service.port, request("GET", f"/tasks{search}"))


def contents(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [task["content"] for task in answer.json()["tasks"]]


def pages(service: ServiceProcess, search: str) -> list[list[str]]:
    """All pages, by their `Link`s."""
    found = []
    path: str | None = f"/tasks?{search}"
    while path is not None:
        answer = talk(service.port, request("GET", path))
        found.append(contents(answer))
        link = answer.headers.get("link")
        assert (link is None) == ("next_cursor" not in answer.json())
        path = None
        if link is not None:
            path, _, rel = link.partition(">; ")
            assert rel == 'rel="next"'
            path = path.removeprefix("<")
            assert quote(answer.json()["next_cursor"], safe="=") in path
    return found


# Create many.


async def test_many_are_created_in_order(shared_service: ServiceProcess) -> None:
    answer = create(
        shared_service,
        {"content": "a"},
        {"content": "b", "delay_seconds": 3600},
        {"content": "c", "timeout_seconds": 5},
    )

    assert answer.status == 201
    assert_safe_headers(answer)
    tasks = answer.json()["tasks"]
    assert [task["content"] for task in tasks] == ["a", "b", "c"]
    assert "run_at" in tasks[1]
    for task in (tasks[0], tasks[2]):
        await eventually(lambda id=task["id"]: shared_service.task(id)["status"] == "completed")
    assert shared_service.task(tasks[1]["id"])["status"] == "pending"


async def test_thousand_at_once(idle: ServiceProcess) -> None:
    before = idle.metric("task_create_success_count")

    answer = create(idle, *({"content": str(number)} for number in range(1000)))

    assert [task["content"] for task in answer.json()["tasks"]] == [str(n) for n in range(1000)]
    assert query(idle.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(1000,)]
    assert idle.metric("task_create_success_count") == before + 1000


@pytest.mark.parametrize(
    ("tasks", "pointers"),
    [
        ([], ["/tasks"]),
        ([{"content": "x"}] * 1001, ["/tasks"]),
        ([{"content": "x"}, {"content": 5}], ["/tasks/1/content"]),
        ([{"content": "x"}, {}], ["/tasks/1/content"]),
        ([{"content": "x"}, {"content": "x", "typo": 1}], ["/tasks/1/typo"]),
        ([{"content": "x"}, {"content": "nul \0"}], ["/tasks/1/content"]),
        ([{"content": "x"}, {"content": "x", "kind": "unknown-kind"}], ["/tasks/1/kind"]),
        ([{"content": "x"}, "x"], ["/tasks/1"]),
    ],
)
async def test_all_or_none(idle: ServiceProcess, tasks: list[Any], pointers: list[str]) -> None:
    answer = create(idle, *tasks)

    errors = answer.json()["errors"]
    assert_problem(answer, 422, errors=errors)
    assert [error["pointer"] for error in errors] == pointers
    assert query(idle.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(0,)]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"tasks": {}}', b'{"tasks": [{}], "more": 1}'])
async def test_body_of_the_wrong_shape(idle: ServiceProcess, body: bytes) -> None:
    answer = talk(idle.port, request("POST", "/tasks", JSON, body=body))

    assert_problem(answer, 422, errors=answer.json()["errors"])


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b"[]", [""]),
        (b"null", [""]),
        (b"{}", ["/tasks"]),
        (b'{"tasks": null}', ["/tasks"]),
        (b'{"tasks": {}}', ["/tasks"]),
        (b'{"tasks": "[]"}', ["/tasks"]),
        (b'{"tasks": [{"content": "x"}], "a/b": 1}', ["/a~1b"]),
        (b'{"tasks": [null]}', ["/tasks/0"]),
        (b'{"tasks": [[]]}', ["/tasks/0"]),
        (b'{"tasks": [' + b"0," * 1000 + b"0]}", ["/tasks"]),
        (b'{"tasks": [' + b"0," * 999 + b"0]}", [f"/tasks/{number}" for number in range(10)]),
        (
            b'{"tasks": [{"content": "x"}, {"b": 1, "content": 1}]}',
            ["/tasks/1/b", "/tasks/1/content"],
        ),
    ],
)
async def test_what_will_not_do_in_a_batch_is_named(
    idle: ServiceProcess, body: bytes, pointers: list[str]
) -> None:
    answer = talk(idle.port, request("POST", "/tasks", JSON, body=body))

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"tasks": [}',
        b'{"tasks": [{"content": "x"}]',
        b'{"tasks": [{"content": "x"}]}}',
        b'{"tasks": [{"content": "\xff"}]}',
        b'{"tasks": [{"content": "\\ud800"}]}',
        b'{"tasks": [{"content": NaN}]}',
        b'{"more": 1, "tasks": [}',
        b'{"tasks": ' + b"[" * 100_000,
    ],
)
async def test_batch_that_is_not_json(idle: ServiceProcess, body: bytes) -> None:
    assert_problem(talk(idle.port, request("POST", "/tasks", JSON, body=body)), 400)


async def test_thousand_tasks_of_four_kibibytes_are_one_batch(idle: ServiceProcess) -> None:
    answer = create(idle, *({"content": "x" * 4096} for _ in range(1000)))

    assert answer.status == 201
    assert len(answer.json()["tasks"]) == 1000


async def test_task_of_a_batch_is_no_larger_than_another(idle: ServiceProcess) -> None:
    fits = {"content": "x" * (262_144 - len(b'{"content": ""}'))}

    assert create(idle, fits, {"content": "x"}).status == 201
    answer = create(idle, {"content": "x"}, {"content": fits["content"] + "x"})

    (error,) = answer.json()["errors"]
    assert_problem(answer, 422, errors=[error])
    assert error["pointer"] == "/tasks/1"
    assert "262144 bytes" in error["detail"]
    assert "TASKSVC_MAX_BODY_BYTES" in error["detail"]


@pytest.mark.parametrize(
    ("path", "limit", "variable"),
    [
        ("/task", 262_144, "TASKSVC_MAX_BODY_BYTES"),
        ("/tasks", 5_242_880, "TASKSVC_MAX_BATCH_BYTES"),
        ("/tasks/cancel", 262_144, "TASKSVC_MAX_BODY_BYTES"),
    ],
)
async def test_limit_of_a_body_is_named(
    idle: ServiceProcess, path: str, limit: int, variable: str
) -> None:
    answer = talk(idle.port, request("POST", path, JSON, body=b" " * (limit + 1)))

    assert_problem(answer, 413)
    assert str(limit) in answer.json()["detail"]
    assert variable in answer.json()["detail"]


async def test_null_in_a_batch_is_not_given(idle: ServiceProcess) -> None:
    nulls = dict.fromkeys(["kind", "run_at", "queue", "unique_key", "max_attempts"])

    (task,) = create(idle, {"content": "x", **nulls}).json()["tasks"]

    assert list(task) == ["id", "content", "status", "created_at", "updated_at"]


async def test_many_take_no_key(idle: ServiceProcess) -> None:
    body = b'{"tasks": [{"content": "x"}]}'
    headers = (JSON, "Idempotency-Key: k")

    assert_problem(talk(idle.port, request("POST", "/tasks", *headers, body=body)), 400)


# Pages.


async def test_pages_are_newest_first_and_each_task_is_on_one(idle: ServiceProcess) -> None:
    create(idle, *({"content": str(number)} for number in range(10)))

    assert contents(find(idle)) == [str(number) for number in reversed(range(10))]
    assert pages(idle, "limit=4") == [["9", "8", "7", "6"], ["5", "4", "3", "2"], ["1", "0"]]
    assert pages(idle, "limit=5") == [["9", "8", "7", "6", "5"], ["4", "3", "2", "1", "0"]]


async def test_nothing_is_an_empty_page(idle: ServiceProcess) -> None:
    assert find(idle).json() == {"tasks": []}


async def test_what_is_created_meanwhile_moves_no_page(idle: ServiceProcess) -> None:
    create(idle, *({"content": str(number)} for number in range(4)))
    first = find(idle, "?limit=2").json()
    create(idle, {"content": "new"})

    rest = find(idle, f"?limit=2&cursor={first['next_cursor']}")

    assert contents(rest) == ["1", "0"]


async def test_filters(idle: ServiceProcess) -> None:
    url = idle.env["DATABASE_URL"]
    tasks = create(idle, *({"content": str(number)} for number in range(6))).json()["tasks"]
    idle.request("PATCH", f"/task/{tasks[1]['id']}/cancel")
    idle.request("PATCH", f"/task/{tasks[4]['id']}/cancel")
    query(url, "UPDATE task SET kind = 'greet' WHERE content IN ('2', '4')")

    assert contents(find(idle, "?status=canceled")) == ["4", "1"]
    assert contents(find(idle, "?status=completed")) == []
    assert contents(find(idle, "?kind=greet")) == ["4", "2"]
    assert contents(find(idle, "?kind=greet&status=canceled")) == ["4"]
    assert pages(idle, "status=canceled&limit=1") == [["4"], ["1"]]
    moment = datetime.fromisoformat(tasks[-1]["created_at"])
    just_before = quote((moment - timedelta(microseconds=1)).isoformat())
    assert "5" in contents(find(idle, f"?created_after={just_before}"))
    later = quote((moment + timedelta(seconds=1)).isoformat())
    assert contents(find(idle, f"?created_after={later}")) == []
    first = quote(tasks[1]["created_at"])
    assert contents(find(idle, f"?created_before={first}")) == ["0"]
    assert pages(idle, f"created_before={first}&kind=default&limit=1") == [["0"]]


async def test_page_is_full_however_rare_what_is_looked_for(idle: ServiceProcess) -> None:
    create(idle, {"content": "rare"})
    query(idle.env["DATABASE_URL"], "UPDATE task SET kind = 'rare'")
    query(
        idle.env["DATABASE_URL"],
        """INSERT INTO task (id, content, max_attempts)
        SELECT ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'x', 3
        FROM generate_series(1, 15000) AS n""",
    )

    assert pages(idle, "kind=rare") == [["rare"]]


@pytest.mark.parametrize(
    ("search", "pointer"),
    [
        ("status=done", "/status"),
        ("kind=", "/kind"),
        ("created_after=yesterday", "/created_after"),
        ("created_before=tomorrow", "/created_before"),
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=x", "/limit"),
        ("color=red", "/color"),
    ],
)
async def test_filter_that_will_not_do_is_named(
    idle: ServiceProcess, search: str, pointer: str
) -> None:
    answer = find(idle, f"?{search}")

    errors = answer.json()["errors"]
    assert_problem(answer, 422, errors=errors)
    assert [error["pointer"] for error in errors] == [pointer]


async def test_cursor_is_bound_to_its_filters(idle: ServiceProcess) -> None:
    create(idle, *({"content": "x"} for _ in range(3)))
    cursor = find(idle, "?status=pending&limit=1").json()["next_cursor"]

    assert find(idle, f"?status=pending&limit=2&cursor={cursor}").status == 200
    for search in (f"cursor={cursor}", f"status=failed&cursor={cursor}", "cursor=x", "cursor=%FF"):
        assert_problem(find(idle, f"?{search}"), 400)


# Once more.


async def test_final_task_once_more(shared_service: ServiceProcess) -> None:
    old = create(shared_service, {"content": "x", "timeout_seconds": 5, "max_attempts": 7}).json()[
        "tasks"
    ][0]["id"]
    await eventually(lambda: shared_service.task(old)["status"] == "completed")

    answer = talk(shared_service.port, request("POST", f"/task/{old}/retry"))

    assert answer.status == 201
    new = answer.json()
    assert answer.headers["location"] == f"/task/{new['id']}"
    assert (new["content"], new["timeout_seconds"], new["retry_of"]) == ("x", 5, old)
    assert shared_service.task(old)["retried_as"] == new["id"]
    assert shared_service.task(old)["status"] == "completed"
    await eventually(lambda: shared_service.task(new["id"])["status"] == "completed")
    url = shared_service.env["DATABASE_URL"]
    assert query(url, "SELECT max_attempts FROM task WHERE id = %s", new["id"]) == [(7,)]


async def test_only_a_final_task_is_retried(idle: ServiceProcess) -> None:
    id = idle.create()["id"]

    answer = talk(idle.port, request("POST", f"/task/{id}/retry"))

    assert_problem(answer, 400, task_status="pending")


@pytest.mark.parametrize("id", [UNKNOWN_ID, "x"])
async def test_unknown_task_is_not_retried(idle: ServiceProcess, id: str) -> None:
    assert_problem(talk(idle.port, request("POST", f"/task/{id}/retry")), 404)


async def test_page_ends_where_its_tasks_are_large(shared_service: ServiceProcess) -> None:
    made = [f"{number}" + "\x01" * 40_000 for number in range(40)]  # 240 kB each, as JSON
    for content in made:
        shared_service.create(content, queue="large", delay_seconds=3600)

    found = pages(shared_service, "queue=large&limit=100")

    assert [len(page) for page in found] == [34, 6]
    assert [content for page in found for content in page] == made[::-1]
