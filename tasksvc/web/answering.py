"""Gives each request its id and its measure, and turns errors into answers in one place."""

from __future__ import annotations

import logging
import re
import time
from http import HTTPStatus
from traceback import clear_frames

import structlog
import uuid_utils
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from tasksvc import logs
from tasksvc.domain.errors import (
    DataRejected,
    IdempotencyKeyConflict,
    InvalidCron,
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
from tasksvc.web.answers import COMMON_HEADERS, SERVER, X_REQUEST_ID, Answer
from tasksvc.web.app_keys import METRICS
from tasksvc.web.problems import Problem, unavailable, wrong_shape

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor
"""Asked first where it is hot: structlog makes a logger even for a line that is not logged."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_MAX_CHAIN = 10
"""Errors that an error may come of."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_SENT_AT = web.RequestKey("sent_at", float)

_KEPT_HEADERS = frozenset({"WWW-Authenticate", "Retry-After", "RateLimit", "RateLimit-Policy"})
"""Of an error that a middleware raises. They are for the client; others may not be."""


def shape_answers(app: web.Application) -> None:
    """Adds the outermost middleware, and what completes the answers that aiohttp sends. Middlewares
    and sub-applications that are added later stand inside."""
    app.middlewares.append(answer)
    app.on_response_prepare.append(add_headers)


@web.middleware
async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers the request, and turns every error into a problem."""
    started = time.perf_counter()
    request_id = request.headers.get(X_REQUEST_ID)
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid_utils.uuid4().hex
    logs.about(request_id=request_id)
    try:
        response = await handler(request)
    except Exception as error:
        response = _answer_to(request, error)
        _forget(error)
    ended = time.perf_counter()
    if response.prepared:  # a stream: its life is not the time that the client waited
        ended = request.get(_SENT_AT, ended)
    else:
        response.headers[X_REQUEST_ID] = request_id
    _observe(request, response.status, ended - started)
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Completes the headers of a response that aiohttp sends, such as a stream or a file. A signal
    of the application (`on_response_prepare`)."""
    if isinstance(response, Answer):
        return  # it has them
    response.headers[hdrs.SERVER] = SERVER
    for name, value in COMMON_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[X_REQUEST_ID] = logs.context().get("request_id", "")
    request[_SENT_AT] = time.perf_counter()


def _answer_to(request: web.Request, error: Exception) -> web.StreamResponse:
    """Returns a problem, or the page that a sub-application has raised.

    Raises ConnectionError where the head of an answer is sent already: only the end of the
    connection tells the client that the rest is missing.
    """
    if _SENT_AT in request:
        if not isinstance(error, ConnectionError):
            log.error("Answer broke off", action="answer_broke_off", exc_info=error)
        raise ConnectionError("The answer broke off.") from None
    if isinstance(error, web.HTTPException) and _is_page(request, error):
        return web.Response(
            status=error.status, reason=error.reason, headers=error.headers, body=error.body
        )
    return _problem(error).response()


def _is_page(request: web.Request, error: web.HTTPException) -> bool:
    """Returns whether the error is a redirection, or the page of a sub-application with a text of
    its own. Our own paths answer with problems."""
    return isinstance(error, web.HTTPRedirection) or (
        len(request.match_info.apps) > 1 and error.text != f"{error.status}: {error.reason}"
    )


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
        case DataRejected():
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case IdempotencyKeyConflict():
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case TooManySchedules():
            return Problem(HTTPStatus.CONFLICT, str(error))
        case InvalidCron():
            return wrong_shape([{"pointer": "/cron", "detail": str(error)}])
        case UnknownKind():
            return wrong_shape([{"pointer": "/kind", "detail": str(error)}])
        case Unreadable():
            log.error("Unreadable row", action="unreadable")
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
            log.error("Request failed", action="request_failed", exc_info=error)
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here.")


def _observe(request: web.Request, status: int, seconds: float) -> None:
    # Labels come from closed sets: never the path or the method as the client wrote it.
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    method = request.method if request.method in _METHODS else "other"
    request.app[METRICS].observe_request(route, method, status, seconds)
    if _is_logged(logging.DEBUG):
        log.debug(
            "Request answered",
            action="answered",
            method=method,
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 2),
        )
