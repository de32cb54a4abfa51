"""What comes in and goes out: shapes and limits."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints
from uuid import UUID

import msgspec
import orjson
from marshmallow import Schema, ValidationError, fields, post_load, validates_schema
from marshmallow.exceptions import SCHEMA
from marshmallow.validate import Length, Range, Regexp

from tasksvc.domain.attempt import Attempt
from tasksvc.domain.errors import TaskNotFound
from tasksvc.domain.seconds import MAX_SECONDS
from tasksvc.domain.task import (
    NO_OPTIONS,
    Filter,
    Options,
    Priority,
    Status,
    Step,
    Task,
)
from tasksvc.web.problems import Problem, wrong_shape
from tasksvc.web.quick import Reader, without_nul

MAX_ERRORS = 10
MAX_NAME_LENGTH = 50
MAX_TASKS = 1000
"""In one `POST /tasks`, and in one step of a cancel or a retry by filter."""
MAX_PAGE = 100
"""Tasks in one answer to `GET /tasks`: each may be as large as a request may be."""

QUEUE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")
QUEUE_NAME_RULE = "Must be 1 to 100 of A-Z, a-z, 0-9, dot, underline and hyphen, the first no dot."

_MARK_BYTES = 8

_HEX = "[0-9a-fA-F]"
_UUID = re.compile(f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}")


_AWARE: Any = Annotated[datetime, msgspec.Meta(tz=True)]


class _Moment(fields.AwareDateTime):
    """RFC 3339, with its offset from UTC; at most as far away as PostgreSQL can think."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        moment: datetime
        try:  # as the quick reader does
            moment = msgspec.convert(value, _AWARE)
        except msgspec.ValidationError:
            moment = super()._deserialize(value, *args, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE) from None


class TaskCreate(Schema):
    """The body of `POST /task`."""

    content = fields.String(required=True, validate=without_nul)
    kind = fields.String(validate=[Length(1, 100), without_nul])
    max_attempts = fields.Integer(strict=True, validate=Range(1, 1000))
    timeout_seconds = fields.Float(validate=Range(0, MAX_SECONDS, min_inclusive=False))
    delay_seconds = fields.Float(validate=Range(0, MAX_SECONDS))
    run_at = _Moment(format="iso")
    expires_at = _Moment(format="iso")
    priority = fields.Enum(Priority, by_value=True)
    queue = fields.String(validate=Regexp(QUEUE_NAME, error=QUEUE_NAME_RULE))
    unique_key = fields.String(validate=[Length(1, 255), without_nul])
    retry_base_seconds = fields.Float(validate=Range(0, MAX_SECONDS))
    retry_max_seconds = fields.Float(validate=Range(0, MAX_SECONDS))

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
    def _order(self, data: dict[str, Any], **kwargs: Any) -> TaskOrder:
        return TaskOrder(data.pop("content"), Options(**data))


class TasksCreate(Schema):
    """The body of `POST /tasks`."""

    tasks = fields.List(fields.Nested(TaskCreate), required=True, validate=Length(1, MAX_TASKS))


class TaskFilter(Schema):
    """Which tasks are meant."""

    status = fields.Enum(Status, by_value=True)
    kind = fields.String(validate=[Length(1, 100), without_nul])
    queue = fields.String(validate=Regexp(QUEUE_NAME, error=QUEUE_NAME_RULE))
    created_after = _Moment(format="iso")
    created_before = _Moment(format="iso")


class TaskSearch(TaskFilter):
    """The query of `GET /tasks`."""

    limit = fields.Integer(load_default=20, validate=Range(1, MAX_PAGE))
    cursor = fields.String()


class TasksStep(Schema):
    """The body of `POST /tasks/cancel` and `POST /tasks/retry`."""

    filter = fields.Nested(TaskFilter, required=True)
    dry_run = fields.Boolean(load_default=False, truthy={True}, falsy={False})
    limit = fields.Integer(strict=True, load_default=MAX_TASKS, validate=Range(1, MAX_TASKS))
    cursor = fields.String()


class Search(NamedTuple):
    """Which page of which tasks a client asks for."""

    filter: Filter
    before: str | None
    limit: int


class StepOrder(NamedTuple):
    """What to do something to, or only to tell to which."""

    filter: Filter
    before: str | None
    limit: int
    is_dry: bool


_encode = msgspec.json.Encoder().encode

_MOMENTS = [
    name for name, type in get_type_hints(Task).items() if datetime in (type, *get_args(type))
]
_moments = attrgetter(*_MOMENTS)


class TaskOrder(NamedTuple):
    """What a client asks for."""

    content: str
    options: Options = NO_OPTIONS

    def fingerprint(self) -> str:
        """The same for the same order, however it was written, and whichever options come to be."""
        return hashlib.sha256(_encode(self)).hexdigest()


_NOTHING = msgspec.structs.astuple(NO_OPTIONS)

_TASK_CREATE = TaskCreate()
_QUICK_CREATE = Reader(_TASK_CREATE, ("content", *Options.__struct_fields__))
_TASKS_CREATE = TasksCreate()
_TASK_SEARCH = TaskSearch()
_TASKS_STEP = TasksStep()


def load_tasks_create(body: bytes | bytearray) -> list[TaskOrder]:
    """Raises Problem, as `load_task_create` does."""
    orders: list[TaskOrder] = load(_TASKS_CREATE, body)["tasks"]
    return orders


def load_search(query: Mapping[str, str]) -> Search:
    """Raises Problem: 422 for a filter that will not do, 400 for a cursor of other filters."""
    try:
        found = _TASK_SEARCH.load(dict(query))
    except ValidationError as error:
        raise wrong_shape(_errors({}, error.messages)) from None
    limit, cursor = found.pop("limit"), found.pop("cursor", None)
    filter = _filter(**found)
    return Search(filter, _load_cursor(filter, cursor), limit)


def load_step(body: bytes | bytearray, statuses: Collection[Status]) -> StepOrder:
    """A step through tasks in one of the statuses.

    Raises Problem, as `load_task_create` does, and 400 for a cursor of other filters.
    """
    found = load(_TASKS_STEP, body)
    if not found["filter"]:
        raise wrong_shape([{"pointer": "/filter", "detail": "Give one of its fields at least."}])
    if found["filter"].get("status") not in (None, *statuses):
        detail = f"Must be one of: {', '.join(sorted(statuses))}."
        raise wrong_shape([{"pointer": "/filter/status", "detail": detail}])
    filter = _filter(**found["filter"])
    before = _load_cursor(filter, found.get("cursor"))
    return StepOrder(filter, before, found["limit"], found["dry_run"])


def _filter(status: Status | None = None, **others: Any) -> Filter:
    return Filter(() if status is None else (status,), **others)


def dump_step(step: Step, filter: Filter, done: str) -> bytes:
    """A step as JSON; `done` is what was done."""
    document: dict[str, Any] = {
        "matched": step.matched,
        done: len(step.ids),
        "ids": step.ids,
        "next": step.next_before is not None,
    }
    if step.next_before is not None:
        document["next_cursor"] = dump_cursor(filter, step.next_before)
    return orjson.dumps(document)


def dump_cursor(filter: Filter, before: str) -> str:
    """Opaque, and bound to the filter."""
    return urlsafe_b64encode(UUID(before).bytes + _mark(filter)).decode()


def _load_cursor(filter: Filter, cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        data = urlsafe_b64decode(cursor.encode("ascii"))
    except ValueError:
        data = b""
    if len(data) != 16 + _MARK_BYTES or data[16:] != _mark(filter):
        raise Problem(HTTPStatus.BAD_REQUEST, "The cursor is not one of this search.")
    return str(UUID(bytes=data[:16]))


def _mark(filter: Filter) -> bytes:
    return hashlib.sha256(orjson.dumps(list(filter))).digest()[:_MARK_BYTES]


def load(schema: Schema, body: bytes | bytearray) -> Any:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    return _load(schema, _document(body))


def load_task_create(body: bytes | bytearray) -> TaskOrder:
    """Raises Problem: 400 for what is not JSON, 422 for the wrong shape."""
    order = _quick_order(body)
    if order is None:
        order = _load(_TASK_CREATE, _document(body))
    return order


def _quick_order(body: bytes | bytearray) -> TaskOrder | None:
    """None for what is to be read by the schema: something is wrong with it, or rare."""
    values = _QUICK_CREATE.read(body)
    if values is None:
        return None
    content, given = values[0], values[1:]
    if given == _NOTHING:
        return TaskOrder(content)
    options = Options(*given)
    if _is_in_utc(options.run_at) and _is_in_utc(options.expires_at) and _is_sound(options):
        return TaskOrder(content, options)
    return None


def _is_in_utc(moment: datetime | None) -> bool:
    return moment is None or moment.tzinfo is UTC


def _is_sound(options: Options) -> bool:
    """Whether no option contradicts another."""
    starts_once = options.run_at is None or options.delay_seconds is None
    base, most = options.retry_base_seconds, options.retry_max_seconds
    return starts_once and (base is None or base <= (MAX_SECONDS if most is None else most))


def _load(schema: Schema, document: Any) -> Any:
    try:
        return schema.load(document)
    except ValidationError as error:
        raise wrong_shape(_errors(document, error.messages)) from None


def _document(body: bytes | bytearray) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # One type for all: syntax, bad UTF-8, a lone surrogate, NaN, nesting too deep.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.") from None


def load_task_id(text: str) -> str:
    """The id as the store knows it. Raises TaskNotFound: what is not a UUID is no task's id."""
    if not _UUID.fullmatch(text):
        raise TaskNotFound
    return text.lower()


def dump_task(task: Task) -> bytes:
    """A task as JSON: its five first keys always, and of the others those that it has."""
    return _encode(_shown(task))


def dump_tasks(tasks: Sequence[Task], next_cursor: str | None = None) -> bytes:
    """Many tasks as JSON."""
    document: dict[str, Any] = {"tasks": [_shown(task) for task in tasks]}
    if next_cursor is not None:
        document["next_cursor"] = next_cursor
    return _encode(document)


def dump_attempts(attempts: Sequence[Attempt]) -> bytes:
    """The runs of a task as JSON: each has its five first keys, and of the others those that it
    has."""
    document = {"attempts": [_shown_attempt(attempt) for attempt in attempts]}
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)


def _shown_attempt(attempt: Attempt) -> dict[str, Any]:
    document = attempt._asdict()
    for name in ("started_at", "ended_at"):
        if document[name] is not None:
            document[name] = shown_time(document[name])
    for name in ("error", "traceback"):
        if document[name] is None:
            del document[name]
    return document


def _shown(task: Task) -> Task:
    """With all six digits of its times, that whole seconds have too."""
    for name, moment in zip(_MOMENTS, _moments(task), strict=True):
        if moment is not None and not moment.microsecond:
            task = msgspec.structs.replace(task, **{name: shown_time(moment)})
    return task


def shown_time(moment: datetime) -> datetime | str:
    """RFC 3339 in UTC, always with six digits and `Z`. The store's times are in UTC."""
    if moment.microsecond:
        return moment  # orjson and msgspec write it so, unless all six are zeros
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _errors(document: Any, messages: Any) -> list[dict[str, str]]:
    """Each with its JSON Pointer (RFC 6901); few, and with the names cut short."""
    if not isinstance(document, dict):
        return [{"pointer": "", "detail": "Must be an object."}]
    return list(islice(_flat("", messages, document), MAX_ERRORS))


def _flat(pointer: str, messages: Any, document: Any) -> Iterator[dict[str, str]]:
    if not isinstance(messages, dict):
        yield {"pointer": pointer, "detail": " ".join(map(str, messages))}
        return
    for name, details in messages.items():
        if name == SCHEMA and not (isinstance(document, dict) and name in document):
            yield from _flat(pointer, details, None)  # of the object itself
            continue
        escaped = str(name)[:MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1")
        try:
            inner = document[name]
        except (LookupError, TypeError):
            inner = None
        yield from _flat(f"{pointer}/{escaped}", details, inner)
