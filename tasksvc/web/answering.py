"""What every request passes: its id, its measure, and one place that turns errors into answers.

It stands around the whole application, and is no middleware in it: so it also sees what aiohttp
itself refuses, and a request passes two coroutines less.
"""

from __future__ import annotations

import logging
import re
import time
from http import HTTPStatus
from traceback import clear_frames

import structlog
import uuid_utils
from aiohttp import web
from aiohttp.typedefs import Handler

from tasksvc import logs
from tasksvc.domain.errors import (
    ContentRefused,
    InvalidCron,
    KeyReused,
    QueueInUse,
    QueueNotFound,
    ScheduleNotFound,
    TaskIsFinal,
    TaskIsNotFinal,
    TaskNotFound,
    TooManySchedules,
    Unavailable,
    UniqueKeyTaken,
    UnknownKind,
    Unreadable,
)
from tasksvc.web.answers import X_REQUEST_ID
from tasksvc.web.app_keys import METRICS
from tasksvc.web.problems import Problem, unavailable, wrong_shape

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor
"""Asked first where it is hot: structlog makes a logger even for a line that nobody wants."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_MAX_CHAIN = 10
"""Errors that an error may come of."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: whatever happens within, the client gets an answer that we shaped."""
    started = time.perf_counter()
    request_id = request.headers.get(X_REQUEST_ID)
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid_utils.uuid4().hex
    logs.about(request_id=request_id)
    try:
        response = await handler(request)
    except Exception as error:
        response = _problem(error).response()
        _forget(error)
    response.headers[X_REQUEST_ID] = request_id
    _observe(request, response.status, time.perf_counter() - started)
    return response


def _forget(error: BaseException | None) -> None:
    """Empties the frames that the error came through. Where one of them, or what it had, has the
    error too, each would keep the other, and with them the body: the collector, which looks for
    that, counts objects and not bytes, and comes too late."""
    for _ in range(_MAX_CHAIN):
        if error is None:
            break
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case TaskNotFound() | QueueNotFound() | ScheduleNotFound():
            return Problem(HTTPStatus.NOT_FOUND, str(error))
        case TaskIsFinal() | TaskIsNotFinal():
            return Problem(HTTPStatus.BAD_REQUEST, str(error), task_status=error.status)
        case UniqueKeyTaken() | QueueInUse():
            return Problem(HTTPStatus.CONFLICT, str(error))
        case Unavailable():
            return unavailable(str(error))
        case ContentRefused():
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case KeyReused():
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case TooManySchedules():
            return Problem(HTTPStatus.CONFLICT, str(error))
        case InvalidCron():
            return wrong_shape([{"pointer": "/cron", "detail": str(error)}])
        case UnknownKind():
            return wrong_shape([{"pointer": "/kind", "detail": str(error)}])
        case Unreadable():
            log.error("Unreadable", action="unreadable")
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return Problem(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Allowed here: {allow}.", headers={"Allow": allow}
            )
        case web.HTTPRequestEntityTooLarge():
            return Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large.", closes=True
            )
        case web.HTTPException():
            status = HTTPStatus(error.status)
            return Problem(status, status.description or status.phrase)
        case _:
            log.error("Unexpected", action="request_failed", exc_info=error)
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here.")


def _observe(request: web.Request, status: int, seconds: float) -> None:
    # Labels come from closed sets: never the path or the method as the client wrote it.
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    method = request.method if request.method in _METHODS else "other"
    request.app[METRICS].observe_request(route, method, status, seconds)
    if _is_logged(logging.DEBUG):
        log.debug(
            "Answered",
            action="answered",
            method=method,
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 2),
        )
