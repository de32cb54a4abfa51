"""The shapes of schedules: what comes in and what goes out."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson
from marshmallow import ValidationError, fields, post_load, validates
from marshmallow.validate import Length, Range, Regexp

from tasksvc.domain import cron
from tasksvc.domain.errors import InvalidCron
from tasksvc.domain.schedule import Missed, Schedule, ScheduleOrder
from tasksvc.web.schemas.fields import Digits, Shape, Truth
from tasksvc.web.schemas.moments import shown_moment
from tasksvc.web.schemas.tasks import TaskCreate, TaskOrder

_MAX_CONTENT_BYTES = 16_384
"""As JSON: a page has many schedules, and many may be due at the same moment."""

_MAX_PAGE = 100

_MAX_CRON_LENGTH = 200

SCHEDULE_NAME = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,100}\Z")
"""`.` and `..` never arrive: clients take them out of a path."""

SCHEDULE_NAME_RULE = "Must be 1 to 100 of A-Z, a-z, 0-9, dot, underline and hyphen."

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
    after = fields.String(validate=Regexp(SCHEDULE_NAME, error=SCHEDULE_NAME_RULE))


def dump_schedule(schedule: Schedule) -> bytes:
    """Returns the schedule as JSON."""
    document = schedule._asdict()
    document["task"] = orjson.Fragment(schedule.task)
    for name in ("created_at", "updated_at", "next_run_at", "last_run_at"):
        if document[name] is not None:
            document[name] = shown_moment(document[name])
    document["is_paused"] = schedule.is_paused
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)


def _document(order: TaskOrder) -> str:
    """The task as the client gave it."""
    options: dict[str, Any] = msgspec.to_builtins(order.options)
    return orjson.dumps({"content": order.content, **options}).decode()
