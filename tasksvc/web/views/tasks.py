"""One function for each route of tasks: parse, call one verb, answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web
from multidict import istr

from tasksvc.domain.errors import UnknownKind
from tasksvc.domain.task import FINAL, LIVE, BulkResult, Status
from tasksvc.domain.trace import read_traceparent
from tasksvc.metrics import Count
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import HEALTH, LIMITS, METRICS, SERVICE
from tasksvc.web.bodies import read_batch, read_json
from tasksvc.web.problems import Problem, unavailable, wrong_shape
from tasksvc.web.queries import check_no_query, next_link
from tasksvc.web.schemas.batches import load_tasks_create
from tasksvc.web.schemas.cursors import Cursors
from tasksvc.web.schemas.dumps import dump_attempts, dump_step, dump_task, dump_tasks, fitting
from tasksvc.web.schemas.names import load_task_id
from tasksvc.web.schemas.shapes import CanceledTasks, RetriedTasks
from tasksvc.web.schemas.tasks import load_search, load_step, load_task_create
from tasksvc.web.wanted import while_wanted

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor

IDEMPOTENCY_KEY = istr("Idempotency-Key")
"""https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header"""

IDEMPOTENT_REPLAYED = istr("Idempotent-Replayed")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def create_task(request: web.Request) -> Answer:
    app = request.app
    metrics = app[METRICS]
    metrics.task_create_requests.add()
    try:
        if app[HEALTH].is_stopping:
            raise unavailable("The service is stopping.")
        order = load_task_create(await read_json(request))
        if order.options.kind is not None:
            await app[SERVICE].check_kind(order.options.kind)
        key = _idempotency_key(request)
        task, is_replayed, is_new = await app[SERVICE].create(
            order.content,
            _traceparent(request),
            order.options,
            key=key,
            fingerprint=None if key is None else order.fingerprint(),
        )
    except BaseException:
        metrics.task_create_fails.add()
        raise
    metrics.task_create_successes.add()
    if _is_logged(logging.DEBUG):
        log.debug("Task created", action="created", task_id=task.id)
    headers: dict[str, str] = {hdrs.LOCATION: f"/task/{task.id}"}
    if is_replayed:
        headers[IDEMPOTENT_REPLAYED] = "true"
    return Answer(dump_task(task), status=201 if is_new else 200, headers=headers)


async def get_task(request: web.Request) -> Answer:
    request.app[METRICS].task_get_requests.add()
    check_no_query(request)
    task = await request.app[SERVICE].get(_task_id(request))
    return Answer(dump_task(task))


async def get_attempts(request: web.Request) -> Answer:
    """The history of a task."""
    check_no_query(request)
    attempts = await request.app[SERVICE].get_attempts(_task_id(request))
    return Answer(await dump_attempts(attempts))


async def cancel_task(request: web.Request) -> Answer:
    with _canceling(request):
        task = await request.app[SERVICE].cancel(_task_id(request))
    request.app[METRICS].task_cancel_successes.add()
    if _is_logged(logging.DEBUG):
        log.debug("Task canceled", action="canceled", task_id=task.id)
    return Answer(dump_task(task))


async def retry_task(request: web.Request) -> Answer:
    with _creating(request):
        task = await request.app[SERVICE].retry(_task_id(request))
    request.app[METRICS].task_create_successes.add()
    return Answer(dump_task(task), status=201, headers={hdrs.LOCATION: f"/task/{task.id}"})


async def create_tasks(request: web.Request) -> Answer:
    """All of them, or none."""
    service = request.app[SERVICE]
    with _creating(request):
        if IDEMPOTENCY_KEY in request.headers:
            raise Problem(HTTPStatus.BAD_REQUEST, "Idempotency-Key is for POST /task alone.")
        body = await read_batch(request)
        orders = await load_tasks_create(body, request.app[LIMITS].max_body_bytes)
        for number, order in enumerate(orders):
            if order.options.kind is not None:
                try:
                    await service.check_kind(order.options.kind)
                except UnknownKind as error:
                    pointer = f"/tasks/{number}/kind"
                    raise wrong_shape([{"pointer": pointer, "detail": str(error)}]) from None
        tasks = await service.create_many(orders, _traceparent(request))
    request.app[METRICS].task_create_successes.add(len(tasks))
    return Answer(await dump_tasks(tasks), status=201)


async def find_tasks(request: web.Request) -> Answer:
    """A page of tasks, newest first."""
    search = load_search(request)
    cursors = await _cursors(request)
    before = cursors.load(search.filter, search.cursor)
    service = request.app[SERVICE]
    page = await while_wanted(request, service.find(search.filter, before, search.limit))
    tasks = await fitting(page.tasks)
    next_before = page.next_before if len(tasks) == len(page.tasks) else tasks[-1].id
    if next_before is None:
        return Answer(await dump_tasks(tasks))
    cursor = cursors.dump(search.filter, next_before)
    headers = next_link(request, cursor=cursor)
    return Answer(await dump_tasks(tasks, cursor), headers=headers)


async def cancel_tasks(request: web.Request) -> Answer:
    """A step of those that pass a filter."""
    service, successes = request.app[SERVICE], request.app[METRICS].task_cancel_successes
    with _canceling(request):
        return await _step(request, LIVE, service.cancel_many, CanceledTasks, successes)


async def retry_tasks(request: web.Request) -> Answer:
    """A step of those that pass a filter."""
    service, successes = request.app[SERVICE], request.app[METRICS].task_create_successes
    with _creating(request):
        return await _step(request, FINAL, service.retry_many, RetriedTasks, successes)


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


@contextmanager
def _canceling(request: web.Request) -> Iterator[None]:
    """Counts a request that cancels."""
    metrics = request.app[METRICS]
    metrics.task_cancel_requests.add()
    try:
        yield
    except BaseException:
        metrics.task_cancel_fails.add()
        raise


async def _step(
    request: web.Request,
    statuses: Collection[Status],
    change: Callable[..., Awaitable[BulkResult]],
    shape: type[CanceledTasks] | type[RetriedTasks],
    successes: Count,
) -> Answer:
    """Changes a step of the tasks, or only lists them."""
    order = load_step(await read_json(request), statuses)
    cursors = await _cursors(request)
    before = cursors.load(order.filter, order.cursor)
    step = await change(order.filter, before, order.limit, is_dry=order.is_dry)
    if not order.is_dry:
        successes.add(len(step.ids))
    cursor = None
    if step.next_before is not None:
        cursor = cursors.dump(order.filter, step.next_before)
    return Answer(dump_step(step, cursor, shape))


def _task_id(request: web.Request) -> str:
    return load_task_id(request.match_info["task_id"])


async def _cursors(request: web.Request) -> Cursors:
    return Cursors(await request.app[SERVICE].secret())


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if len(request.headers.getall(IDEMPOTENCY_KEY)) > 1:
        raise Problem(HTTPStatus.BAD_REQUEST, "Idempotency-Key must be given once.")
    if not _KEY.fullmatch(key):
        raise Problem(
            HTTPStatus.BAD_REQUEST, "Idempotency-Key must be 1 to 255 visible ASCII characters."
        )
    return key


def _traceparent(request: web.Request) -> str | None:
    return read_traceparent(request.headers.get("traceparent"))
