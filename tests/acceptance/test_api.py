"""The contract's rows, against the running service over a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg2
import pytest
from aiohttp.test_utils import TestClient, TestServer

from tasksvc.app import create_app
from tasksvc.domain.task import Claim
from tasksvc.embedded import EmbeddedPostgres
from tasksvc.settings import Settings
from tasksvc.web.server import Runner
from tests.harness import ServiceProcess, eventually, query
from tests.wire import Wire, assert_problem, assert_safe_headers, post, request, talk

Start = Callable[..., ServiceProcess]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
KEYS = ["id", "content", "status", "created_at", "updated_at"]
TASK = b'{"content": "x"}'
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def rows(service: ServiceProcess, columns: str, id: str) -> list[tuple[Any, ...]]:
    return query(service.env["DATABASE_URL"], f"SELECT {columns} FROM task WHERE id = %s", id)  # noqa: S608


# Create.


async def test_create_answers_with_the_task(shared_service: ServiceProcess) -> None:
    before = datetime.now(UTC)

    answer = talk(shared_service.port, post(b'{"content": "hello"}'))

    task = answer.json()
    assert answer.status == 201
    assert answer.headers["location"] == f"/task/{task['id']}"
    assert answer.headers["content-type"] == "application/json"
    assert_safe_headers(answer)
    assert list(task) == KEYS
    assert str(UUID(task["id"])) == task["id"]
    assert task["content"] == "hello"
    assert task["status"] == "pending"
    assert TIME.fullmatch(task["created_at"])
    created_at = datetime.fromisoformat(task["created_at"])
    assert abs(created_at - before) < timedelta(seconds=10)
    assert task["updated_at"] is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "é ü 漢字 🙂 \u202e",
        "line\nline\r\n\t\u0001\u007f",
        "'; DROP TABLE task; --",
        "%s %(content)s {} \\ \\u0000",
        '{"content": "within"}',
        "<script>alert(1)</script>",
        "{1,2,NULL}",
        "\ufffd\ufffe\U0010ffff",
        "x" * 100_000,
    ],
    ids=range(11),
)
async def test_content_comes_back_as_it_was(shared_service: ServiceProcess, content: str) -> None:
    task = shared_service.create(content)

    assert task["content"] == content
    assert shared_service.task(task["id"])["content"] == content


async def test_location_is_where_the_task_is(shared_service: ServiceProcess) -> None:
    answer = talk(shared_service.port, post(TASK))

    found = talk(shared_service.port, request("GET", answer.headers["location"]))

    assert found.status == 200
    assert found.json()["id"] == answer.json()["id"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/json; charset=utf8",
        "application/json; profile=x",
    ],
)
async def test_create_takes_json_however_it_is_named(
    shared_service: ServiceProcess, content_type: str
) -> None:
    sent = request("POST", "/task", f"Content-Type: {content_type}", body=TASK)

    assert talk(shared_service.port, sent).status == 201


async def test_create_keeps_the_traceparent(shared_service: ServiceProcess) -> None:
    value = f"00-{uuid4().hex}-00f067aa0ba902b7-01"

    answer = talk(shared_service.port, post(TASK, f"traceparent: {value}"))

    assert rows(shared_service, "traceparent", answer.json()["id"]) == [(value,)]


@pytest.mark.parametrize("value", ["", "x", "00-1-2-3", f"00-{'A' * 32}-{'b' * 16}-01", "0" * 55])
async def test_create_without_a_right_traceparent_keeps_none(
    shared_service: ServiceProcess, value: str
) -> None:
    answer = talk(shared_service.port, post(TASK, f"traceparent: {value}"))

    assert answer.status == 201
    assert rows(shared_service, "traceparent", answer.json()["id"]) == [(None,)]


async def test_task_is_committed_before_the_answer(shared_service: ServiceProcess) -> None:
    answer = talk(shared_service.port, post(TASK))

    assert len(rows(shared_service, "id", answer.json()["id"])) == 1


# Get.


async def test_task_is_processed(shared_service: ServiceProcess) -> None:
    created = shared_service.create("work")

    await eventually(lambda: shared_service.task(created["id"])["status"] == "completed")

    task = shared_service.task(created["id"])
    assert list(task) == KEYS
    assert {**task, "status": "pending", "updated_at": None} == created
    assert TIME.fullmatch(task["updated_at"])
    assert task["updated_at"] >= task["created_at"]


async def test_time_without_a_fraction_has_six_digits(shared_service: ServiceProcess) -> None:
    id = shared_service.create()["id"]
    await eventually(lambda: shared_service.task(id)["status"] == "completed")
    query(
        shared_service.env["DATABASE_URL"],
        "UPDATE task SET created_at = '2024-10-28 12:04:08+04', updated_at = '2099-12-31 00:00+00'"
        " WHERE id = %s",
        id,
    )

    task = shared_service.task(id)

    assert task["created_at"] == "2024-10-28T08:04:08.000000Z"
    assert task["updated_at"] == "2099-12-31T00:00:00.000000Z"


class Served(TestServer):
    """Our own server around the application."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, keepalive_seconds=10)


async def test_failed_task_tells_its_error_after_the_five_keys(
    settings: Settings, aiohttp_client: Callable[..., Awaitable[TestClient]]
) -> None:
    async def fail(claim: Claim) -> None:
        raise ValueError("no such thing")

    client = await aiohttp_client(Served(create_app(settings, fail)))
    async with client.post("/task", json={"content": "x"}) as response:
        id = (await response.json())["id"]

    async def failed() -> Any:
        async with client.get(f"/task/{id}") as response:
            task = await response.json()
        return task if task["status"] == "failed" else None

    task = await eventually(failed)

    assert list(task) == [*KEYS, "error"]
    assert "no such thing" in json.dumps(task["error"])
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    assert "task_processing_fail_count 3" in lines
    assert "task_processing_success_count 0" in lines
    assert 'task_status{status="failed"} 1' in lines
    async with client.patch(f"/task/{id}/cancel") as response:
        assert response.status == 400
        assert (await response.json())["task_status"] == "failed"


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize(
    "id",
    [
        UNKNOWN_ID,
        "1",
        "x",
        "%00",
        "%0a",
        "%zz",
        "%ff",
        "%F0%9F%99%82",
        "null",
        "..",
        "'%20OR%20'1'='1",
        UNKNOWN_ID.replace("-", ""),
        f"{{{UNKNOWN_ID}}}",
        f"urn:uuid:{UNKNOWN_ID}",
        f"{UNKNOWN_ID}0",
        f"{UNKNOWN_ID}%0A",
        f"{UNKNOWN_ID}%20",
        "g" * 36,
        "a" * 4000,
        "%EF%BC%90" * 8 + UNKNOWN_ID[8:],  # digits, but not of ASCII
    ],
)
async def test_unknown_id_is_not_found(
    shared_service: ServiceProcess, method: str, id: str
) -> None:
    path = f"/task/{id}" if method == "GET" else f"/task/{id}/cancel"

    assert_problem(talk(shared_service.port, request(method, path)), 404)


async def test_id_in_upper_case_is_the_same_task(shared_services: Start) -> None:
    service = shared_services(TASK_CONSUMER_WORKERS=0)
    id = service.create()["id"]

    found = talk(service.port, request("GET", f"/task/{id.upper()}"))
    canceled = talk(service.port, request("PATCH", f"/task/{id.upper()}/cancel"))

    assert found.json()["id"] == id
    assert canceled.json()["id"] == id
    assert canceled.json()["status"] == "canceled"


# Cancel.


async def test_cancel_pending_task(shared_services: Start) -> None:
    service = shared_services(TASK_CONSUMER_WORKERS=0)
    created = service.create()

    answer = talk(service.port, request("PATCH", f"/task/{created['id']}/cancel"))

    task = answer.json()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert_safe_headers(answer)
    assert list(task) == KEYS
    assert {**task, "status": "pending", "updated_at": None} == created
    assert task["status"] == "canceled"
    assert TIME.fullmatch(task["updated_at"])
    assert service.task(created["id"]) == task


async def test_cancel_running_task_stops_its_handler(start_service: Start) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60)
    id = service.create()["id"]
    await eventually(lambda: service.task(id)["status"] == "processing")

    status, _, body = service.request("PATCH", f"/task/{id}/cancel")

    assert status == 200
    assert json.loads(body)["status"] == "canceled"
    await eventually(lambda: service.metric("tasksvc_running") == 0)
    again = talk(service.port, request("PATCH", f"/task/{id}/cancel"))
    problem = assert_problem(again, 400, task_status="canceled")
    assert "canceled" in problem["detail"]


async def test_cancel_completed_task_is_refused(shared_service: ServiceProcess) -> None:
    id = shared_service.create()["id"]
    await eventually(lambda: shared_service.task(id)["status"] == "completed")
    task = shared_service.task(id)

    answer = talk(shared_service.port, request("PATCH", f"/task/{id}/cancel"))

    problem = assert_problem(answer, 400, task_status="completed")
    assert "completed" in problem["detail"]
    assert shared_service.task(id) == task


async def test_cancel_needs_no_body_and_ignores_one(shared_services: Start) -> None:
    service = shared_services(TASK_CONSUMER_WORKERS=0)
    id = service.create()["id"]

    answer = talk(service.port, request("PATCH", f"/task/{id}/cancel", body=b"\xffnonsense"))

    assert answer.status == 200


# What all have in common.


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/task", "POST"),
        ("HEAD", "/task", "POST"),
        ("OPTIONS", "/task", "POST"),
        ("DELETE", "/task", "POST"),
        ("PROPFIND", "/task", "POST"),
        ("POST", f"/task/{UNKNOWN_ID}", "GET, HEAD"),
        ("DELETE", f"/task/{UNKNOWN_ID}", "GET, HEAD"),
        ("GET", f"/task/{UNKNOWN_ID}/cancel", "PATCH"),
        ("POST", f"/task/{UNKNOWN_ID}/cancel", "PATCH"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/health/live", "GET, HEAD"),
        ("PATCH", "/health/ready", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_told_the_right_ones(
    shared_service: ServiceProcess, method: str, path: str, allow: str
) -> None:
    answer = talk(shared_service.port, request(method, path))

    assert answer.status == 405
    assert answer.headers["allow"] == allow
    if method == "HEAD":
        assert_safe_headers(answer)
    else:
        assert_problem(answer, 405)


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/task/", f"/task/{UNKNOWN_ID}/", "/taskss", "/TASK", "//task", "/task//cancel"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "LOCK"])
async def test_unknown_path_is_not_found(
    shared_service: ServiceProcess, method: str, path: str
) -> None:
    assert_problem(talk(shared_service.port, request(method, path)), 404)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_head_answers_as_get_without_the_body(
    shared_service: ServiceProcess, path: str
) -> None:
    with Wire(shared_service.port) as wire:
        wire.send(request("HEAD", path) + request("GET", "/health"))
        head = wire.answer(has_body=False)
        after = wire.answer()

    assert head is not None
    assert head.status == 200
    assert int(head.headers["content-length"]) > 0
    assert_safe_headers(head)
    # No byte of a body came between.
    assert after is not None
    assert after.json() == {"status": "ok"}


async def test_head_of_a_task(shared_service: ServiceProcess) -> None:
    id = shared_service.create()["id"]

    assert talk(shared_service.port, request("HEAD", f"/task/{id}")).status == 200
    assert talk(shared_service.port, request("HEAD", f"/task/{UNKNOWN_ID}")).status == 404


async def test_query_string_changes_nothing(shared_service: ServiceProcess) -> None:
    sent = request(
        "POST", "/task?content=other&x=%00#y", "Content-Type: application/json", body=TASK
    )

    assert talk(shared_service.port, sent).json()["content"] == "x"


async def test_cross_origin_pages_are_told_nothing(shared_service: ServiceProcess) -> None:
    answer = talk(
        shared_service.port,
        request(
            "OPTIONS",
            "/task",
            "Origin: https://elsewhere.example",
            "Access-Control-Request-Method: POST",
        ),
    )

    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_request_id_is_taken(shared_service: ServiceProcess) -> None:
    for id in ("x", "a" * 128, "A-Za-z0-9._:/+=-"):
        answer = talk(shared_service.port, request("GET", "/nope", f"X-Request-ID: {id}"))

        assert answer.headers["x-request-id"] == id


@pytest.mark.parametrize(
    "id", [None, "", "a" * 129, "a b", 'a"b', "a{b}", "ä", "a;b", "a\tb", "<a>"]
)
async def test_request_id_is_made_where_none_is_right(
    shared_service: ServiceProcess, id: str | None
) -> None:
    headers = [] if id is None else [f"X-Request-ID: {id}"]

    first = talk(shared_service.port, request("GET", "/health", *headers))
    second = talk(shared_service.port, request("GET", "/health", *headers))

    assert re.fullmatch(r"[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


# Not now.


async def test_postgres_away_is_503_until_it_is_back(
    start_service: Start, postgres: EmbeddedPostgres
) -> None:
    service = start_service(TASK_CONSUMER_WORKERS=0)
    id = service.create()["id"]
    name = urlsplit(service.env["DATABASE_URL"]).path[1:]
    query(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    query(
        postgres.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
        name,
    )
    try:
        for sent in (
            post(TASK),
            request("GET", f"/task/{id}"),
            request("PATCH", f"/task/{id}/cancel"),
        ):
            answer = talk(service.port, sent)

            problem = assert_problem(answer, 503)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            for secret in ("SELECT", "INSERT", "psycopg", name, "socket"):
                assert secret not in problem["detail"]
        health = talk(service.port, request("GET", "/health"))
        assert health.status == 503
        assert health.json() == {"status": "unavailable", "problems": ["postgres"]}
        assert_safe_headers(health)
        assert service.get("/health/ready")[0::2] == (503, b'{"status":"unavailable"}')
        assert service.get("/health/live")[0::2] == (200, b'{"status":"ok"}')
        metrics = service.get("/metrics")[2].decode().splitlines()
        assert "tasksvc_postgres_up 0" in metrics
        assert not [line for line in metrics if line.startswith("task_status")]
        # What needs no database is answered without one.
        assert_problem(talk(service.port, post(b"{")), 400)
        assert_problem(talk(service.port, request("GET", "/task/x")), 404)
    finally:
        query(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    assert talk(service.port, post(TASK)).status == 201
    assert service.task(id)["status"] == "pending"
    # Metrics are as old as a second.
    await eventually(lambda: service.metric("tasksvc_postgres_up") == 1)
    await eventually(lambda: service.get("/health")[0] == 200)


async def test_full_waiting_line_is_503(start_service: Start) -> None:
    service = start_service(TASK_CONSUMER_WORKERS=0, TASKSVC_MAX_WAITING=1)
    url = service.env["DATABASE_URL"]
    waiting = "SELECT 1 FROM pg_locks WHERE relation = 'task'::regclass AND NOT granted"
    with psycopg2.connect(url) as holder:
        holder.cursor().execute("LOCK TABLE task IN SHARE MODE")
        first, second, third = (Wire(service.port) for _ in range(3))
        with first, second, third:
            first.send(post(TASK))
            await eventually(lambda: query(url, waiting))
            # Of these two one finds the line full; which of them is the server's choice.
            second.send(post(TASK))
            third.send(post(TASK))
            await eventually(lambda: service.metric("task_create_fail_count") == 1)
            holder.rollback()
            answers = [wire.answer() for wire in (first, second, third)]
    holder.close()

    statuses = [answer.status for answer in answers if answer is not None]
    assert sorted(statuses) == [201, 201, 503]
    assert statuses[0] == 201
    refused = answers[statuses.index(503)]
    assert_problem(refused, 503)
    assert refused is not None
    assert refused.headers["retry-after"]
    assert query(url, "SELECT count(*) FROM task") == [(2,)]
