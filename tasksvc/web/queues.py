"""Queues: one function for each route, and the shapes of what comes in and goes out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs, web
from marshmallow import fields
from marshmallow.validate import Range, Regexp

from tasksvc.domain.errors import QueueNotFound
from tasksvc.domain.queue import Queue
from tasksvc.web.answers import Answer
from tasksvc.web.bodies import read_json
from tasksvc.web.fields import Digits, Shape
from tasksvc.web.keys import QUEUES
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import check_no_query, load_query, next_link
from tasksvc.web.schemas import QUEUE_NAME, QUEUE_NAME_RULE, load

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


_QUEUE_PUT = QueuePut()
_QUEUE_SEARCH = QueueSearch()


async def put_queue(request: web.Request) -> Answer:
    name = request.match_info["name"]
    if not QUEUE_NAME.match(name):
        raise wrong_shape([{"pointer": "/name", "detail": QUEUE_NAME_RULE}])
    concurrency = load(_QUEUE_PUT, await read_json(request))["concurrency"]
    queue, is_new = await request.app[QUEUES].put(name, concurrency)
    if not is_new:
        return _answer(queue)
    headers: dict[str, str] = {hdrs.LOCATION: f"/queues/{name}"}
    return Answer(orjson.dumps(_shown(queue)), status=HTTPStatus.CREATED, headers=headers)


async def get_queue(request: web.Request) -> Answer:
    check_no_query(request)
    return _answer(await request.app[QUEUES].get(_name(request)))


async def find_queues(request: web.Request) -> Answer:
    """A page of them, in the order of their names."""
    search = load_query(_QUEUE_SEARCH, request)
    limit = search["limit"]
    queues = await request.app[QUEUES].find(search.get("after", ""), limit + 1)
    page = queues[:limit]
    document: dict[str, Any] = {"queues": [_shown(queue) for queue in page]}
    headers = next_link(request, after=page[-1].name) if len(queues) > limit else {}
    return Answer(orjson.dumps(document), headers=headers)


async def pause_queue(request: web.Request) -> Answer:
    """None of its tasks starts any more."""
    return _answer(await request.app[QUEUES].pause(_name(request), is_paused=True))


async def resume_queue(request: web.Request) -> Answer:
    return _answer(await request.app[QUEUES].pause(_name(request), is_paused=False))


async def delete_queue(request: web.Request) -> Answer:
    """Takes away a queue without live tasks."""
    await request.app[QUEUES].delete(_name(request))
    return Answer(b"", status=HTTPStatus.NO_CONTENT)


def _name(request: web.Request) -> str:
    """Raises QueueNotFound: what is no name is no queue's."""
    name = request.match_info["name"]
    if not QUEUE_NAME.match(name):
        raise QueueNotFound
    return name


def _answer(queue: Queue) -> Answer:
    return Answer(orjson.dumps(_shown(queue)))


def _shown(queue: Queue) -> dict[str, Any]:
    return {
        **queue._asdict(),
        "oldest_seconds": round(queue.oldest_seconds, 3),
        "rate": round(queue.rate, 3),
        "empty_seconds": None if queue.empty_seconds is None else round(queue.empty_seconds, 1),
    }
