"""Schedules: one function for each route, and the shapes of what comes in and goes out."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from aiohttp import hdrs, web
from marshmallow import Schema, ValidationError, fields, post_load, validates
from marshmallow.validate import Length

from tasksvc.domain import cron
from tasksvc.domain.errors import InvalidCron, ScheduleNotFound, UnknownKind
from tasksvc.domain.schedule import Missed, Schedule, ScheduleOrder
from tasksvc.web.answers import NO_CONTENT, Answer
from tasksvc.web.bodies import read_json
from tasksvc.web.keys import SCHEDULES
from tasksvc.web.problems import wrong_shape
from tasksvc.web.schemas import TaskCreate, TaskOrder, load, shown_time

_SHORT = Length(max=10_000)
"""Characters: all schedules are in one answer."""

_MAX_CRON_LENGTH = 200

_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,100}")
"""`.` and `..` never arrive: clients take them out of a path."""

_MOMENTS = ("run_at", "delay_seconds", "expires_at")


def _is_cron(text: str) -> None:
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
        _SHORT(content)


class SchedulePut(Schema):
    """The body of `PUT /schedules/{name}`."""

    cron = fields.String(required=True, validate=[Length(max=_MAX_CRON_LENGTH), _is_cron])
    timezone = fields.String(load_default="UTC", validate=_is_timezone)
    task = fields.Nested(_ScheduledTask, required=True)
    missed = fields.Enum(Missed, by_value=True, load_default=Missed.LAST)
    is_paused = fields.Boolean(truthy={True}, falsy={False}, load_default=False)

    @post_load
    def _order(self, data: dict[str, Any], **kwargs: Any) -> ScheduleOrder:
        return ScheduleOrder(**{**data, "task": _document(data["task"])})


_SCHEDULE_PUT = SchedulePut()


async def put_schedule(request: web.Request) -> Answer:
    name = request.match_info["name"]
    if not _NAME.fullmatch(name):
        detail = "Must be 1 to 100 of A-Z, a-z, 0-9, dot, underline and hyphen."
        raise wrong_shape([{"pointer": "/name", "detail": detail}])
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
    return Answer(_dump(await request.app[SCHEDULES].get(_name(request))))


async def find_schedules(request: web.Request) -> Answer:
    """All of them."""
    schedules = await request.app[SCHEDULES].find()
    document = {"schedules": [_shown(schedule) for schedule in schedules]}
    return Answer(orjson.dumps(document, option=orjson.OPT_UTC_Z))


async def delete_schedule(request: web.Request) -> Answer:
    await request.app[SCHEDULES].delete(_name(request))
    return Answer(b"", status=NO_CONTENT)


def _name(request: web.Request) -> str:
    """Raises ScheduleNotFound: what is no name is no schedule's."""
    name = request.match_info["name"]
    if not _NAME.fullmatch(name):
        raise ScheduleNotFound
    return name


def _document(order: TaskOrder) -> dict[str, Any]:
    """The task as the client gave it."""
    options: dict[str, Any] = msgspec.to_builtins(order.options)
    return {"content": order.content, **options}


def _dump(schedule: Schedule) -> bytes:
    return orjson.dumps(_shown(schedule), option=orjson.OPT_UTC_Z)


def _shown(schedule: Schedule) -> dict[str, Any]:
    document = schedule._asdict()
    for name in ("created_at", "updated_at", "next_run_at", "last_run_at"):
        if document[name] is not None:
            document[name] = shown_time(document[name])
    return {**document, "is_paused": schedule.is_paused}
