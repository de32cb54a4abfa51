"""One function for each route of queues."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import hdrs, web

from tasksvc.domain.errors import QueueNotFound
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import QUEUES
from tasksvc.web.bodies import read_json
from tasksvc.web.queries import check_no_query
from tasksvc.web.schemas.dumps import dump_queue
from tasksvc.web.schemas.names import load_name, load_new_name
from tasksvc.web.schemas.queues import QueueSearch, load_concurrency
from tasksvc.web.schemas.shapes import Queues
from tasksvc.web.views.pages import answer_page

_QUEUE_SEARCH = QueueSearch()


async def put_queue(request: web.Request) -> Answer:
    name = load_new_name(request.match_info["name"])
    concurrency = load_concurrency(await read_json(request))
    queue, is_new = await request.app[QUEUES].put(name, concurrency)
    if not is_new:
        return Answer(dump_queue(queue))
    headers: dict[str, str] = {hdrs.LOCATION: f"/queues/{name}"}
    return Answer(dump_queue(queue), status=HTTPStatus.CREATED, headers=headers)


async def get_queue(request: web.Request) -> Answer:
    check_no_query(request)
    return Answer(dump_queue(await request.app[QUEUES].get(_name(request))))


async def find_queues(request: web.Request) -> Answer:
    find = request.app[QUEUES].find
    return await answer_page(request, _QUEUE_SEARCH, find, Queues, dump_queue)


async def pause_queue(request: web.Request) -> Answer:
    queue = await request.app[QUEUES].pause(_name(request), is_paused=True)
    return Answer(dump_queue(queue))


async def resume_queue(request: web.Request) -> Answer:
    queue = await request.app[QUEUES].pause(_name(request), is_paused=False)
    return Answer(dump_queue(queue))


async def delete_queue(request: web.Request) -> Answer:
    """Deletes a queue without live tasks."""
    await request.app[QUEUES].delete(_name(request))
    return Answer(b"", status=HTTPStatus.NO_CONTENT)


def _name(request: web.Request) -> str:
    return load_name(request.match_info["name"], QueueNotFound)
