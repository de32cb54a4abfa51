"""One function for each route: parse, call one verb, answer."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import istr

from tasksvc.domain.errors import UnknownKind
from tasksvc.domain.task import Created
from tasksvc.web.answers import JSON, Answer
from tasksvc.web.keys import HEALTH, LIMITS, METRICS, SERVICE
from tasksvc.web.problems import Problem, unavailable, wrong_shape
from tasksvc.web.schemas import (
    TaskOrder,
    dump_cursor,
    dump_task,
    dump_tasks,
    load_search,
    load_task_create,
    load_task_id,
    load_tasks_create,
)

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor

_UTF_8 = frozenset({"utf-8", "utf8"})

IDEMPOTENCY_KEY = istr("Idempotency-Key")
"""https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header"""

IDEMPOTENT_REPLAYED = istr("Idempotent-Replayed")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""


async def create_task(request: web.Request) -> Answer:
    app = request.app
    metrics = app[METRICS]
    metrics.task_create_requests.add()
    try:
        if app[HEALTH].is_stopping:
            raise unavailable("The service is stopping.")
        order = load_task_create(await _read_json(request))
        if order.options.kind is not None:
            await app[SERVICE].check_kind(order.options.kind)
        is_replayed = False
        if IDEMPOTENCY_KEY in request.headers:
            task, is_replayed = await _create_once(request, order)
        else:
            task = await app[SERVICE].create(order.content, _traceparent(request), order.options)
    except BaseException:
        metrics.task_create_fails.add()
        raise
    metrics.task_create_successes.add()
    if _is_logged(logging.DEBUG):
        log.debug("Created", action="created", task_id=task.id)
    headers: dict[str, str] = {hdrs.LOCATION: f"/task/{task.id}"}
    if is_replayed:
        headers[IDEMPOTENT_REPLAYED] = "true"
    return Answer(dump_task(task), status=201, headers=headers)


async def get_task(request: web.Request) -> Answer:
    request.app[METRICS].task_get_requests.add()
    task = await request.app[SERVICE].get(load_task_id(request.match_info["task_id"]))
    return Answer(dump_task(task))


async def cancel_task(request: web.Request) -> Answer:
    metrics = request.app[METRICS]
    metrics.task_cancel_requests.add()
    try:
        task = await request.app[SERVICE].cancel(load_task_id(request.match_info["task_id"]))
    except BaseException:
        metrics.task_cancel_fails.add()
        raise
    metrics.task_cancel_successes.add()
    if _is_logged(logging.DEBUG):
        log.debug("Canceled", action="canceled", task_id=task.id)
    return Answer(dump_task(task))


async def retry_task(request: web.Request) -> Answer:
    with _creating(request):
        task = await request.app[SERVICE].retry(load_task_id(request.match_info["task_id"]))
    request.app[METRICS].task_create_successes.add()
    return Answer(dump_task(task), status=201, headers={hdrs.LOCATION: f"/task/{task.id}"})


async def create_tasks(request: web.Request) -> Answer:
    """All of them, or none."""
    service = request.app[SERVICE]
    with _creating(request):
        if IDEMPOTENCY_KEY in request.headers:
            raise Problem(HTTPStatus.BAD_REQUEST, "Idempotency-Key is for POST /task alone.")
        orders = load_tasks_create(await _read_json(request))
        for number, order in enumerate(orders):
            if order.options.kind is not None:
                try:
                    await service.check_kind(order.options.kind)
                except UnknownKind as error:
                    pointer = f"/tasks/{number}/kind"
                    raise wrong_shape([{"pointer": pointer, "detail": str(error)}]) from None
        tasks = await service.create_many(orders)
    request.app[METRICS].task_create_successes.add(len(tasks))
    return Answer(dump_tasks(tasks), status=201)


async def find_tasks(request: web.Request) -> Answer:
    """A page of tasks, newest first."""
    search = load_search(request.query)
    page = await request.app[SERVICE].find(search.filter, search.before, search.limit)
    if page.next_before is None:
        return Answer(dump_tasks(page.tasks))
    cursor = dump_cursor(search.filter, page.next_before)
    url = request.rel_url.update_query(cursor=cursor)
    return Answer(dump_tasks(page.tasks, cursor), headers={hdrs.LINK: f'<{url}>; rel="next"'})


async def health(request: web.Request) -> Answer:
    """Whether it can serve, and what is wrong."""
    checks = request.app[HEALTH]
    document: dict[str, Any] = {"status": "ok"}
    if degraded := checks.degraded():
        document["degraded"] = degraded
    if problems := await checks.problems():
        document = {**document, "status": "unavailable", "problems": problems}
        return Answer(orjson.dumps(document), status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(orjson.dumps(document))


async def health_live(request: web.Request) -> Answer:
    """Whether its loops come round; if not, it had better be started again."""
    return _yes_or_no(request.app[HEALTH].is_live())


async def health_ready(request: web.Request) -> Answer:
    """Whether to send it requests."""
    return _yes_or_no(await request.app[HEALTH].is_ready())


async def metrics(request: web.Request) -> Answer:
    """All that is known now. What can't be asked now is left out, rather than told from memory."""
    await request.app[SERVICE].measure()
    body, headers = request.app[METRICS].render(request.headers.getall(hdrs.ACCEPT, []))
    return Answer(body, content_type=headers["Content-Type"])


@contextmanager
def _creating(request: web.Request) -> Iterator[None]:
    """Counts a request that creates, and refuses it while the service stops. `create_task`, where
    it is hot, does the same by itself."""
    metrics = request.app[METRICS]
    metrics.task_create_requests.add()
    try:
        if request.app[HEALTH].is_stopping:
            raise unavailable("The service is stopping.")
        yield
    except BaseException:
        metrics.task_create_fails.add()
        raise


async def _create_once(request: web.Request, order: TaskOrder) -> Created:
    key = request.headers[IDEMPOTENCY_KEY]
    if not _KEY.fullmatch(key):
        raise Problem(
            HTTPStatus.BAD_REQUEST, "Idempotency-Key must be 1 to 255 visible ASCII characters."
        )
    return await request.app[SERVICE].create_once(
        order.content,
        _traceparent(request),
        order.options,
        key=key,
        fingerprint=order.fingerprint(),
    )


async def _read_json(request: web.Request) -> bytes | bytearray:
    if request.headers.get(hdrs.CONTENT_TYPE) != JSON and not _is_json(request):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be {JSON} in UTF-8.",
            headers={"Accept-Post": JSON},
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "The body must not be compressed.",
            headers={hdrs.ACCEPT_ENCODING: "identity"},
        )
    limits = request.app[LIMITS]
    try:
        if not request.content.is_eof():
            async with asyncio.timeout(limits.body_timeout_seconds):
                return await _read_body(request, limits.max_body_bytes)
        # It came with its head: a timer and a loop would cost more than the rest.
        body = request.content.read_nowait()
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.", closes=True
        ) from None
    except (ConnectionError, HttpProcessingError, web.RequestPayloadError):
        # The client went away half way, or its chunks are none.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off.", closes=True) from None
    if len(body) > limits.max_body_bytes:
        raise web.HTTPRequestEntityTooLarge(limits.max_body_bytes, len(body))
    return body


async def _read_body(request: web.Request, max_bytes: int) -> bytearray:
    """The whole body. aiohttp's own `read` would keep it for as long as the request lives."""
    body = bytearray()
    while data := await request.content.readany():
        body += data
        if len(body) > max_bytes:
            raise web.HTTPRequestEntityTooLarge(max_bytes, len(body))
    return body


def _is_json(request: web.Request) -> bool:
    """However it is written."""
    return request.content_type == JSON and (request.charset or "utf-8").lower() in _UTF_8


def _traceparent(request: web.Request) -> str | None:
    value = request.headers.get("traceparent")
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def _yes_or_no(is_so: bool) -> Answer:
    if is_so:
        return Answer(b'{"status":"ok"}')
    return Answer(b'{"status":"unavailable"}', status=HTTPStatus.SERVICE_UNAVAILABLE)
