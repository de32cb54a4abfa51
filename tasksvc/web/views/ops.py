"""One function for each route of health and metrics."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from aiohttp import hdrs, web

from tasksvc import logs
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import HEALTH, METRICS, SERVICE
from tasksvc.web.schemas.shapes import HealthJson

_encode = msgspec.json.Encoder().encode


async def health(request: web.Request) -> Answer:
    """Whether it can serve, and what is wrong."""
    checks = request.app[HEALTH]
    degraded, problems = checks.degraded(), await checks.problems()
    if problems:
        return _health(HealthJson("unavailable", degraded, problems))
    return _health(HealthJson("ok", degraded))


async def health_live(request: web.Request) -> Answer:
    """Whether its loops come round; if not, it had better be started again."""
    return _yes_or_no(request.app[HEALTH].is_live())


async def health_ready(request: web.Request) -> Answer:
    """Whether to send it requests."""
    return _yes_or_no(await request.app[HEALTH].is_ready())


async def metrics(request: web.Request) -> Answer:
    """Answers with the current values. A value that can't be read now is left out."""
    await request.app[SERVICE].measure()
    request.app[METRICS].set_log_lines_dropped(logs.dropped_lines())
    body, headers = request.app[METRICS].render(request.headers.getall(hdrs.ACCEPT, []))
    return Answer(body, content_type=headers["Content-Type"])


def _yes_or_no(is_so: bool) -> Answer:
    return _health(HealthJson("ok" if is_so else "unavailable"))


def _health(health: HealthJson) -> Answer:
    status = HTTPStatus.OK if health.status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(_encode(health), status=status)
