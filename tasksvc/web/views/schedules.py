"""One function for each route of schedules."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import hdrs, web

from tasksvc.domain.errors import ScheduleNotFound, UnknownKind
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import SCHEDULES
from tasksvc.web.bodies import read_json
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import check_no_query
from tasksvc.web.schemas.dumps import dump_schedule
from tasksvc.web.schemas.names import load_name, load_new_name
from tasksvc.web.schemas.schedules import ScheduleSearch, load_schedule
from tasksvc.web.schemas.shapes import Schedules
from tasksvc.web.views.pages import answer_page

_SCHEDULE_SEARCH = ScheduleSearch()


async def put_schedule(request: web.Request) -> Answer:
    name = load_new_name(request.match_info["name"])
    order = load_schedule(await read_json(request))
    try:
        schedule, is_new = await request.app[SCHEDULES].put(name, order)
    except UnknownKind as error:
        raise wrong_shape([{"pointer": "/task/kind", "detail": str(error)}]) from None
    if not is_new:
        return Answer(dump_schedule(schedule))
    headers: dict[str, str] = {hdrs.LOCATION: f"/schedules/{name}"}
    return Answer(dump_schedule(schedule), status=HTTPStatus.CREATED, headers=headers)


async def get_schedule(request: web.Request) -> Answer:
    check_no_query(request)
    return Answer(dump_schedule(await request.app[SCHEDULES].get(_name(request))))


async def find_schedules(request: web.Request) -> Answer:
    find = request.app[SCHEDULES].find
    return await answer_page(request, _SCHEDULE_SEARCH, find, Schedules, dump_schedule)


async def delete_schedule(request: web.Request) -> Answer:
    await request.app[SCHEDULES].delete(_name(request))
    return Answer(b"", status=HTTPStatus.NO_CONTENT)


def _name(request: web.Request) -> str:
    return load_name(request.match_info["name"], ScheduleNotFound)
