"""One function for each route of schedules."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import hdrs, web

from tasksvc.domain.errors import ScheduleNotFound, UnknownKind
from tasksvc.domain.schedule import ScheduleOrder
from tasksvc.web.answers import NO_CONTENT, Answer
from tasksvc.web.app_keys import SCHEDULES
from tasksvc.web.bodies import read_json
from tasksvc.web.problems import wrong_shape
from tasksvc.web.queries import check_no_query, load_query, next_link
from tasksvc.web.schemas.dumps import dump_list
from tasksvc.web.schemas.schedules import (
    SCHEDULE_NAME,
    SCHEDULE_NAME_RULE,
    SchedulePut,
    ScheduleSearch,
    dump_schedule,
)
from tasksvc.web.schemas.tasks import load

_SCHEDULE_PUT = SchedulePut()
_SCHEDULE_SEARCH = ScheduleSearch()


async def put_schedule(request: web.Request) -> Answer:
    name = request.match_info["name"]
    if not SCHEDULE_NAME.match(name):
        raise wrong_shape([{"pointer": "/name", "detail": SCHEDULE_NAME_RULE}])
    order: ScheduleOrder = load(_SCHEDULE_PUT, await read_json(request))
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
    """A page of them, in the order of their names."""
    search = load_query(_SCHEDULE_SEARCH, request)
    limit = search["limit"]
    schedules = await request.app[SCHEDULES].find(search.get("after", ""), limit + 1)
    page = schedules[:limit]
    headers = next_link(request, after=page[-1].name) if len(schedules) > limit else {}
    return Answer(await dump_list("schedules", page, dump_schedule), headers=headers)


async def delete_schedule(request: web.Request) -> Answer:
    await request.app[SCHEDULES].delete(_name(request))
    return Answer(b"", status=NO_CONTENT)


def _name(request: web.Request) -> str:
    """Raises ScheduleNotFound: what is no name is no schedule's."""
    name = request.match_info["name"]
    if not SCHEDULE_NAME.match(name):
        raise ScheduleNotFound
    return name
