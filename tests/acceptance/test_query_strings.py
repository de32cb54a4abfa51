"""Query strings, against the running service: each parameter once, and none that is not known."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import orjson
import pytest

from tasksvc.domain.task import Filter
from tasksvc.web import routes
from tests.harness import ServiceProcess
from tests.wire import Answer, assert_problem, request, talk

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"

GETS = [
    route.path.replace("{task_id}", UNKNOWN_ID).replace("{name}", "nobody")
    for route in routes.TASKS
    if route.method == "GET"
]


def get(service: ServiceProcess, path: str) -> Answer:
    return talk(service.port, request("GET", path))


def refused(answer: Answer) -> list[str]:
    """The pointers of what is wrong."""
    assert_problem(answer, 422, errors=answer.json()["errors"])
    return [error["pointer"] for error in answer.json()["errors"]]


@pytest.mark.parametrize("path", GETS)
async def test_unknown_parameter_is_named(shared_service: ServiceProcess, path: str) -> None:
    assert refused(get(shared_service, f"{path}?wait=5")) == ["/wait"]
    assert refused(get(shared_service, f"{path}?wait")) == ["/wait"]
    assert refused(get(shared_service, f"{path}?a%2Fb~=1&%C3%A4=2")) == ["/a~1b~0", "/ä"]
    assert talk(shared_service.port, request("HEAD", f"{path}?wait=5")).status == 422


@pytest.mark.parametrize("path", GETS)
async def test_repeated_parameter_is_named(shared_service: ServiceProcess, path: str) -> None:
    assert refused(get(shared_service, f"{path}?limit=1&limit=1")) == ["/limit"]


@pytest.mark.parametrize("path", GETS)
async def test_many_parameters_are_named_in_brief(
    shared_service: ServiceProcess, path: str
) -> None:
    search = "&".join(f"{number}{'x' * 60}=1" for number in range(100))

    answer = get(shared_service, f"{path}?{search}")

    assert len(refused(answer)) == 10
    assert len(answer.body) < 1500


@pytest.mark.parametrize("route", routes.OPS, ids=lambda route: route.path)
async def test_health_and_metrics_take_any(shared_service: ServiceProcess, route: object) -> None:
    assert get(shared_service, f"{route.path}?a=1&a=2").status == 200  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("search", "pointer"),
    [
        ("limit=", "/limit"),
        ("limit=1_0", "/limit"),
        ("limit=%2B1", "/limit"),
        ("limit=%201", "/limit"),
        ("limit=1.0", "/limit"),
        ("limit=%EF%BC%91", "/limit"),
        ("limit=" + "9" * 5000, "/limit"),
        ("limit=101&limit=1", "/limit"),
        ("status=", "/status"),
        ("status=failed&status=failed", "/status"),
        ("kind=a%00", "/kind"),
        ("created_after=", "/created_after"),
        ("created_after=2026-11-01T00:00:00+01:00", "/created_after"),  # a plus is a space
        ("created_after=2026-W44-7", "/created_after"),
        ("created_after=20261101", "/created_after"),
        ("created_before=2026-11-01T00Z", "/created_before"),
        ("created_before=1793491200", "/created_before"),
    ],
)
async def test_value_that_will_not_do_is_named(
    shared_service: ServiceProcess, search: str, pointer: str
) -> None:
    assert refused(get(shared_service, f"/tasks?{search}")) == [pointer]


@pytest.mark.parametrize(
    "search", [b"kind=\xff", b"cursor=\xff\xfe", b"\xff=1", b"queue=\xff", b"created_after=\xff"]
)
async def test_bytes_that_are_no_text(shared_service: ServiceProcess, search: bytes) -> None:
    head = b"GET /tasks?" + search + b" HTTP/1.1\r\nHost: test\r\n\r\n"

    assert talk(shared_service.port, head).status in (400, 422)


@pytest.mark.parametrize(
    "text", ["2026-11-01", "2026-11-01T00:00:00", "2026-11-01T01:00:00%2B01:00"]
)
async def test_time_is_read_as_utc_unless_it_says_another_offset(
    idle: ServiceProcess, text: str
) -> None:
    created_at = idle.create()["created_at"]

    assert get(idle, f"/tasks?created_after={text}").status == 200
    for name, found in (("created_after", 0), ("created_before", 1)):
        moment = f"{int(created_at[:4]) + 1}{text[4:]}"
        assert len(get(idle, f"/tasks?{name}={moment}").json()["tasks"]) == found


async def test_nobody_else_makes_a_cursor(idle: ServiceProcess) -> None:
    for _ in range(3):
        idle.create()
    cursor = get(idle, "/tasks?limit=1").json()["next_cursor"]
    id = urlsafe_b64decode(cursor)[:16]
    mark = hashlib.sha256(orjson.dumps(list(Filter()))).digest()

    def status(text: str) -> int:
        return get(idle, f"/tasks?cursor={quote(text)}").status

    assert status(cursor) == 200
    for size in (8, 14, 32):
        assert status(urlsafe_b64encode(id + mark[:size]).decode()) == 400
    for junk in ("", "=", "====", "\n", "!", " ", "*", "A", "\0"):
        assert status(f"{cursor}{junk}") == (200 if junk == "" else 400)
    assert status(f"{cursor[:20]}!{cursor[20:]}") == 400
    assert status(cursor.swapcase()) == 400


async def test_cursor_outlives_its_process(start_service: Callable[..., ServiceProcess]) -> None:
    first, second = (start_service(TASK_CONSUMER_WORKERS=0) for _ in range(2))
    ids = [first.create()["id"] for _ in range(3)]
    search = "/tasks?limit=1&status=pending"
    cursor = get(first, search).json()["next_cursor"]
    first.stop()

    found = get(second, f"{search}&cursor={cursor}").json()["tasks"]

    assert [task["id"] for task in found] == [ids[1]]
