"""The shapes of queues that come in."""

from __future__ import annotations

from marshmallow import fields
from marshmallow.validate import Range

from tasksvc.web.schemas.documents import load
from tasksvc.web.schemas.fields import Digits, Shape
from tasksvc.web.schemas.names import is_name

_MAX_PAGE = 1000


class QueuePut(Shape):
    """The body of `PUT /queues/{name}`."""

    concurrency = fields.Integer(
        strict=True, allow_none=True, required=True, validate=Range(1, 1_000_000)
    )


class QueueSearch(Shape):
    """The query of `GET /queues`."""

    limit = Digits(load_default=_MAX_PAGE, validate=Range(1, _MAX_PAGE))
    after = fields.String(validate=is_name)


_QUEUE_PUT = QueuePut()


def load_concurrency(body: bytes | bytearray) -> int | None:
    """Returns the limit of a queue. Raises Problem, as `load` does."""
    concurrency: int | None = load(_QUEUE_PUT, body)["concurrency"]
    return concurrency
