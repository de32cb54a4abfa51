"""One function for each route of queues."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs, web

from tasksvc.domain.errors import QueueNotFound
from tasksvc.domain.queue import Queue
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import QUEUES
from tasksvc.web.bodies import read_json
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import check_no_query, load_query, next_link
from tasksvc.web.schemas.queues import QueuePut, QueueSearch, show_queue
from tasksvc.web.schemas.tasks import QUEUE_NAME, QUEUE_NAME_RULE, load

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
    return Answer(orjson.dumps(show_queue(queue)), status=HTTPStatus.CREATED, headers=headers)


async def get_queue(request: web.Request) -> Answer:
    check_no_query(request)
    return _answer(await request.app[QUEUES].get(_name(request)))


async def find_queues(request: web.Request) -> Answer:
    """A page of them, in the order of their names."""
    search = load_query(_QUEUE_SEARCH, request)
    limit = search["limit"]
    queues = await request.app[QUEUES].find(search.get("after", ""), limit + 1)
    page = queues[:limit]
    document: dict[str, Any] = {"queues": [show_queue(queue) for queue in page]}
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
    return Answer(orjson.dumps(show_queue(queue)))
