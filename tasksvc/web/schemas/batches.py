"""The body of `POST /tasks`: counted before anything in it is read, and read in slices.

A megabyte of brackets is half a million lists for a parser of JSON, and ten seconds for a schema
that looks at each. So msgspec only finds where each of the tasks begins and ends, and stops at the
first that is too many. Then each is read like that of `POST /task`, until there are ten mistakes.
https://jcristharif.com/msgspec/perf-tips.html#use-raw-fields
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from marshmallow import ValidationError, fields
from marshmallow.validate import Length

from tasksvc.slices import Slices
from tasksvc.web.problems import Problem, bad_json, wrong_shape
from tasksvc.web.schemas.errors import named_errors
from tasksvc.web.schemas.fields import MAX_ERRORS, Shape
from tasksvc.web.schemas.tasks import MAX_TASKS, CreateRequest, try_task_create

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)

_NOT_GIVEN = msgspec.Raw(b"")


class TasksCreate(Shape):
    """The body of `POST /tasks`."""

    tasks = fields.List(fields.Raw(), required=True, validate=Length(1, MAX_TASKS))
    """Each is read by itself: see `TaskCreate`."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    tasks: msgspec.Raw = _NOT_GIVEN


# An array with an end: of a list msgspec asks how long it is once it has read all of it.
_Tasks = msgspec.defstruct(
    "_Tasks",
    [(f"task_{number}", msgspec.Raw, _NOT_GIVEN) for number in range(MAX_TASKS)],
    array_like=True,
    forbid_unknown_fields=True,
)

_TASKS_CREATE = TasksCreate()
_read_body = msgspec.json.Decoder(_Body).decode
_read_tasks = msgspec.json.Decoder(_Tasks).decode
_read_any = msgspec.json.Decoder(msgspec.Raw).decode

_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


async def load_tasks_create(body: bytes | bytearray, max_task_bytes: int) -> list[CreateRequest]:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    orders: list[CreateRequest] = []
    errors: list[dict[str, str]] = []
    slices = Slices()
    for number, raw in enumerate(await _split(body)):
        task, pointer = bytes(raw), f"/tasks/{number}"
        if len(task) > max_task_bytes:
            detail = f"Must have {max_task_bytes} bytes at most (TASKSVC_MAX_BODY_BYTES)."
            errors.append({"pointer": pointer, "detail": detail})
        else:
            read = try_task_create(task, pointer)
            if isinstance(read, CreateRequest):
                orders.append(read)
            else:
                errors += read
        if len(errors) >= MAX_ERRORS:
            break
        await slices.rest()
    if errors:
        raise wrong_shape(errors[:MAX_ERRORS])
    return orders


async def _split(body: bytes | bytearray) -> list[msgspec.Raw]:
    """The tasks as they are written. Raises Problem."""
    try:
        tasks = _read_body(body).tasks
    except msgspec.ValidationError as error:
        await _check_json(body)
        unknown = _UNKNOWN_FIELD.match(str(error))
        raise _refusal({unknown[1]: 0, "tasks": [0]} if unknown else None) from None
    except _BAD_JSON:
        raise bad_json() from None
    if tasks is _NOT_GIVEN:
        raise _refusal({})
    await asyncio.sleep(0)
    try:
        found = msgspec.structs.astuple(_read_tasks(tasks))
    except _BAD_JSON:  # it is JSON: no array, or a long one
        is_array = bytes(memoryview(tasks)[:1]) == b"["
        stand_in = [0] * (MAX_TASKS + 1) if is_array else None if bytes(tasks) == b"null" else 0
        raise _refusal({"tasks": stand_in}) from None
    given = [raw for raw in found if raw is not _NOT_GIVEN]
    if not given:
        raise _refusal({"tasks": given})
    return given


async def _check_json(body: bytes | bytearray) -> None:
    """Raises Problem. What is not JSON has no shape, and a reader stops at the first mistake."""
    await asyncio.sleep(0)
    try:
        _read_any(body)
    except _BAD_JSON:
        raise bad_json() from None


def _refusal(outline: Any) -> Problem:
    """What the schema says of a document like this one, but short."""
    try:
        _TASKS_CREATE.load(outline)
    except ValidationError as error:
        return wrong_shape(named_errors(outline, error.messages))
    raise AssertionError("The schema takes it.")
