"""The shapes of schedules that come in."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from marshmallow import ValidationError, fields, post_load, validates
from marshmallow.validate import Length, Range

from tasksvc.domain import cron
from tasksvc.domain.errors import InvalidCron
from tasksvc.domain.schedule import Missed, ScheduleOrder
from tasksvc.web.schemas.documents import load
from tasksvc.web.schemas.fields import Digits, Shape, Truth
from tasksvc.web.schemas.names import is_name
from tasksvc.web.schemas.tasks import CreateRequest, TaskCreate

_MAX_CONTENT_BYTES = 16_384
"""As JSON: a page has many schedules, and many may be due at the same moment."""

_MAX_PAGE = 100

_MAX_CRON_LENGTH = 200

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
    after = fields.String(validate=is_name)


_SCHEDULE_PUT = SchedulePut()


def load_schedule(body: bytes | bytearray) -> ScheduleOrder:
    """Returns the schedule that a client wants. Raises Problem, as `load` does."""
    order: ScheduleOrder = load(_SCHEDULE_PUT, body)
    return order


def _document(order: CreateRequest) -> str:
    """The task as the client gave it."""
    options: dict[str, Any] = msgspec.to_builtins(order.options)
    return orjson.dumps({"content": order.content, **options}).decode()
