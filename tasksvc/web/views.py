"""One function for each route: parse, call one verb, answer."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from tasksvc.web.keys import HEALTH, LIMITS, METRICS, SERVICE
from tasksvc.web.problems import Problem, unavailable
from tasksvc.web.schemas import dump_task, load_task_create, load_task_id

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor

_JSON = "application/json"

_UTF_8 = frozenset({"utf-8", "utf8"})

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""


async def create_task(request: web.Request) -> web.Response:
    app = request.app
    metrics = app[METRICS]
    metrics.task_create_requests.add()
    try:
        if app[HEALTH].is_stopping:
            raise unavailable("The service is stopping.")
        content = load_task_create(await _read_json(request))["content"]
        task = await app[SERVICE].create(content, _traceparent(request))
    except BaseException:
        metrics.task_create_fails.add()
        raise
    metrics.task_create_successes.add()
    if _is_logged(logging.DEBUG):
        log.debug("Created", action="created", task_id=task.id)
    return _json(dump_task(task), 201, {hdrs.LOCATION: f"/task/{task.id}"})


async def get_task(request: web.Request) -> web.Response:
    request.app[METRICS].task_get_requests.add()
    task = await request.app[SERVICE].get(load_task_id(request.match_info["task_id"]))
    return _json(dump_task(task))


async def cancel_task(request: web.Request) -> web.Response:
    metrics = request.app[METRICS]
    metrics.task_cancel_requests.add()
    try:
        task = await request.app[SERVICE].cancel(load_task_id(request.match_info["task_id"]))
    except BaseException:
        metrics.task_cancel_fails.add()
        raise
    metrics.task_cancel_successes.add()
    log.info("Canceled", action="canceled", task_id=task.id)
    return _json(dump_task(task))


async def health(request: web.Request) -> web.Response:
    """Whether it can serve, and what is wrong."""
    checks = request.app[HEALTH]
    document: dict[str, Any] = {"status": "ok"}
    if degraded := checks.degraded():
        document["degraded"] = degraded
    if problems := await checks.problems():
        document = {**document, "status": "unavailable", "problems": problems}
        return _json(orjson.dumps(document), HTTPStatus.SERVICE_UNAVAILABLE)
    return _json(orjson.dumps(document))


async def health_live(request: web.Request) -> web.Response:
    """Whether its loops come round; if not, it had better be started again."""
    return _yes_or_no(request.app[HEALTH].is_live())


async def health_ready(request: web.Request) -> web.Response:
    """Whether to send it requests."""
    return _yes_or_no(await request.app[HEALTH].is_ready())


async def metrics(request: web.Request) -> web.Response:
    """All that is known now. What can't be asked now is left out, rather than told from memory."""
    await request.app[SERVICE].measure()
    body, headers = request.app[METRICS].render(request.headers.getall(hdrs.ACCEPT, []))
    return web.Response(body=body, headers=headers)


async def _read_json(request: web.Request) -> bytes:
    if request.headers.get(hdrs.CONTENT_TYPE) != _JSON and not _is_json(request):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be {_JSON} in UTF-8.",
            headers={"Accept-Post": _JSON},
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "The body must not be compressed.",
            headers={hdrs.ACCEPT_ENCODING: "identity"},
        )
    if request.content.is_eof():  # it came with the head: a timer would cost more than the rest
        return await request.read()
    try:
        async with asyncio.timeout(request.app[LIMITS].body_timeout_seconds):
            return await request.read()
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.", closes=True
        ) from None
    except (ConnectionError, HttpProcessingError, web.RequestPayloadError):
        # The client went away half way, or its chunks are none.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off.", closes=True) from None


def _is_json(request: web.Request) -> bool:
    """However it is written."""
    return request.content_type == _JSON and (request.charset or "utf-8").lower() in _UTF_8


def _traceparent(request: web.Request) -> str | None:
    value = request.headers.get("traceparent")
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers=headers, content_type=_JSON)


def _yes_or_no(is_so: bool) -> web.Response:
    if is_so:
        return _json(b'{"status":"ok"}')
    return _json(b'{"status":"unavailable"}', HTTPStatus.SERVICE_UNAVAILABLE)
