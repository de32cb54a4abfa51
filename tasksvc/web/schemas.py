"""What comes in and goes out: shapes and limits."""

from __future__ import annotations

import re
from datetime import datetime
from http import HTTPStatus
from typing import Any

import orjson
from marshmallow import Schema, ValidationError, fields

from tasksvc.domain.errors import TaskNotFound
from tasksvc.domain.task import Task
from tasksvc.web.problems import Problem

MAX_ERRORS = 10
MAX_NAME_LENGTH = 50

_HEX = "[0-9a-fA-F]"
_UUID = re.compile(f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}")


def _without_nul(value: str) -> None:
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")


class TaskCreate(Schema):
    """The body of `POST /task`."""

    content = fields.String(required=True, validate=_without_nul)


_TASK_CREATE = TaskCreate()


def load_task_create(body: bytes) -> dict[str, Any]:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        # One type for all: syntax, bad UTF-8, a lone surrogate, NaN, nesting too deep.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.") from None
    if _is_plain(document):
        plain: dict[str, Any] = document
        return plain
    try:
        loaded: dict[str, Any] = _TASK_CREATE.load(document)
    except ValidationError as error:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The body does not have the right shape.",
            errors=_errors(document, error.messages),
        ) from None
    return loaded


def _is_plain(document: Any) -> bool:
    """Content alone, and nothing wrong with it: the schema would say so too, ten times slower."""
    return (
        isinstance(document, dict)
        and len(document) == 1
        and isinstance(content := document.get("content"), str)
        and "\0" not in content
    )


def load_task_id(text: str) -> str:
    """The id as the store knows it. Raises TaskNotFound: what is not a UUID is no task's id."""
    if not _UUID.fullmatch(text):
        raise TaskNotFound
    return text.lower()


def dump_task(task: Task) -> bytes:
    """A task as JSON: its five first keys always, and its error or result when it has one."""
    document: dict[str, Any] = {
        "id": task.id,
        "content": task.content,
        "status": task.status,
        "created_at": _time(task.created_at),
        "updated_at": None if task.updated_at is None else _time(task.updated_at),
    }
    if task.error is not None:
        document["error"] = task.error
    if task.result is not None:
        document["result"] = task.result
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)


def _time(moment: datetime) -> datetime | str:
    """RFC 3339 in UTC, always with six digits and `Z`. The store's times are in UTC."""
    if moment.microsecond:
        return moment  # orjson writes it so, unless all six are zeros
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _errors(document: Any, messages: Any) -> list[dict[str, str]]:
    """Each with its JSON Pointer (RFC 6901); few, and with the names cut short."""
    if not isinstance(document, dict):
        return [{"pointer": "", "detail": "Must be an object."}]
    found = []
    for name, details in list(messages.items())[:MAX_ERRORS]:
        escaped = str(name)[:MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1")
        found.append({"pointer": f"/{escaped}", "detail": " ".join(map(str, details))})
    return found
