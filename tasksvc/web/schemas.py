"""What comes in and goes out: shapes and limits."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from marshmallow import Schema, ValidationError, fields, post_load, validates_schema
from marshmallow.validate import Length, Range

from tasksvc.domain.errors import TaskNotFound
from tasksvc.domain.task import DEFAULT_KIND, NO_OPTIONS, Options, Task
from tasksvc.web.problems import Problem, wrong_shape

MAX_ERRORS = 10
MAX_NAME_LENGTH = 50
MAX_SECONDS = 366 * 86_400.0

_HEX = "[0-9a-fA-F]"
_UUID = re.compile(f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}")


def _without_nul(value: str) -> None:
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")


class _Moment(fields.AwareDateTime):
    """RFC 3339, with its offset from UTC; at most as far away as PostgreSQL can think."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        moment: datetime = super()._deserialize(value, *args, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE) from None


class TaskCreate(Schema):
    """The body of `POST /task`."""

    content = fields.String(required=True, validate=_without_nul)
    kind = fields.String(validate=[Length(1, 100), _without_nul])
    max_attempts = fields.Integer(strict=True, validate=Range(1, 1000))
    timeout_seconds = fields.Float(validate=Range(0, MAX_SECONDS, min_inclusive=False))
    delay_seconds = fields.Float(validate=Range(0, MAX_SECONDS))
    run_at = _Moment(format="iso")
    expires_at = _Moment(format="iso")

    @validates_schema
    def _one_start(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "run_at" in data and "delay_seconds" in data:
            raise ValidationError("Give run_at or delay_seconds, not both.", "run_at")

    @post_load
    def _order(self, data: dict[str, Any], **kwargs: Any) -> TaskOrder:
        return TaskOrder(data.pop("content"), Options(**data))


class TaskOrder(NamedTuple):
    """What a client asks for."""

    content: str
    options: Options = NO_OPTIONS

    def fingerprint(self) -> str:
        """The same for the same order, however it was written."""
        return hashlib.sha256(orjson.dumps([self.content, *self.options])).hexdigest()


_TASK_CREATE = TaskCreate()


def load_task_create(body: bytes) -> TaskOrder:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        # One type for all: syntax, bad UTF-8, a lone surrogate, NaN, nesting too deep.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.") from None
    if _is_plain(document):
        return TaskOrder(document["content"])
    try:
        order: TaskOrder = _TASK_CREATE.load(document)
    except ValidationError as error:
        raise wrong_shape(_errors(document, error.messages)) from None
    return order


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
    """A task as JSON: its five first keys always, and of the others those that it has."""
    document: dict[str, Any] = {
        "id": task.id,
        "content": task.content,
        "status": task.status,
        "created_at": _time(task.created_at),
        "updated_at": None if task.updated_at is None else _time(task.updated_at),
    }
    if task.error is not None:
        document["error"] = task.error
    if task.kind != DEFAULT_KIND:
        document["kind"] = task.kind
    if task.progress is not None:
        document["progress"] = task.progress
    if task.result is not None:
        document["result"] = task.result
    if task.run_at is not None:
        document["run_at"] = _time(task.run_at)
    if task.timeout_seconds is not None:
        document["timeout_seconds"] = task.timeout_seconds
    if task.expires_at is not None:
        document["expires_at"] = _time(task.expires_at)
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
