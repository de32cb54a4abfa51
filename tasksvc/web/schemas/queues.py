"""The shapes of queues: what comes in and what goes out."""

from __future__ import annotations

from typing import Any

from marshmallow import fields
from marshmallow.validate import Range, Regexp

from tasksvc.domain.queue import Queue
from tasksvc.web.schemas.fields import Digits, Shape
from tasksvc.web.schemas.tasks import QUEUE_NAME, QUEUE_NAME_RULE

_PAGE = 1000


class QueuePut(Shape):
    """The body of `PUT /queues/{name}`."""

    concurrency = fields.Integer(
        strict=True, allow_none=True, required=True, validate=Range(1, 1_000_000)
    )


class QueueSearch(Shape):
    """The query of `GET /queues`."""

    limit = Digits(load_default=_PAGE, validate=Range(1, _PAGE))
    after = fields.String(validate=Regexp(QUEUE_NAME, error=QUEUE_NAME_RULE))


def show_queue(queue: Queue) -> dict[str, Any]:
    """Returns the queue as it is answered."""
    return {
        **queue._asdict(),
        "oldest_seconds": round(queue.oldest_seconds, 3),
        "rate": round(queue.rate, 3),
        "empty_seconds": None if queue.empty_seconds is None else round(queue.empty_seconds, 1),
    }
