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
from tasksvc.metrics import Metrics
from tasksvc.web.answers import X_REQUEST_ID, Answer
from tasksvc.web.problems import Problem, unavailable, wrong_shape

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor
"""Asked first where it is hot: structlog makes a logger even for a line that nobody wants."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_MAX_CHAIN = 10
"""Errors that an error may come of."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_SENT_AT = web.RequestKey("sent_at", float)

_COMMON_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The same that each `Answer` has."""

_KEPT_HEADERS = frozenset({"WWW-Authenticate", "Retry-After", "RateLimit", "RateLimit-Policy"})
"""Of an error that a middleware raises. They are for the client; others may not be."""


async def answer(request: web.Request, handler: Handler, metrics: Metrics) -> web.StreamResponse:
    """Answers the request, and turns every error into a problem. It stands around middlewares and
    sub-applications."""
    started = time.perf_counter()
    request_id = request.headers.get(X_REQUEST_ID)
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid_utils.uuid4().hex
    logs.about(request_id=request_id)
    try:
        response = await handler(request)
    except web.HTTPRedirection as error:
        response = web.Response(status=error.status, reason=error.reason, headers=error.headers)
    except Exception as error:
        response = _problem(error).response()
        _forget(error)
    ended = time.perf_counter()
    if response.prepared:  # a stream: its life is not the time that the client waited
        ended = request.get(_SENT_AT, ended)
    else:
        response.headers[X_REQUEST_ID] = request_id
    _observe(request, response.status, ended - started, metrics)
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Completes the headers of a response that aiohttp sends, such as a stream or a file. A signal
    of the application (`on_response_prepare`)."""
    if isinstance(response, Answer):
        return  # it has them
    for name, value in _COMMON_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[X_REQUEST_ID] = logs.context().get("request_id", "")
    request[_SENT_AT] = time.perf_counter()


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
        case web.HTTPException():  # of aiohttp, or of a middleware
            status = HTTPStatus(error.status)
            headers = {name: error.headers[name] for name in _KEPT_HEADERS & error.headers.keys()}
            return Problem(status, status.description or status.phrase, headers=headers)
        case _:
            log.error("Unexpected", action="request_failed", exc_info=error)
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here.")


def _observe(request: web.Request, status: int, seconds: float, metrics: Metrics) -> None:
    # Labels come from closed sets: never the path or the method as the client wrote it.
    match_info = request._match_info
    resource = None if match_info is None else match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    method = request.method if request.method in _METHODS else "other"
    metrics.observe_request(route, method, status, seconds)
    if _is_logged(logging.DEBUG):
        log.debug(
            "Answered",
            action="answered",
            method=method,
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 2),
        )
