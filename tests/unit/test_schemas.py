"""What comes in and goes out, without a server."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from tasksvc.domain.errors import TaskNotFound
from tasksvc.domain.task import Options, Priority, Status, Task
from tasksvc.web.problems import Problem
from tasksvc.web.schemas.dumps import dump_task
from tasksvc.web.schemas.names import load_task_id
from tasksvc.web.schemas.tasks import CreateRequest, load_task_create

ID = "0192d1a5-7c2e-7e2a-9d3f-0123456789ab"
MOMENT = datetime(2024, 10, 28, 8, 4, 8, 990161, UTC)


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "id": ID,
        "content": "string",
        "status": Status.PENDING,
        "created_at": MOMENT,
        "updated_at": None,
        "error": None,
    }
    return Task(**(values | changes))


def refusal(body: bytes) -> Problem:
    with pytest.raises(Problem) as raised:
        load_task_create(body)
    return raised.value


def test_load_task_create() -> None:
    assert load_task_create(b' {"content": "\\u0041\\ud83d\\ude42"} ') == CreateRequest("A🙂")


def test_load_task_create_with_all_options() -> None:
    document = {
        "content": "x",
        "max_attempts": 5,
        "timeout_seconds": 0.5,
        "run_at": "2030-01-01T02:00:00+02:00",
        "expires_at": "2030-01-02T00:00:00Z",
        "unique_key": "u",
        "retry_base_seconds": 0,
        "retry_max_seconds": 2.5,
    }

    assert load_task_create(json.dumps(document).encode()) == CreateRequest(
        "x",
        Options(
            max_attempts=5,
            timeout_seconds=0.5,
            run_at=datetime(2030, 1, 1, tzinfo=UTC),
            expires_at=datetime(2030, 1, 2, tzinfo=UTC),
            unique_key="u",
            retry_base_seconds=0,
            retry_max_seconds=2.5,
        ),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 1001),
        ("max_attempts", 1.5),
        ("max_attempts", "2x"),
        ("max_attempts", "3"),
        ("max_attempts", True),
        ("max_attempts", 10**30),
        ("timeout_seconds", 0),
        ("timeout_seconds", -1),
        ("timeout_seconds", 1e300),
        ("timeout_seconds", "soon"),
        ("timeout_seconds", True),
        ("timeout_seconds", []),
        ("priority", "urgent"),
        ("priority", 1),
        ("priority", ["high"]),
        ("delay_seconds", -0.1),
        ("delay_seconds", 1e9),
        ("delay_seconds", [1]),
        ("delay_seconds", "5"),
        ("delay_seconds", "1_0"),
        ("delay_seconds", " 5\n"),
        ("delay_seconds", "٣"),
        ("run_at", "tomorrow"),
        ("run_at", "2099-W53-5T00:00:00Z"),
        ("run_at", "2099-W53-5"),
        ("run_at", "20990101T000000Z"),
        ("run_at", "2099-01"),
        ("run_at", "2099-01-01T23Z"),
        ("run_at", "2099-01-01T23:59Z"),
        ("run_at", "2099-01-01T24:00:00Z"),
        ("run_at", "2099-01-01T23:59:60Z"),
        ("run_at", "2099-01-01T23:59:59,5Z"),
        ("run_at", "2099-01-01T23:59:59.Z"),
        ("run_at", "2099-01-01T23:59:59+00:00:30"),
        ("run_at", "2099-01-01T23:59:59+0100"),
        ("run_at", "2099-01-01T23:59:59+24:00"),
        ("run_at", "2099-01-01T23:59:59Z\0"),
        ("run_at", "2099-01-01T23:59:59Z\n"),
        ("run_at", " 2099-01-01"),
        ("run_at", "2099-01-01Z"),
        ("run_at", "٢099-01-01"),
        ("run_at", "2099-02-30"),
        ("run_at", True),
        ("run_at", 1893456000),
        ("run_at", "0001-01-01T00:00:00+23:59"),
        ("expires_at", "9999-12-31T23:59:59-23:59"),
        ("expires_at", {}),
    ],
)
def test_option_that_will_not_do_is_named(field: str, value: Any) -> None:
    refused = refusal(json.dumps({"content": "x", field: value}).encode())

    assert refused.status == 422
    assert [error["pointer"] for error in refused.extensions["errors"]] == [f"/{field}"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T02:03:04", datetime(2026, 11, 1, 2, 3, 4, tzinfo=UTC)),
        ("2026-11-01 02:03:04z", datetime(2026, 11, 1, 2, 3, 4, tzinfo=UTC)),
        ("2026-11-01t02:03:04.5+02:30", datetime(2026, 10, 31, 23, 33, 4, 500000, tzinfo=UTC)),
        ("2026-11-01T02:03:04.1234569-00:00", datetime(2026, 11, 1, 2, 3, 4, 123456, tzinfo=UTC)),
    ],
)
def test_time_is_read_as_utc_unless_it_says_another_offset(text: str, moment: datetime) -> None:
    order = load_task_create(json.dumps({"content": "x", "run_at": text}).encode())

    assert order.options.run_at == moment
    assert order.options.run_at.tzinfo is UTC


def test_task_starts_at_a_moment_or_after_a_delay() -> None:
    both = {"content": "x", "delay_seconds": 1, "run_at": "2030-01-01T00:00:00Z"}

    assert refusal(json.dumps(both).encode()).extensions["errors"] == [
        {"pointer": "/run_at", "detail": "Give run_at or delay_seconds, not both."}
    ]


def test_fingerprint_is_of_what_is_asked_for() -> None:
    """It is kept for days, so it must outlast an option that is new."""
    assert CreateRequest("x", Options(max_attempts=2)).fingerprint() == (
        hashlib.sha256(b'["x",{"max_attempts":2}]').hexdigest()
    )
    many = Options(kind="k", expires_at=MOMENT, priority=Priority.HIGH, retry_max_seconds=1.0)
    written = (
        b'["x",{"kind":"k","expires_at":"2024-10-28T08:04:08.990161Z","priority":"high",'
        b'"retry_max_seconds":1.0}]'
    )
    assert CreateRequest("x", many).fingerprint() == hashlib.sha256(written).hexdigest()
    assert (
        CreateRequest("x").fingerprint()
        != CreateRequest("x", Options(retry_max_seconds=0)).fingerprint()
    )


def test_load_task_create_tells_bad_json_from_a_wrong_shape() -> None:
    assert refusal(b"{").status == 400
    assert refusal(b"{}").status == 422


@pytest.mark.parametrize("value", ["secret", 12345, ["secret"], {"secret": 12345}])
def test_refusal_repeats_no_value(value: object) -> None:
    refused = refusal(json.dumps({"content": [value], "other": value}).encode())

    assert b"secret" not in refused.body()
    assert b"12345" not in refused.body()


def test_refusal_names_few_fields_in_brief() -> None:
    refused = refusal(json.dumps({f"{i}{'x' * 1000}": 1 for i in range(100)}).encode())

    assert len(refused.extensions["errors"]) == 10
    assert max(len(error["pointer"]) for error in refused.extensions["errors"]) <= 51


@pytest.mark.parametrize(
    ("name", "pointer"),
    [("a/b", "/a~1b"), ("a~b", "/a~0b"), ("~1", "/~01"), ("", "/"), ("_schema", "/_schema")],
)
def test_pointer_is_escaped(name: str, pointer: str) -> None:
    refused = refusal(json.dumps({"content": "x", name: 1}).encode())

    assert [error["pointer"] for error in refused.extensions["errors"]] == [pointer]


def test_pointer_of_what_is_no_object_is_the_whole_document() -> None:
    assert [error["pointer"] for error in refusal(b"[1]").extensions["errors"]] == [""]


def test_load_task_id_takes_either_case() -> None:
    assert load_task_id(ID) == ID
    assert load_task_id(ID.upper()) == ID


@pytest.mark.parametrize(
    "text",
    ["", "x", ID[:-1], ID + "0", ID + "\n", " " + ID, f"{{{ID}}}", UUID(ID).hex, "٠" * 8 + ID[8:]],
)
def test_load_task_id_refuses_what_is_no_uuid(text: str) -> None:
    with pytest.raises(TaskNotFound):
        load_task_id(text)


def test_dump_task_is_the_contract_to_the_letter() -> None:
    assert (
        dump_task(task(content="ü"))
        == (
            '{"id":"0192d1a5-7c2e-7e2a-9d3f-0123456789ab","content":"ü","status":"pending",'
            '"created_at":"2024-10-28T08:04:08.990161Z","updated_at":null}'
        ).encode()
    )


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (MOMENT.replace(microsecond=0), "2024-10-28T08:04:08.000000Z"),
        (MOMENT.replace(microsecond=10), "2024-10-28T08:04:08.000010Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (MOMENT.astimezone(timezone(timedelta(0))), "2024-10-28T08:04:08.990161Z"),
        (MOMENT.astimezone(timezone(timedelta(hours=9))), "2024-10-28T08:04:08.990161Z"),
        (
            MOMENT.replace(microsecond=0).astimezone(timezone(timedelta(hours=-9.5))),
            "2024-10-28T08:04:08.000000Z",
        ),
    ],
)
def test_dump_task_gives_times_six_digits_and_z(moment: datetime, text: str) -> None:
    assert json.loads(dump_task(task(updated_at=moment)))["updated_at"] == text


@pytest.mark.parametrize("status", list(Status))
def test_dump_task_gives_the_status_as_its_word(status: Status) -> None:
    assert json.loads(dump_task(task(status=status)))["status"] == status.value


def test_dump_task_puts_the_others_that_it_has_after_the_five() -> None:
    document = json.loads(
        dump_task(task(result=[1], run_at=MOMENT, timeout_seconds=2.5, expires_at=MOMENT))
    )

    assert list(document)[5:] == ["result", "run_at", "timeout_seconds", "expires_at"]
    assert document["result"] == [1]
    assert document["run_at"] == document["expires_at"] == "2024-10-28T08:04:08.990161Z"


def test_dump_task_puts_an_error_after_the_five() -> None:
    document = json.loads(dump_task(task(status=Status.FAILED, error={"type": "ValueError"})))

    assert list(document)[5:] == ["error"]
    assert document["error"] == {"type": "ValueError"}
