"""What comes in: shapes and limits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from marshmallow import ValidationError, fields, post_load, validates_schema
from marshmallow.validate import Length, Range

from tasksvc.domain.seconds import MAX_SECONDS
from tasksvc.domain.task import NO_OPTIONS, Filter, Options, Priority, Status
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import load_query
from tasksvc.web.schemas.documents import load, read_document
from tasksvc.web.schemas.errors import named_errors
from tasksvc.web.schemas.fields import Digits, Moment, Number, Shape, Truth
from tasksvc.web.schemas.moments import read_moment
from tasksvc.web.schemas.names import is_name
from tasksvc.web.schemas.quick_reader import Reader, without_nul

MAX_TASKS = 1000
"""In one `POST /tasks`, and in one step of a cancel or a retry by filter."""
MAX_PAGE = 100
"""Tasks in one answer to `GET /tasks`: each may be as large as a request may be."""


class TaskCreate(Shape):
    """The body of `POST /task`."""

    content = fields.String(required=True, validate=without_nul)
    kind = fields.String(validate=[Length(1, 100), without_nul])
    max_attempts = fields.Integer(strict=True, validate=Range(1, 1000))
    timeout_seconds = Number(validate=Range(0, MAX_SECONDS, min_inclusive=False))
    delay_seconds = Number(validate=Range(0, MAX_SECONDS))
    run_at = Moment()
    expires_at = Moment()
    priority = fields.Enum(Priority, by_value=True)
    queue = fields.String(validate=is_name)
    unique_key = fields.String(validate=[Length(1, 255), without_nul])
    retry_base_seconds = Number(validate=Range(0, MAX_SECONDS))
    retry_max_seconds = Number(validate=Range(0, MAX_SECONDS))

    # Of several fields together: `_is_sound` asks the same.

    @validates_schema
    def _one_start(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "run_at" in data and "delay_seconds" in data:
            raise ValidationError("Give run_at or delay_seconds, not both.", "run_at")

    @validates_schema
    def _backoff(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data.get("retry_base_seconds", 0) > data.get("retry_max_seconds", MAX_SECONDS):
            raise ValidationError("Must not be below retry_base_seconds.", "retry_max_seconds")

    @post_load
    def _order(self, data: dict[str, Any], **kwargs: Any) -> CreateRequest:
        return CreateRequest(data.pop("content"), Options(**data))


class TaskFilter(Shape):
    """Which tasks are meant."""

    status = fields.Enum(Status, by_value=True)
    kind = fields.String(validate=[Length(1, 100), without_nul])
    queue = fields.String(validate=is_name)
    created_after = Moment()
    created_before = Moment()


class TaskSearch(TaskFilter):
    """The query of `GET /tasks`."""

    limit = Digits(load_default=20, validate=Range(1, MAX_PAGE))
    cursor = fields.String()


class TasksStep(Shape):
    """The body of `POST /tasks/cancel` and `POST /tasks/retry`."""

    filter = fields.Nested(TaskFilter, required=True)
    dry_run = Truth(load_default=False)
    limit = fields.Integer(strict=True, load_default=MAX_TASKS, validate=Range(1, MAX_TASKS))
    cursor = fields.String()


class Search(NamedTuple):
    """Which page of which tasks a client asks for."""

    filter: Filter
    cursor: str | None
    limit: int


class BulkRequest(NamedTuple):
    """The tasks to change, or with `is_dry` only to list."""

    filter: Filter
    cursor: str | None
    limit: int
    is_dry: bool


class CreateRequest(NamedTuple):
    """What a client asks for."""

    content: str
    options: Options = NO_OPTIONS

    def fingerprint(self) -> str:
        """The same for the same order, however it was written, and whichever options come to be."""
        return hashlib.sha256(_encode(self)).hexdigest()


_encode = msgspec.json.Encoder().encode

_OPTIONS = Options.__struct_fields__
_NOTHING = msgspec.structs.astuple(NO_OPTIONS)

_TASK_CREATE = TaskCreate()
_QUICK_CREATE = Reader(_TASK_CREATE, ("content", *_OPTIONS))
_MOMENTS = [n for n, name in enumerate(_OPTIONS) if isinstance(_TASK_CREATE.fields[name], Moment)]
_TASK_SEARCH = TaskSearch()
_TASKS_STEP = TasksStep()


def load_search(request: web.Request) -> Search:
    """Raises Problem, 422, for a query that will not do."""
    found = load_query(_TASK_SEARCH, request)
    limit, cursor = found.pop("limit"), found.pop("cursor", None)
    return Search(_filter(**found), cursor, limit)


def load_step(body: bytes | bytearray, statuses: Collection[Status]) -> BulkRequest:
    """A step through tasks in one of the statuses. Raises Problem, as `load_task_create` does."""
    found = load(_TASKS_STEP, body)
    if not found["filter"]:
        raise wrong_shape([{"pointer": "/filter", "detail": "Give one of its fields at least."}])
    if found["filter"].get("status") not in (None, *statuses):
        detail = f"Must be one of: {', '.join(sorted(statuses))}."
        raise wrong_shape([{"pointer": "/filter/status", "detail": detail}])
    filter = _filter(**found["filter"])
    return BulkRequest(filter, found.get("cursor"), found["limit"], found["dry_run"])


def _filter(status: Status | None = None, **others: Any) -> Filter:
    return Filter(() if status is None else (status,), **others)


def load_task_create(body: bytes | bytearray) -> CreateRequest:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    order = quick_order(body)
    if order is None:
        order = load(_TASK_CREATE, body)
    return order


def try_task_create(body: bytes, pointer: str) -> CreateRequest | list[dict[str, str]]:
    """The order, or what is wrong, below a pointer. Raises Problem, 400, for what is not JSON."""
    order = quick_order(body)
    if order is None:
        document = read_document(body)
        try:
            order = _TASK_CREATE.load(document)
        except ValidationError as error:
            return named_errors(document, error.messages, pointer)
    return order


def quick_order(body: bytes | bytearray) -> CreateRequest | None:
    """None for what is to be read by the schema: it is invalid or uncommon."""
    values = _QUICK_CREATE.read(body)
    if values is None:
        return None
    content, given = values[0], values[1:]
    if given == _NOTHING:
        return CreateRequest(content)
    try:
        options = Options(*_with_moments(given))
    except ValueError:
        return None
    return CreateRequest(content, options) if _is_sound(options) else None


def _with_moments(given: tuple[Any, ...]) -> list[Any]:
    """The options with their moments read. Raises ValueError."""
    values = list(given)
    for number in _MOMENTS:
        if values[number] is not None:
            values[number] = read_moment(values[number])
    return values


def _is_sound(options: Options) -> bool:
    """Whether no option contradicts another."""
    starts_once = options.run_at is None or options.delay_seconds is None
    base, most = options.retry_base_seconds, options.retry_max_seconds
    return starts_once and (base is None or base <= (MAX_SECONDS if most is None else most))
