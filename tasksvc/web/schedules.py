"""Schedules: one function for each route, and the shapes of what comes in and goes out."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from aiohttp import hdrs, web
from marshmallow import ValidationError, fields, post_load, validates
from marshmallow.validate import Length, Range, Regexp

from tasksvc.domain import cron
from tasksvc.domain.errors import InvalidCron, ScheduleNotFound, UnknownKind
from tasksvc.domain.schedule import Missed, Schedule, ScheduleOrder
from tasksvc.web.answers import NO_CONTENT, Answer
from tasksvc.web.bodies import read_json
from tasksvc.web.dumps import dump_list
from tasksvc.web.fields import Digits, Shape, Truth
from tasksvc.web.keys import SCHEDULES
from tasksvc.web.moments import shown_moment
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import check_no_query, load_query, next_link
from tasksvc.web.schemas import TaskCreate, TaskOrder, load

_MAX_CONTENT_BYTES = 16_384
"""As JSON: a page has many schedules, and many may be due at the same moment."""

_MAX_PAGE = 100

_MAX_CRON_LENGTH = 200

_NAME = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,100}\Z")
"""`.` and `..` never arrive: clients take them out of a path."""

_NAME_RULE = "Must be 1 to 100 of A-Z, a-z, 0-9, dot, underline and hyphen."

_MOMENTS = ("run_at", "delay_seconds", "expires_at")


def _is_cron(text: str) -> None:
    if len(text) > _MAX_CRON_LENGTH:
        return  # another rule says so
    try:
        cron.check(text)
    except InvalidCron as error:
        raise ValidationError(str(error)) from None


def _is_timezone(name: str) -> None:
    if name not in cron.timezones():
        raise ValidationError("Must be the name of a time zone, such as Europe/Berlin.")


class _ScheduledTask(TaskCreate):
    """What a task may have that is made again and again: all but moments of its own."""

    class Meta:
        exclude = _MOMENTS

    @validates("content")
    def _is_short(self, content: str, data_key: str) -> None:
        if len(orjson.dumps(content)) > _MAX_CONTENT_BYTES:
            raise ValidationError(f"Must have {_MAX_CONTENT_BYTES} bytes at most, as JSON.")


class SchedulePut(Shape):
    """The body of `PUT /schedules/{name}`."""

    cron = fields.String(required=True, validate=[Length(max=_MAX_CRON_LENGTH), _is_cron])
    timezone = fields.String(load_default="UTC", validate=_is_timezone)
    task = fields.Nested(_ScheduledTask, required=True)
    missed = fields.Enum(Missed, by_value=True, load_default=Missed.LAST)
    is_paused = Truth(load_default=False)

    @post_load
    def _order(self, data: dict[str, Any], **kwargs: Any) -> ScheduleOrder:
        return ScheduleOrder(
            kind=data["task"].options.kind, **{**data, "task": _document(data["task"])}
        )


class ScheduleSearch(Shape):
    """The query of `GET /schedules`."""

    limit = Digits(load_default=_MAX_PAGE, validate=Range(1, _MAX_PAGE))
    after = fields.String(validate=Regexp(_NAME, error=_NAME_RULE))


_SCHEDULE_PUT = SchedulePut()
_SCHEDULE_SEARCH = ScheduleSearch()


async def put_schedule(request: web.Request) -> Answer:
    name = request.match_info["name"]
    if not _NAME.match(name):
        raise wrong_shape([{"pointer": "/name", "detail": _NAME_RULE}])
    order: ScheduleOrder = load(_SCHEDULE_PUT, await read_json(request))
    try:
        schedule, is_new = await request.app[SCHEDULES].put(name, order)
    except UnknownKind as error:
        raise wrong_shape([{"pointer": "/task/kind", "detail": str(error)}]) from None
    if not is_new:
        return Answer(_dump(schedule))
    headers: dict[str, str] = {hdrs.LOCATION: f"/schedules/{name}"}
    return Answer(_dump(schedule), status=HTTPStatus.CREATED, headers=headers)


async def get_schedule(request: web.Request) -> Answer:
    check_no_query(request)
    return Answer(_dump(await request.app[SCHEDULES].get(_name(request))))


async def find_schedules(request: web.Request) -> Answer:
    """A page of them, in the order of their names."""
    search = load_query(_SCHEDULE_SEARCH, request)
    limit = search["limit"]
    schedules = await request.app[SCHEDULES].find(search.get("after", ""), limit + 1)
    page = schedules[:limit]
    headers = next_link(request, after=page[-1].name) if len(schedules) > limit else {}
    return Answer(await dump_list("schedules", page, _dump), headers=headers)


async def delete_schedule(request: web.Request) -> Answer:
    await request.app[SCHEDULES].delete(_name(request))
    return Answer(b"", status=NO_CONTENT)


def _name(request: web.Request) -> str:
    """Raises ScheduleNotFound: what is no name is no schedule's."""
    name = request.match_info["name"]
    if not _NAME.match(name):
        raise ScheduleNotFound
    return name


def _document(order: TaskOrder) -> str:
    """The task as the client gave it."""
    options: dict[str, Any] = msgspec.to_builtins(order.options)
    return orjson.dumps({"content": order.content, **options}).decode()


def _dump(schedule: Schedule) -> bytes:
    document = schedule._asdict()
    document["task"] = orjson.Fragment(schedule.task)
    for name in ("created_at", "updated_at", "next_run_at", "last_run_at"):
        if document[name] is not None:
            document[name] = shown_moment(document[name])
    document["is_paused"] = schedule.is_paused
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)
